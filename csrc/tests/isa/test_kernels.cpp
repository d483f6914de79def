// Every instruction set that this machine runs against the scalar kernels, called directly.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/pack/quantize.h"
#include "core/runtime/dispatch.h"
#include "tests/check.h"

using namespace diffq_fast;

namespace {

constexpr int64_t kSlack = 8;  // floats behind a result, which must stay as they are
constexpr int64_t kGroupSizes[] = {1, 2, 4, 8, 16};

// Room for `count` items and a margin, all bytes 0xA5.
template <typename Item>
std::vector<Item> fresh(int64_t count) {
    std::vector<Item> room(static_cast<size_t>(count + kSlack));
    std::memset(room.data(), 0xA5, room.size() * sizeof(Item));
    return room;
}

template <typename Item>
bool same_bits(const std::vector<Item>& a, const std::vector<Item>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(Item)) == 0;
}

// `run(kernels, result)` must leave the same bits in `count` items, and nothing behind them, on every
// instruction set.
template <typename Item, typename Run>
void check_same(int64_t count, Run&& run) {
    auto expected = fresh<Item>(count);
    run(*scalar_kernels(), expected.data());
    for (const Kernels* kernels : supported_kernels()) {
        auto got = fresh<Item>(count);
        run(*kernels, got.data());
        CHECK(same_bits(got, expected));
        if (!same_bits(got, expected))
            std::printf("  in %s, count %lld\n", kernels->name, static_cast<long long>(count));
    }
}

std::vector<float> odd_floats(int64_t count) {
    auto values = random_floats(count, 5);
    const float odd[] = {NAN,   INFINITY, -INFINITY, -0.0f, 0.0f,     1e-45f,
                         3e38f, -3e38f,   1e-30f,    -NAN,  65520.0f, 2e-7f};
    for (size_t i = 0; i < values.size(); i += 5) values[i] = odd[i / 5 % 12];
    return values;
}

// Runs that begin with a Philox call and runs that do not; the second and third let counter words wrap.
std::vector<NoiseRun> noise_runs(NoiseKind noise_kind) {
    std::vector<NoiseRun> runs;
    for (const int64_t begin : {int64_t{0}, (int64_t{1} << 35) - 24, (int64_t{1} << 62) - 64, int64_t{13}}) {
        for (int64_t count : kAwkwardCounts) {
            if (count <= kBlock) runs.push_back({{{1, 2}, 0xFFFFFFFF, noise_kind}, {begin, count}});
        }
    }
    return runs;
}

void uniform_noise_is_the_same() {
    for (const NoiseRun& run : noise_runs(NoiseKind::uniform)) {
        check_same<float>(run.span.count,
                          [&](const Kernels& kernels, float* z) { kernels.make_noise(run, z); });
    }
}

void gaussian_noise_is_nearly_the_same() {
    for (const NoiseRun& run : noise_runs(NoiseKind::gaussian)) {
        auto expected = fresh<float>(run.span.count);
        scalar_kernels()->make_noise(run, expected.data());
        for (const Kernels* kernels : supported_kernels()) {
            auto got = fresh<float>(run.span.count);
            kernels->make_noise(run, got.data());
            for (size_t i = 0; i < static_cast<size_t>(run.span.count); ++i)
                CHECK(std::fabs(got[i] - expected[i]) <= 2e-6f);
            CHECK(std::memcmp(&got[static_cast<size_t>(run.span.count)],
                              &expected[static_cast<size_t>(run.span.count)], kSlack * sizeof(float)) == 0);
        }
    }
}

