#include <cmath>

#include "core/runtime/float_blocks.h"
#include "tests/check.h"

using namespace diffq_fast;

namespace {

// Value of an IEEE format with the given number of exponent and mantissa bits, by its definition.
double decode(uint16_t half, int exponent_bits, int mantissa_bits) {
    const int mantissa = half & ((1 << mantissa_bits) - 1);
    const int exponent = (half >> mantissa_bits) & ((1 << exponent_bits) - 1);
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const double sign = half & 0x8000 ? -1 : 1;
    if (exponent == (1 << exponent_bits) - 1) return mantissa ? NAN : sign * INFINITY;
    if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

template <typename ToFloat, typename FromFloat>
void check_every_pattern(int exponent_bits, ToFloat to_float, FromFloat from_float) {
    const int mantissa_bits = 15 - exponent_bits;
    for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
        const auto half = static_cast<uint16_t>(pattern);
        const double value = decode(half, exponent_bits, mantissa_bits);
        const float got = to_float(half);
        if (std::isnan(value)) {
            CHECK(std::isnan(got));
            CHECK(std::isnan(to_float(from_float(got))));
            CHECK((from_float(got) & 0x8000) == (half & 0x8000));
            continue;
        }
        CHECK(static_cast<double>(got) == value && std::signbit(got) == std::signbit(value));
        CHECK(from_float(got) == half);
        // Half-way to the next pattern rounds to the even one of the two, and beside it to the nearer one.
        const auto next = static_cast<uint16_t>(half + 1);
        const double above = decode(next, exponent_bits, mantissa_bits);
        if ((half & 0x7FFF) == 0x7FFF || !std::isfinite(above) || !std::isfinite(value)) continue;
        const float middle = static_cast<float>((value + above) / 2);
        CHECK(from_float(middle) == (half & 1 ? next : half));
        CHECK(from_float(std::nextafter(middle, static_cast<float>(above))) == next);
        CHECK(from_float(std::nextafter(middle, static_cast<float>(value))) == half);
    }
}

void bfloat16_every_pattern() {
    check_every_pattern(8, float_from_bfloat16, bfloat16_from_float);
}

void float16_every_pattern() {
    check_every_pattern(5, float_from_float16, float16_from_float);
}

void overflow_gives_infinity() {
    CHECK(float16_from_float(65519.0f) == 0x7BFF);
    CHECK(float16_from_float(65520.0f) == 0x7C00);
    CHECK(float16_from_float(1e30f) == 0x7C00);
    CHECK(float16_from_float(-1e30f) == 0xFC00);
    CHECK(bfloat16_from_float(3.4e38f) == 0x7F80);
    CHECK(bfloat16_from_float(-3.4e38f) == 0xFF80);
}

void underflow_gives_signed_zero() {
    CHECK(float16_from_float(1e-10f) == 0);
    CHECK(float16_from_float(-1e-10f) == 0x8000);
    CHECK(float16_from_float(0x1p-25f) == 0);         // half of the smallest subnormal: to even
    CHECK(float16_from_float(0x1.000002p-25f) == 1);  // just above
}

void blocks_go_through_unchanged() {
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
        const std::vector<float> source = {0.5f, -2.0f, 1.0f, 3.0f, -0.25f};
        std::vector<float> storage(5), buffer(5);
        const Floats weight{storage.data(), 5, dtype};
        store_floats(source.data(), weight, {0, 5});
        const float* loaded = load_floats(weight, {2, 3}, buffer.data());
        for (int i = 0; i < 3; ++i) CHECK(loaded[i] == source[static_cast<size_t>(i) + 2]);
        const float* place = place_for_floats(weight, {2, 3}, buffer.data());
        CHECK(place == (dtype == DType::float32 ? storage.data() + 2 : buffer.data()));
    }
}

}  // namespace

RUN_TESTS(bfloat16_every_pattern, float16_every_pattern, overflow_gives_infinity, underflow_gives_signed_zero,
          blocks_go_through_unchanged)
