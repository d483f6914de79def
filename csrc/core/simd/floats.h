// Blocks of half-precision floats <-> float32, see core/runtime/dtype.h. Loops that the compiler turns into
// vectors.

static void floats_from_halves(const uint16_t* halves, DType dtype, int64_t count, float* values) {
    if (dtype == DType::bfloat16) {
        for (int64_t i = 0; i < count; ++i) values[i] = float_from_bfloat16(halves[i]);
    } else {
        for (int64_t i = 0; i < count; ++i) values[i] = float_from_float16(halves[i]);
    }
}

static void halves_from_floats(const float* values, DType dtype, int64_t count, uint16_t* halves) {
    if (dtype == DType::bfloat16) {
        for (int64_t i = 0; i < count; ++i) halves[i] = bfloat16_from_float(values[i]);
    } else {
        for (int64_t i = 0; i < count; ++i) halves[i] = float16_from_float(values[i]);
    }
}