void steps_and_logit_gradients_are_the_same() {
    for (const int64_t count : kAwkwardCounts) {
        const auto logits = odd_floats(count), sums = random_floats(count, 2),
                   lengths = random_floats(count, 3);
        for (const Param param : {Param::bits, Param::noise}) {
            const BitsRule rule(param, 2, 15);
            check_same<float>(count, [&](const Kernels& kernels, float* steps) {
                kernels.make_steps(logits.data(), count, rule, steps);
            });
            for (const float* each : {static_cast<const float*>(nullptr), lengths.data()}) {
                const auto run = [&](const Kernels& kernels, float* result) {
                    return kernels.make_logit_gradients({logits.data(), sums.data(), each, 0.7f, count}, rule,
                                                        result, result + count);
                };
                check_same<float>(2 * count, run);
                std::vector<float> room(static_cast<size_t>(2 * count));
                const int64_t nonfinite = run(*scalar_kernels(), room.data());
                for (const Kernels* kernels : supported_kernels())
                    CHECK(run(*kernels, room.data()) == nonfinite);
                if (count > 5) CHECK(nonfinite > 0);
            }
        }
    }
}

// Bits and their slope, in double.
struct ExactBits {
    double bits, slope;

    ExactBits(double logit, const BitsRule& rule) {
        const double t = 1 / (1 + std::exp(-logit)), t_slope = t * (1 - t);
        const double log_step = t * rule.log_smallest + (1 - t) * rule.log_largest;
        const bool direct = rule.param == Param::bits;
        bits = direct ? rule.max_bits * t + (1 - t) * rule.min_bits : std::log2(1 + std::exp(-log_step));
        slope = t_slope *
                (direct ? rule.max_bits - rule.min_bits
                        : (rule.log_largest - rule.log_smallest) / std::log(2.0) / (1 + std::exp(log_step)));
    }
};

void sums_of_bits_are_nearly_exact() {
    for (const int64_t count : kAwkwardCounts) {
        auto logits = random_floats(count, 5);
        for (float& logit : logits) logit *= 9;
        for (const Param param : {Param::bits, Param::noise}) {
            const BitsRule rule(param, 2, 15);
            double sum = 0, lo = 15, hi = 2;
            for (const float logit : logits) {
                const double bits = ExactBits(logit, rule).bits;
                sum += bits, lo = std::min(lo, bits), hi = std::max(hi, bits);
            }
            for (const Kernels* kernels : supported_kernels()) {
                const BitSums got = kernels->sum_bits(logits.data(), count, rule);
                CHECK(std::fabs(got.sum - sum) <= 1e-6 * sum && !got.range.nan);
                if (count == 0) continue;
                CHECK(std::fabs(got.range.lo - lo) < 1e-5 && std::fabs(got.range.hi - hi) < 1e-5);
            }
        }
    }
}

void gradients_of_bits_are_nearly_exact() {
    constexpr double kOfOneMinus = 13 * 0.7 * 1.2e-7;  // of 1 - t, where t is as near to 1 as two roundings
    for (const int64_t count : kAwkwardCounts) {
        auto logits = random_floats(count, 5);
        for (float& logit : logits) logit *= 9;
        for (const Param param : {Param::bits, Param::noise}) {
            const BitsRule rule(param, 2, 15);
            for (const Kernels* kernels : supported_kernels()) {
                for (const bool past_cache : {false, true}) {
                    auto got = fresh<float>(count), untouched = fresh<float>(count);
                    kernels->make_bit_gradients(logits.data(), count, rule, 0.7f, past_cache, got.data());
                    kernels->finish_writes();
                    for (size_t i = 0; i < logits.size(); ++i) {
                        const double exact = static_cast<double>(0.7f) * ExactBits(logits[i], rule).slope;
                        CHECK(std::fabs(static_cast<double>(got[i]) - exact) <= 5e-6 * exact + kOfOneMinus);
                    }
                    CHECK(std::memcmp(&got[logits.size()], &untouched[logits.size()],
                                      kSlack * sizeof(float)) == 0);
                }
            }
        }
    }
}

