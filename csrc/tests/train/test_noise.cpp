#include <cmath>

#include "core/runtime/dispatch.h"
#include "core/train/noise.h"
#include "tests/check.h"

using namespace diffq_fast;

// The elementary functions over single floats, as the scalar kernels have them.
namespace elementary {
// clang-format off
#include "core/scalar/vectors.h"
#include "core/simd/elementary.h"
// clang-format on
}  // namespace elementary

namespace {

using elementary::exp2_float, elementary::exp_float;

constexpr double kPi = 3.14159265358979323846;
constexpr PhiloxKey kKey{0xa4093822, 0x299f31d0};

bool equal(PhiloxWords got, PhiloxWords expected) {
    return got.w0 == expected.w0 && got.w1 == expected.w1 && got.w2 == expected.w2 && got.w3 == expected.w3;
}

void philox_known_answers() {
    CHECK(equal(philox4x32_10({0, 0, 0, 0}, {0, 0}), {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    const uint32_t ones = 0xffffffff;
    CHECK(equal(philox4x32_10({ones, ones, ones, ones}, {ones, ones}),
                {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
    CHECK(equal(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, kKey),
                {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

uint32_t draw(uint32_t stream, uint64_t element) {
    const uint64_t call = element / 8;
    const PhiloxWords made =
        philox4x32_10({static_cast<uint32_t>(call), static_cast<uint32_t>(call >> 32), stream, 0}, kKey);
    const uint32_t words[] = {made.w0, made.w1, made.w2, made.w3};
    return element % 2 ? words[element % 8 / 2] >> 16 : words[element % 8 / 2] & 0xffff;
}

double expected(uint32_t stream, uint64_t element, NoiseKind noise_kind) {
    const auto fraction = [&](uint64_t e) { return (draw(stream, e) + 0.5) / 65536; };
    if (noise_kind == NoiseKind::uniform) return fraction(element) - 0.5;
    const uint64_t even = element / 2 * 2;
    const double radius = std::sqrt(-2 * std::log(fraction(even))) / 2, angle = 2 * kPi * fraction(even + 1);
    return radius * (element % 2 ? std::sin(angle) : std::cos(angle));
}

void noise_follows_its_definition() {
    // The last start lets the low counter word wrap inside a block.
    for (const int64_t begin : {int64_t{0}, int64_t{1}, int64_t{13}, (int64_t{1} << 35) - 100}) {
        for (const int64_t count : kAwkwardCounts) {
            for (const NoiseKind noise_kind : {NoiseKind::uniform, NoiseKind::gaussian}) {
                std::vector<float> z(static_cast<size_t>(count), NAN);
                fill_noise({kKey, 7, noise_kind}, {begin, count}, z.data(), 1);
                for (int64_t i = 0; i < count; ++i) {
                    const double error = std::fabs(z[static_cast<size_t>(i)] -
                                                   expected(7, static_cast<uint64_t>(begin + i), noise_kind));
                    CHECK(error <= (noise_kind == NoiseKind::uniform ? 0 : 2e-6));
                }
            }
        }
    }
}

void noise_of_every_instruction_set_follows_its_definition() {
    for (const Kernels* each : supported_kernels()) {
        use_kernels(each->name);
        noise_follows_its_definition();
    }
}

void noise_does_not_depend_on_threads() {
    const NoiseSource source{kKey, 1, NoiseKind::gaussian};
    std::vector<float> one(100001), three(100001);
    fill_noise(source, {5, 100001}, one.data(), 1);
    fill_noise(source, {5, 100001}, three.data(), 3);
    CHECK(one == three);
}

double relative_error(float got, double expected_value) {
    return std::fabs(got - expected_value) / std::fabs(expected_value);
}

void exponentials_are_accurate() {
    for (float x = -80; x < 80; x += 0.0137f) {
        CHECK(relative_error(exp_float(x), std::exp(static_cast<double>(x))) < 3e-7);
        CHECK(relative_error(exp2_float(x), std::exp2(static_cast<double>(x))) < 3e-7);
    }
}

void every_radius_and_angle_is_accurate() {
    for (uint32_t h = 0; h < 65536; ++h) {
        const double fraction = (h + 0.5) / 65536;
        const float half_log = elementary::half_negative_log(static_cast<float>(fraction));
        CHECK(std::fabs(std::sqrt(half_log) - std::sqrt(-0.5 * std::log(fraction))) < 4e-7);
        const elementary::HalfAngle got = elementary::half_angle(h << 16 | 0x1234);
        const double angle = kPi * (h < 32768 ? fraction : fraction - 1);
        CHECK(std::fabs(got.cosine - std::cos(angle)) < 3e-7);
        CHECK(std::fabs(got.sine - std::sin(angle)) < 2e-7);
    }
}

void exponentials_survive_any_input() {
    CHECK(std::isnan(exp_float(NAN)) && std::isnan(exp2_float(NAN)));
    CHECK(exp_float(INFINITY) > 1e38f && exp_float(-INFINITY) < 1e-37f);
    CHECK(exp2_float(1e30f) > 1e38f && exp2_float(-1e30f) < 1e-37f);
}

}  // namespace

RUN_TESTS(philox_known_answers, noise_of_every_instruction_set_follows_its_definition,
          noise_does_not_depend_on_threads, exponentials_are_accurate, every_radius_and_angle_is_accurate,
          exponentials_survive_any_input)
