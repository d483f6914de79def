#include <cmath>
#include <cstring>

#include "core/train/add_noise.h"
#include "core/train/range.h"
#include "tests/check.h"

using namespace diffq_fast;

namespace {

constexpr PhiloxKey kKey{1, 2};

struct RangeAndExtremes {
    float range[2];
    int64_t extremes[4];
};

RangeAndExtremes range_of(std::vector<float> values, int threads = 1) {
    RangeAndExtremes made;
    weight_range({{values.data(), static_cast<int64_t>(values.size()), DType::float32}}, {0, false},
                 made.range, made.extremes, threads);
    return made;
}

void range_finds_first_places_and_ties() {
    for (const int64_t count : kAwkwardCounts) {
        auto values = random_floats(count, 1);
        RangeAndExtremes got = range_of(values);
        if (count == 0) {
            CHECK(got.range[0] == 0 && got.range[1] == 0 && got.extremes[2] == 0);
            continue;
        }
        CHECK(values[static_cast<size_t>(got.extremes[0])] == got.range[0]);
        CHECK(values[static_cast<size_t>(got.extremes[1])] == got.range[1]);
        if (count < 9) continue;
        const auto last = static_cast<size_t>(count - 1);
        values[3] = values[last] = values[last / 2] = 100;
        values[2] = values[last - 1] = -100;
        got = range_of(values);
        CHECK(got.range[0] == -100 && got.extremes[0] == 2 && got.extremes[2] == 2);
        CHECK(got.range[1] == 100 && got.extremes[1] == 3);
    }
}

void range_of_constant_infinite_and_nan_weights() {
    RangeAndExtremes got = range_of(std::vector<float>(50000, 2.5f), 2);
    CHECK(got.range[0] == 2.5f && got.range[1] == 2.5f);
    CHECK(got.extremes[0] == 0 && got.extremes[2] == 50000 && got.extremes[3] == 50000);
    got = range_of(std::vector<float>(40, INFINITY));
    CHECK(std::isinf(got.range[0]) && got.extremes[2] == 40 && got.extremes[3] == 40);
    for (const size_t place : {size_t{0}, size_t{17}, size_t{39999}}) {
        std::vector<float> values(40000, 1.0f);
        values[place] = NAN;
        got = range_of(values);
        CHECK(std::isnan(got.range[0]) && std::isnan(got.range[1]) && got.extremes[3] == 0);
    }
}

// One training step over several weights at once; everything it produces, for comparison.
struct Step {
    std::vector<std::vector<float>> noisy, grad_weights, grad_logits;
    std::vector<float> ranges, nonfinite;

    bool operator==(const Step& step) const {
        return noisy == step.noisy && grad_weights == step.grad_weights && grad_logits == step.grad_logits &&
               ranges == step.ranges && nonfinite == step.nonfinite;
    }
};

struct Case {
    std::vector<std::vector<float>> weights, logits, grads;
    Grouping grouping;
    Param param = Param::bits;