void nan_logits_are_seen() {
    for (const int64_t count : {1, 15, 16, 17, 64, 200}) {
        const BitsRule rule(Param::bits, 2, 15);
        const auto logits = odd_floats(count);  // the first one is NaN
        for (const Kernels* kernels : supported_kernels()) {
            CHECK(kernels->sum_bits(logits.data(), count, rule).range.nan);
            CHECK(count < 3 || !kernels->sum_bits(logits.data() + 1, 2, rule).range.nan);
            auto got = fresh<float>(count);
            kernels->make_bit_gradients(logits.data(), count, rule, 0.7f, false, got.data());
            for (size_t i = 0; i < logits.size(); ++i)
                CHECK(std::isnan(got[i]) == std::isnan(logits[i]) && !std::isinf(got[i]));
        }
    }
}

void activations_are_rounded_the_same() {
    for (const int64_t count : {1, 7, 8, 9, 63, 64}) {
        for (const float size : {0.0f, 1e-40f, 1.0f, 1e37f, INFINITY}) {
            auto values = random_floats(count, 3);
            for (float& value : values) value *= size;
            std::vector<float> units;
            check_same<int8_t>(count, [&](const Kernels& kernels, int8_t* whole) {
                units.push_back(kernels.round_block(values.data(), count, whole));
            });
            for (const float unit : units) CHECK(std::memcmp(&unit, &units[0], sizeof unit) == 0);
        }
    }
}

// Values that times 127 over the largest one lie at halves, or as near as floats do, and the floats beside
// them: one division, one product and the rounding of it to even.
void activations_at_halves_are_rounded_the_same() {
    for (const float most : {127.0f, 127 * 0x1p-30f, 1.0f, 0.7f, 1.3f, 0x1.555554p-1f}) {
        for (int first = -126; first < 126; first += 63) {
            for (const float beyond : {0.0f, INFINITY, -INFINITY}) {
                std::vector<float> values{most};
                for (int k = first; k < first + 63; ++k) {
                    const auto half = static_cast<float>((k + 0.5) * most / 127);
                    values.push_back(beyond == 0 ? half : std::nextafter(half, beyond));
                }
                const float inverse = 127 / most;
                check_same<int8_t>(kBlockColumns, [&](const Kernels& kernels, int8_t* whole) {
                    CHECK(kernels.round_block(values.data(), kBlockColumns, whole) == most / 127);
                    for (size_t i = 0; i < values.size(); ++i)
                        CHECK(static_cast<float>(whole[i]) == std::nearbyint(values[i] * inverse));
                });
            }
        }
    }
}

void noisy_weights_and_products_are_the_same() {
    for (NoiseRun run : noise_runs(NoiseKind::uniform)) {
        const auto values = random_floats(run.span.count, 1),
                   amplitudes = random_floats(run.span.count + kReadBehind, 3);
        for (const bool past_cache : {false, true}) {
            for (const int64_t size : {0, 1, 2, 3, 4, 8, 16, 24, 128}) {
                NoiseRun whole = run;
                if (size > 1) whole.span.count = run.span.begin % 8 == 0 ? run.span.count / size * size : 0;
                check_same<float>(whole.span.count, [&](const Kernels& kernels, float* out) {
                    kernels.add_noise(whole, values.data(), amplitudes.data(), size, past_cache, out);
                });
            }
            check_same<float>(2 * run.span.count, [&](const Kernels& kernels, float* out) {
                kernels.multiply_noise(run, values.data(), past_cache, out, out + run.span.count);
            });
        }
    }
}

void sums_are_the_same() {
    for (const int64_t count : kAwkwardCounts) {
        const auto a = random_floats(count, 1), b = random_floats(count, 2);
        for (const int64_t size : kGroupSizes) {
            check_same<float>(count / size, [&](const Kernels& kernels, float* sums) {
                kernels.sum_groups(a.data(), count / size, size, sums);
            });
        }
        check_same<double>(2, [&](const Kernels& kernels, double* sums) {
            sums[0] = kernels.sum(a.data(), count);
            sums[1] = kernels.dot(a.data(), b.data(), count);
        });
    }
}

