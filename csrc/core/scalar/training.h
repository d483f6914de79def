// Weights plus scaled noise; gradients times noise, and their sums over groups.

static void add_noise(const NoiseRun& run, const float* values, const float* amplitudes, int64_t group_size,
                      bool /*past_cache*/, float* out) {
    float z[kBlock];
    make_noise(run, z);
    if (group_size == 1) {
        for (int64_t i = 0; i < run.span.count; ++i) out[i] = values[i] + amplitudes[i] * z[i];
        return;
    }
    const int64_t size = group_size == 0 ? run.span.count : group_size;
    for (int64_t i = 0; i < run.span.count; i += size, ++amplitudes) {
        const float amplitude = *amplitudes;
        for (int64_t j = i; j < i + size; ++j) out[j] = values[j] + amplitude * z[j];
    }
}

static void multiply_noise(const NoiseRun& run, const float* gradients, bool /*past_cache*/, float* copies,
                           float* products) {
    float z[kBlock];
    make_noise(run, z);
    std::copy(gradients, gradients + run.span.count, copies);
    for (int64_t i = 0; i < run.span.count; ++i) products[i] = gradients[i] * z[i];
}

static void finish_writes() {}

template <int64_t kSize>
static void sum_fixed(const float* products, int64_t groups, float* sums) {
    for (int64_t g = 0; g < groups; ++g) {
        float parts[kSize];
        for (int64_t j = 0; j < kSize; ++j) parts[j] = products[g * kSize + j];
        for (int64_t half = kSize / 2; half > 0; half /= 2) {
            for (int64_t j = 0; j < half; ++j) parts[j] += parts[j + half];
        }
        sums[g] = parts[0];
    }
}

static void sum_groups(const float* products, int64_t groups, int64_t group_size, float* sums) {
    switch (group_size) {
        case 1:
            return sum_fixed<1>(products, groups, sums);
        case 2:
            return sum_fixed<2>(products, groups, sums);
        case 4:
            return sum_fixed<4>(products, groups, sums);
        case 8:
            return sum_fixed<8>(products, groups, sums);
        default:
            return sum_fixed<16>(products, groups, sums);
    }
}

static double add_lanes(const double* lanes) {
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

static double sum(const float* values, int64_t count) {
    double lanes[8] = {};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        for (int lane = 0; lane < 8; ++lane) lanes[lane] += static_cast<double>(values[i + lane]);
    }
    for (; i < count; ++i) lanes[i % 8] += static_cast<double>(values[i]);
    return add_lanes(lanes);
}

static double dot(const float* a, const float* b, int64_t count) {
    double lanes[8] = {};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        for (int lane = 0; lane < 8; ++lane) {
            lanes[lane] += static_cast<double>(a[i + lane]) * static_cast<double>(b[i + lane]);
        }
    }
    for (; i < count; ++i) lanes[i % 8] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    return add_lanes(lanes);
}