    // Step and its slope, in double.
    std::pair<double, double> step_at(float logit) const {
        const double t = 1 / (1 + std::exp(-static_cast<double>(logit))), by_logit = t * (1 - t);
        const double smallest = -std::log(std::exp2(15.0) - 1), largest = -std::log(3.0);
        if (param == Param::noise) {
            const double s = std::exp(t * smallest + (1 - t) * largest);
            return {s, s * (smallest - largest) * by_logit};
        }
        const double s = 1 / (std::exp2(15 * t + 2 * (1 - t)) - 1);
        return {s, -std::log(2.0) * (s + s * s) * 13 * by_logit};
    }
};

Case make_case(const std::vector<int64_t>& counts, int64_t group_size, bool per_group) {
    Case made;
    made.grouping = {group_size, per_group};
    for (const int64_t count : counts) {
        made.weights.push_back(random_floats(count, 1));
        made.grads.push_back(random_floats(count, 2));
        made.logits.push_back(random_floats(group_count(count, group_size), 3));
    }
    return made;
}

Step run(Case& made, NoiseKind noise_kind, int threads) {
    Step step;
    const NoiseOptions options{made.grouping, BitsRule(made.param, 2, 15), noise_kind};
    NoiseArguments arguments{{}, {}, kKey, {}, nullptr, options, threads};
    std::vector<Floats> noisy, grads;
    NoiseGradients gradients;
    int64_t ranges = 0;
    for (size_t i = 0; i < made.weights.size(); ++i) {
        const auto count = static_cast<int64_t>(made.weights[i].size());
        arguments.weights.push_back({made.weights[i].data(), count, DType::float32});
        arguments.logits.push_back(made.logits[i].data());
        arguments.streams.push_back(static_cast<uint32_t>(i));
        ranges += made.grouping.range_count(count);
        step.noisy.emplace_back(made.weights[i].size(), NAN);
        step.grad_weights.emplace_back(made.weights[i].size(), NAN);
        step.grad_logits.emplace_back(made.logits[i].size(), NAN);
        grads.push_back({made.grads[i].data(), count, DType::float32});
    }
    for (size_t i = 0; i < made.weights.size(); ++i) {
        noisy.push_back({step.noisy[i].data(), arguments.weights[i].count, DType::float32});
        gradients.weights.push_back({step.grad_weights[i].data(), noisy[i].count, DType::float32});
        gradients.logits.push_back(step.grad_logits[i].data());
    }
    step.ranges.resize(static_cast<size_t>(2 * ranges));
    step.nonfinite.resize(made.weights.size());
    std::vector<int64_t> extremes(4 * made.weights.size());
    weight_range(arguments.weights, made.grouping, step.ranges.data(), extremes.data(), threads);
    arguments.ranges = step.ranges.data();
    gradients.nonfinite = step.nonfinite.data();
    add_noise(arguments, noisy);
    add_noise_backward(arguments, extremes.data(), grads, gradients);
    return step;
}

void training_step_does_not_depend_on_threads() {
    for (const int64_t group_size : {0, 1, 7, 8, 100, 3000, 20000, 100000}) {
        for (const bool per_group : {false, true}) {
            Case made = make_case({70001, 3, 0, 33, 1024, 50000}, group_size, per_group);
            const Step one = run(made, NoiseKind::gaussian, 1);
            CHECK(one == run(made, NoiseKind::gaussian, 2));
            CHECK(one == run(made, NoiseKind::gaussian, 5));
        }
    }
}

// Against the formula in double, for a range over the whole weight.
void training_step_follows_the_formula_of(Param param) {
    for (const int64_t group_size : {0, 1, 2, 4, 7, 8, 16, 1500}) {
        for (const int64_t count : kAwkwardCounts) {
            if (count < 2) continue;
            Case made = make_case({count}, group_size, false);
            made.param = param;
            const Step step = run(made, NoiseKind::uniform, 1);
            std::vector<float> z(static_cast<size_t>(count));
            fill_noise({kKey, 0, NoiseKind::uniform}, {0, count}, z.data(), 1);
            const double length = static_cast<double>(step.ranges[1]) - step.ranges[0];
            std::vector<double> sums(made.logits[0].size()), magnitudes(sums);
            double total = 0;
            for (size_t i = 0; i < z.size(); ++i) {
                const auto group = static_cast<size_t>(group_of(static_cast<int64_t>(i), group_size));
                const double s = made.step_at(made.logits[0][group]).first;
                CHECK(std::fabs(step.noisy[0][i] - (made.weights[0][i] + length * s * z[i])) < 2e-6);
                sums[group] += made.grads[0][i] * static_cast<double>(z[i]);
                magnitudes[group] += std::fabs(made.grads[0][i] * z[i]);
                total += made.grads[0][i] * s * z[i];
            }
            for (size_t group = 0; group < sums.size(); ++group) {
                const double slope = made.step_at(made.logits[0][group]).second;
                const double error = std::fabs(step.grad_logits[0][group] - length * sums[group] * slope);
                CHECK(error <= 1e-5 * length * std::fabs(slope) * magnitudes[group]);
            }
            int64_t changed = 0;
            for (size_t i = 0; i < z.size(); ++i) {
                const double extra = static_cast<double>(step.grad_weights[0][i]) - made.grads[0][i];
                changed += extra != 0;
                const double at_end = made.weights[0][i] == step.ranges[1]   ? total
                                      : made.weights[0][i] == step.ranges[0] ? -total
                                                                             : 0;
                CHECK(std::fabs(extra - at_end) < 1e-5);
            }
            CHECK(changed <= 2);
        }
    }
}

void training_step_follows_the_formula() {
    training_step_follows_the_formula_of(Param::bits);
    training_step_follows_the_formula_of(Param::noise);
}

void ties_in_a_group_share_the_gradient_of_its_range() {
    for (const int64_t group_size : {8, 20, 20000}) {
        Case made = make_case({2 * group_size}, group_size, true);
        const auto second = static_cast<size_t>(group_size);
        for (const size_t i : {size_t{1}, size_t{3}, size_t{6}}) made.weights[0][second + i] = 50;
        for (const size_t i : {size_t{0}, size_t{7}}) made.weights[0][second + i] = -50;
        const Step step = run(made, NoiseKind::uniform, 2);
        const auto extra = [&](size_t i) {
            return static_cast<double>(step.grad_weights[0][second + i]) - made.grads[0][second + i];
        };
        CHECK(extra(1) != 0 && extra(2) == 0);
        for (const size_t i : {size_t{3}, size_t{6}}) CHECK(std::fabs(extra(i) - extra(1)) < 1e-5);
        for (const size_t i : {size_t{0}, size_t{7}}) CHECK(std::fabs(extra(i) + 1.5 * extra(1)) < 1e-5);
    }
}

void ties_share_the_gradient_of_the_range() {
    Case made = make_case({50000}, 8, false);
    for (const size_t i : {size_t{5}, size_t{20000}, size_t{49999}}) made.weights[0][i] = 50;
    made.weights[0][7] = made.weights[0][30000] = -50;
    const Step step = run(made, NoiseKind::uniform, 2);
    const double at_hi = static_cast<double>(step.grad_weights[0][5]) - made.grads[0][5];
    CHECK(at_hi != 0);
    for (const size_t i : {size_t{20000}, size_t{49999}}) {
        CHECK(std::fabs(static_cast<double>(step.grad_weights[0][i]) - made.grads[0][i] - at_hi) < 1e-5);
    }
    for (const size_t i : {size_t{7}, size_t{30000}}) {
        CHECK(std::fabs(static_cast<double>(step.grad_weights[0][i]) - made.grads[0][i] + 1.5 * at_hi) <
              1e-5);
    }
    Case constant = make_case({100}, 8, false);
    std::fill(constant.weights[0].begin(), constant.weights[0].end(), 1.0f);
    const Step flat = run(constant, NoiseKind::uniform, 1);
    CHECK(flat.noisy == constant.weights);
    CHECK(flat.grad_weights == constant.grads);
}

void nonfinite_gradients_are_zeroed_and_counted() {
    for (const int64_t group_size : {8, 0, 7}) {
        Case made = make_case({64, 40}, group_size, false);
        made.grads[1][9] = NAN;
        made.grads[1][30] = INFINITY;
        const Step step = run(made, NoiseKind::uniform, 1);
        CHECK(step.nonfinite[0] == 0 && step.nonfinite[1] == (group_size == 0 ? 1 : 2));
        for (const float grad : step.grad_logits[1]) CHECK(std::isfinite(grad));
        CHECK(std::isnan(step.grad_weights[1][9]));
    }
}

void nan_weights_and_logits_pass_on() {
    for (const bool per_group : {false, true}) {
        Case made = make_case({64}, 8, per_group);
        made.weights[0][20] = NAN;
        const Step step = run(made, NoiseKind::gaussian, 1);
        CHECK(std::isnan(step.noisy[0][20]) && std::isnan(step.noisy[0][0]) != per_group);
        made = make_case({64}, 8, per_group);
        made.logits[0][1] = NAN;
        made.logits[0][2] = INFINITY;
        made.logits[0][3] = -INFINITY;
        const Step odd = run(made, NoiseKind::gaussian, 1);
        CHECK(std::isnan(odd.noisy[0][8]) && std::isfinite(odd.noisy[0][16]) &&
              std::isfinite(odd.noisy[0][24]));
    }
}

std::vector<uint16_t> halves_of(const std::vector<float>& values, DType dtype) {
    std::vector<uint16_t> halves(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
        halves[i] = dtype == DType::bfloat16 ? bfloat16_from_float(values[i]) : float16_from_float(values[i]);
    }
    return halves;
}

// float32 weights, noisy weights and gradients in half precision: as float32 ones that are rounded.
void noisy_weights_and_gradients_may_have_another_dtype() {
    for (const DType dtype : {DType::bfloat16, DType::float16}) {
        for (const int64_t count : kAwkwardCounts) {
            Case made = make_case({count}, 8, false);
            const auto upstream = halves_of(made.grads[0], dtype);
            for (size_t i = 0; i < upstream.size(); ++i) {
                made.grads[0][i] = dtype == DType::bfloat16 ? float_from_bfloat16(upstream[i])
                                                            : float_from_float16(upstream[i]);
            }
            const Step step = run(made, NoiseKind::gaussian, 1);
            const RangeAndExtremes got = range_of(made.weights[0]);
            const NoiseOptions options{made.grouping, BitsRule(Param::bits, 2, 15), NoiseKind::gaussian};
            const NoiseArguments arguments{{{made.weights[0].data(), count, DType::float32}},
                                           {made.logits[0].data()},
                                           kKey,
                                           {0},
                                           got.range,
                                           options,
                                           1};
            std::vector<uint16_t> noisy(upstream.size()), grads(upstream);
            std::vector<float> grad_weight(upstream.size(), NAN), grad_logit(made.logits[0].size(), NAN);
            float nonfinite = NAN;
            add_noise(arguments, {{noisy.data(), count, dtype}});
            const NoiseGradients gradients{
                {{grad_weight.data(), count, DType::float32}}, {grad_logit.data()}, &nonfinite};
            add_noise_backward(arguments, got.extremes, {{grads.data(), count, dtype}}, gradients);
            CHECK(noisy == halves_of(step.noisy[0], dtype));
            CHECK(grad_weight == step.grad_weights[0] && grad_logit == step.grad_logits[0]);
            CHECK(nonfinite == 0);
        }
    }
}

}  // namespace

RUN_TESTS(range_finds_first_places_and_ties, range_of_constant_infinite_and_nan_weights,
          training_step_does_not_depend_on_threads, training_step_follows_the_formula,
          ties_in_a_group_share_the_gradient_of_its_range, ties_share_the_gradient_of_the_range,
          nonfinite_gradients_are_zeroed_and_counted, nan_weights_and_logits_pass_on,
          noisy_weights_and_gradients_may_have_another_dtype)