void ranges_are_the_same() {
    for (const int64_t count : kAwkwardCounts) {
        for (int64_t place = -1; place < count; place += count / 7 + 1) {
            auto values = random_floats(count, 6);
            if (place >= 0) values[static_cast<size_t>(place)] = place % 2 ? NAN : INFINITY;
            const Range expected = scalar_kernels()->find_range(values.data(), count);
            for (const Kernels* kernels : supported_kernels()) {
                const Range got = kernels->find_range(values.data(), count);
                CHECK(got.lo == expected.lo && got.hi == expected.hi && got.nan == expected.nan);
            }
        }
    }
}

void halves_are_the_same() {
    std::vector<uint16_t> every(65536);
    for (size_t i = 0; i < every.size(); ++i) every[i] = static_cast<uint16_t>(i);
    for (const DType dtype : {DType::bfloat16, DType::float16}) {
        check_same<float>(65536, [&](const Kernels& kernels, float* values) {
            kernels.floats_from_halves(every.data(), dtype, 65536, values);
        });
        for (const int64_t count : kAwkwardCounts) {
            const auto values = odd_floats(count);
            check_same<uint16_t>(count, [&](const Kernels& kernels, uint16_t* halves) {
                kernels.halves_from_floats(values.data(), dtype, count, halves);
            });
        }
    }
}

// Rules with one value or a value per element; ranges of every magnitude.
void levels_are_the_same() {
    for (const int64_t count : {0, 1, 15, 16, 17, 1000}) {
        const auto size = static_cast<size_t>(count);
        std::vector<float> los(size), lengths(size), steps(size), inverses(size), tops(size);
        for (size_t i = 0; i < size; ++i) {
            const float range[2] = {static_cast<float>(i % 7) - 5, static_cast<float>(i % 5) - 2};
            const LevelGrid grid = level_grid(range, static_cast<uint8_t>(1 + i % kMaxWidth));
            los[i] = grid.lo, lengths[i] = grid.length, steps[i] = grid.step;
            inverses[i] = grid.inverse, tops[i] = grid.top;
        }
        for (int width = 1; width <= kMaxWidth; ++width) {
            for (const float magnitude :
                 {1.0f, 0.37f, 1e-3f, 1e10f, 1e-20f, 1e-42f, 3e38f, 0.0f, -1.0f, NAN}) {
                const float range[2] = {magnitude < 0 ? -0.0f : -1.7f * magnitude,
                                        2.1f * magnitude};  // a lo of -0, too
                auto weights = random_floats(count, static_cast<uint32_t>(width));
                for (float& weight : weights) weight *= magnitude;
                const auto odd = odd_floats(count);
                for (size_t i = 0; i < size; i += 3) weights[i] = odd[i];
                for (int form = 0; form < 4; ++form) {
                    LevelGrid grid = level_grid(range, static_cast<uint8_t>(width));
                    if (form & 1) grid.los = los.data(), grid.lengths = lengths.data();
                    if (form & 2)
                        grid.steps = steps.data(), grid.inverses = inverses.data(), grid.tops = tops.data();
                    std::vector<uint32_t> levels(size);
                    scalar_kernels()->quantize(weights.data(), count, grid, levels.data());
                    check_same<uint32_t>(count, [&](const Kernels& kernels, uint32_t* result) {
                        kernels.quantize(weights.data(), count, grid, result);
                    });
                    check_same<float>(count, [&](const Kernels& kernels, float* result) {
                        kernels.dequantize(levels.data(), count, grid, form % 2 == 0, result);
                    });
                }
            }
        }
    }
}

// Division by multiplication: every quotient of two dense sets, at and beside the rounding boundaries of
// levels.
void levels_beside_boundaries_are_the_same() {
    std::mt19937 generator(9);
    std::uniform_real_distribution<float> random(-3, 3);
    for (int round = 0; round < 200; ++round) {
        float range[2] = {random(generator), random(generator)};
        if (range[0] > range[1]) std::swap(range[0], range[1]);
        const auto width = static_cast<uint8_t>(1 + round % 16);
        const LevelGrid grid = level_grid(range, width);
        std::vector<float> weights;
        const int top = static_cast<int>(grid.top);
        for (int level = 0; level < top; level += 1 + top / 300) {
            float weight = ((static_cast<float>(level) + 0.5f) * grid.step) * grid.length + grid.lo;
            for (int i = 0; i < 4; ++i) weight = std::nextafter(weight, range[0]);
            for (int i = 0; i < 9; ++i) weights.push_back(weight = std::nextafter(weight, range[1]));
        }
        const auto count = static_cast<int64_t>(weights.size());
        check_same<uint32_t>(count, [&](const Kernels& kernels, uint32_t* result) {
            kernels.quantize(weights.data(), count, grid, result);
        });
    }
}

void widths_and_doubts_are_the_same() {
    const float below[] = {-INFINITY, -1.0f, 0.4999f, 2.0f}, reached[] = {-3.0f, -0.9f, 0.5f, INFINITY};
    for (const int64_t count : kAwkwardCounts) {
        const int64_t windows = (count + kWidthWindow - 1) / kWidthWindow;
        for (const int number : {0, 1, 4}) {
            WidthThresholds thresholds{3, number, {}, {}};
            std::fill(std::begin(thresholds.below), std::end(thresholds.below), INFINITY);
            std::copy_n(below, number, thresholds.below);
            std::copy_n(reached, number, thresholds.reached);
            for (const bool odd : {false, true}) {
                auto logits = odd ? odd_floats(count) : random_floats(count, 11);
                for (size_t i = 0; i < logits.size(); i += 90) logits[i] = below[i / 90 % 4];
                const auto run = [&](const Kernels& kernels, uint8_t* result) {
                    kernels.find_widths(thresholds, logits.data(), count, result, result + count);
                };
                check_same<uint8_t>(count + windows, run);
                std::vector<uint8_t> made(static_cast<size_t>(count + windows));
                run(*scalar_kernels(), made.data());
                std::vector<uint8_t> doubts(static_cast<size_t>(windows));
                for (int64_t i = 0; i < count; ++i) {
                    const float logit = logits[static_cast<size_t>(i)];
                    int width = 3;
                    bool doubt = !std::isfinite(logit);
                    for (int k = 0; k < number; ++k) {
                        width += logit >= reached[k];
                        doubt |= logit >= below[k] && !(logit >= reached[k]);
                    }
                    CHECK(made[static_cast<size_t>(i)] == width);
                    if (doubt) doubts[static_cast<size_t>(i / kWidthWindow)] = 1;
                }
                CHECK(std::equal(doubts.begin(), doubts.end(), made.begin() + count));
            }
        }
    }
}

void words_are_the_same() {
    std::mt19937 generator(4);
    for (int width = 1; width <= kMaxWidth; ++width) {
        for (const int64_t lanes : {1, 2, 5, 31, 32}) {
            std::vector<uint32_t> levels(static_cast<size_t>(32 * lanes));
            for (uint32_t& level : levels) level = generator();
            check_same<uint32_t>(width * lanes, [&](const Kernels& kernels, uint32_t* words) {
                kernels.pack_words(width, levels.data(), lanes, words);
            });
            check_same<uint32_t>(32 * lanes, [&](const Kernels& kernels, uint32_t* result) {
                kernels.unpack_words(width, levels.data(), lanes, result);
            });
        }
    }
}

void rows_of_coded_levels_are_the_same() {
    std::mt19937 generator(9);
    std::vector<uint32_t> slots;
    for (uint32_t symbol = 0; symbol < 64; ++symbol) {
        const uint32_t frequency = symbol == 63 ? kSlots - static_cast<uint32_t>(slots.size()) : 1 + symbol;
        for (uint32_t i = 0; i < frequency; ++i) slots.push_back(symbol << 24 | frequency << 12 | i);
    }
    std::vector<uint16_t> words(static_cast<size_t>((kCodedRows + 1) * kCodedLanes + kCodedReadAhead));
    for (uint16_t& word : words) word = static_cast<uint16_t>(generator());
    std::vector<uint32_t> begin(kCodedLanes);
    for (uint32_t& state : begin) state = generator() | kLowestState;
    for (const CodedSlots code : {CodedSlots{slots.data(), -7, 0, kNoSymbol},
                                  CodedSlots{slots.data(), 100, 5, 6}, CodedSlots{slots.data(), 0, 0, 63}}) {
        for (const int64_t rows : {1, 2, 7, 31, 32}) {
            std::vector<uint32_t> expected(begin);
            std::vector<int32_t> room(static_cast<size_t>(rows * kCodedLanes));
            uint32_t rows_seen = 7;
            const uint16_t* const behind = scalar_kernels()->decode_rows(code, expected.data(), words.data(),
                                                                         rows, room.data(), &rows_seen);
            const int32_t marker = code.origin + static_cast<int32_t>(code.escape << code.low_bits);
            for (int64_t row = 0; row < kCodedRows; ++row) {
                const auto first = room.begin() + std::min(row, rows) * kCodedLanes;
                const auto last = row < rows ? first + kCodedLanes : first;
                CHECK((rows_seen >> row & 1) == (std::find(first, last, marker) == last ? 0 : 1));
            }
            check_same<int32_t>(rows * kCodedLanes, [&](const Kernels& kernels, int32_t* levels) {
                std::vector<uint32_t> states(begin);
                uint32_t escaped = 7;
                CHECK(kernels.decode_rows(code, states.data(), words.data(), rows, levels, &escaped) ==
                      behind);
                CHECK(states == expected && escaped == rows_seen);
            });
        }
    }
}

void planes_are_the_same() {
    std::mt19937 generator(8);
    std::vector<uint64_t> source(4096);
    for (uint64_t& value : source) value = generator() | static_cast<uint64_t>(generator()) << 32;
    for (const int rows : {8, 16, 32, 64}) {
        for (const int64_t columns : {1, 5, 31, 32}) {
            for (int bits = 1; bits <= 16; ++bits) {
                for (const int64_t missing : {int64_t{0}, int64_t{1}, columns, rows * columns / 2 + 1}) {
                    const PlaneTile tile{rows * columns - missing, bits, rows, columns, 0, 0, columns};
                    const int64_t bytes = bits * columns * rows / 8;
                    for (const int value_bytes : {1, 2, 4, 8}) {
                        std::vector<uint8_t> room(static_cast<size_t>(bytes));
                        const uint64_t seen =
                            scalar_kernels()->pack_planes(tile, source.data(), value_bytes, room.data());
                        check_same<uint8_t>(bytes, [&](const Kernels& kernels, uint8_t* words) {
                            CHECK(kernels.pack_planes(tile, source.data(), value_bytes, words) == seen);
                        });
                    }
                    check_same<int16_t>(tile.count, [&](const Kernels& kernels, int16_t* values) {
                        kernels.unpack_planes(tile, source.data(), values);
                    });
                }
            }
        }
    }
}

void only_supported_kernels_can_be_used() {
    CHECK(!use_kernels("") && !use_kernels("sse9"));
    for (const Kernels* each : supported_kernels()) {
        CHECK(use_kernels(each->name) && &kernels() == each);
        std::printf("tested: %s\n", each->name);
    }
}

}  // namespace

RUN_TESTS(activations_are_rounded_the_same, activations_at_halves_are_rounded_the_same,
          uniform_noise_is_the_same, gaussian_noise_is_nearly_the_same,
          steps_and_logit_gradients_are_the_same, sums_of_bits_are_nearly_exact,
          gradients_of_bits_are_nearly_exact, nan_logits_are_seen, noisy_weights_and_products_are_the_same,
          sums_are_the_same, ranges_are_the_same, halves_are_the_same, levels_are_the_same,
          levels_beside_boundaries_are_the_same, widths_and_doubts_are_the_same, words_are_the_same,
          rows_of_coded_levels_are_the_same, planes_are_the_same, only_supported_kernels_can_be_used)
