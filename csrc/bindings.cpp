// The core as a Python module: addresses and sizes in, results written where the caller says. Nothing is
// checked that diffq_fast/backends/cpu has checked. The GIL is released while the core works.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>

#include "core/infer/activations.h"
#include "core/infer/packed_rows.h"
#include "core/infer/row_panels.h"
#include "core/infer/unpacked_rows.h"
#include "core/pack/coding.h"
#include "core/pack/packed_levels.h"
#include "core/pack/planes.h"
#include "core/pack/quantize.h"
#include "core/pack/streams.h"
#include "core/pack/widths.h"
#include "core/runtime/block_pool.h"
#include "core/runtime/dispatch.h"
#include "core/runtime/fingerprint.h"
#include "core/runtime/thread_pool.h"
#include "core/train/add_noise.h"
#include "core/train/range.h"
#include "core/train/uniform_noise.h"
#include "core/train/weight_sizes.h"

namespace {

using namespace diffq_fast;
namespace py = pybind11;
using Address = uintptr_t;
using Addresses = std::vector<Address>;

// Lets go of the GIL while the core works. Until Python 3.13, a daemon thread that asks for it back when the
// interpreter has ended is unwound out of itself: through this destructor, which for that may throw.
class NoGil {
  public:
    NoGil() : state_(PyEval_SaveThread()) {}
    ~NoGil() noexcept(false) { PyEval_RestoreThread(state_); }
    NoGil(const NoGil&) = delete;
    NoGil& operator=(const NoGil&) = delete;

  private:
    PyThreadState* state_;
};

using Release = py::call_guard<NoGil>;

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

template <typename T>
std::vector<T*> at_all(const Addresses& addresses) {
    std::vector<T*> pointers;
    pointers.reserve(addresses.size());
    for (const Address address : addresses) pointers.push_back(at<T>(address));
    return pointers;
}

// Of each piece of memory, what look number `look` sees of it; looks are counted round and round.
std::vector<uint64_t> fingerprints(const Addresses& addresses, const std::vector<size_t>& bytes,
                                   size_t look) {
    std::vector<uint64_t> found;
    found.reserve(addresses.size());
    for (size_t i = 0; i < addresses.size(); ++i)
        found.push_back(
            fingerprint(at<unsigned char>(addresses[i]), bytes[i], look % fingerprint_looks(bytes[i])));
    return found;
}

// (addresses, counts, dtype codes) of a list of weights.
using WeightLists = std::tuple<Addresses, std::vector<int64_t>, std::vector<int>>;

std::vector<Floats> floats_of(const WeightLists& lists) {
    const auto& [addresses, counts, dtypes] = lists;
    std::vector<Floats> weights;
    weights.reserve(addresses.size());
    for (size_t i = 0; i < addresses.size(); ++i) {
        weights.push_back({at<void>(addresses[i]), counts[i], static_cast<DType>(dtypes[i])});
    }
    return weights;
}

PhiloxKey key_at(Address key) {
    return PhiloxKey::from_bits(*at<const uint64_t>(key));
}

// (group size, smallest and largest number of bits, param code, noise code, range per group)
using OptionsTuple = std::tuple<int64_t, double, double, int, int, bool>;

NoiseOptions options_of(const OptionsTuple& options) {
    const auto& [group_size, min_bits, max_bits, param, noise_kind, per_group] = options;
    return {{group_size, per_group},
            BitsRule(static_cast<Param>(param), min_bits, max_bits),
            static_cast<NoiseKind>(noise_kind)};
}

// (weights, addresses of their logits, address of the key, streams, options)
using NoiseTuple = std::tuple<WeightLists, Addresses, Address, std::vector<uint32_t>, OptionsTuple>;

NoiseArguments noise_arguments(const NoiseTuple& noise, Address ranges, int threads) {
    const auto& [weights, logits, key, streams, options] = noise;
    return {floats_of(weights),      at_all<const float>(logits), key_at(key), streams,
            at<const float>(ranges), options_of(options),         threads};
}

// (address of the key, streams, group sizes)
using UniformTuple = std::tuple<Address, std::vector<uint32_t>, std::vector<int64_t>>;

UniformNoise uniform_noise_of(const UniformTuple& noise, int threads) {
    const auto& [key, streams, group_sizes] = noise;
    return {key_at(key), streams, group_sizes, threads};
}

// (addresses of the logits, counts, group size, smallest and largest number of bits, param code, extra bits)
using LearnedBitsTuple = std::tuple<Addresses, std::vector<int64_t>, int64_t, double, double, int, double>;

LearnedBits learned_bits_of(const LearnedBitsTuple& learned, int threads) {
    const auto& [logits, counts, group_size, min_bits, max_bits, param, extra_bits] = learned;
    return {at_all<const float>(logits),
            counts,
            group_size,
            BitsRule(static_cast<Param>(param), min_bits, max_bits),
            static_cast<float>(extra_bits),
            threads};
}

// (addresses of the ranges and of the extremes)
using RangesTuple = std::tuple<Address, Address>;

// (addresses of the gradients of the weights and of the logits, and of the counts of those that are not
// finite)
using GradientsTuple = std::tuple<Addresses, Addresses, Address>;

// Gradients have their weights' counts and dtypes.
NoiseGradients gradients_of(const GradientsTuple& gradients, const std::vector<Floats>& weights) {
    const auto& [of_weights, of_logits, nonfinite] = gradients;
    NoiseGradients made{weights, at_all<float>(of_logits), at<float>(nonfinite)};
    for (size_t i = 0; i < weights.size(); ++i) made.weights[i].data = at<void>(of_weights[i]);
    return made;
}

// (address of the widths, count, group size, words)
using PackingTuple = std::tuple<Address, int64_t, int64_t, int64_t>;

Packing packing_of(const PackingTuple& packing, int threads) {
    const auto& [widths, count, group_size, words] = packing;
    return {at<const uint8_t>(widths), count, group_size, words, threads};
}

// (address, dtype code) of a weight as long as its packing says.
using WeightTuple = std::tuple<Address, int>;

Floats weight_of(const WeightTuple& weight, const PackingTuple& packing) {
    const auto& [address, dtype] = weight;
    return {at<void>(address), std::get<1>(packing), static_cast<DType>(dtype)};
}

// (width of a logit that reaches none, logits below which there is no doubt, logits that are reached)
using ThresholdsTuple = std::tuple<uint32_t, std::vector<float>, std::vector<float>>;

WidthThresholds thresholds_of(const ThresholdsTuple& thresholds) {
    const auto& [lowest, below, reached] = thresholds;
    WidthThresholds made{lowest, static_cast<int>(reached.size()), {}, {}};
    std::fill(std::begin(made.below), std::end(made.below), std::numeric_limits<float>::infinity());
    std::copy(below.begin(), below.end(), made.below);
    std::copy(reached.begin(), reached.end(), made.reached);
    return made;
}

// (origin, low bits, frequencies, whether there is an escape, bits of the blocks' number of values)
using CodeTuple = std::tuple<int32_t, int, std::vector<uint16_t>, bool, int>;

LevelCode code_of(const CodeTuple& code) {
    const auto& [origin, low_bits, frequencies, escape, block_bits] = code;
    return {origin, low_bits, frequencies, escape, block_bits};
}

// (values, planes of a block, rows, columns)
using PlanesTuple = std::tuple<int64_t, int, int, int64_t>;

PlaneShape shape_of(const PlanesTuple& planes) {
    const auto& [count, bits, rows, columns] = planes;
    return {count, bits, rows, columns};
}

void bind_runtime(py::module_& module) {
    py::class_<PooledBlock>(module, "Block", py::buffer_protocol())
        .def(py::init<int64_t>())
        .def_buffer([](PooledBlock& block) {
            return py::buffer_info(static_cast<uint8_t*>(block.data()), block.bytes());
        });
    module.attr("most_kept_bytes") = kMostKeptBytes;
    module.def("kept_bytes", kept_bytes);
    module.def("empty_cache", empty_cache, Release());
    module.def("fingerprints", fingerprints, Release());
    module.def(
        "all_fingerprints",
        [](Address address, size_t bytes, int threads) {
            return all_fingerprints(at<const unsigned char>(address), bytes, threads);
        },
        Release());
    module.def("instruction_sets", [] {  // what this machine runs, the best one last
        std::vector<std::string> names;
        for (const Kernels* each : supported_kernels()) names.emplace_back(each->name);
        return names;
    });
    module.def("instruction_set", [] { return kernels().name; });
    module.def("use_instruction_set", [](const std::string& name) { return use_kernels(name); });
    module.def("use_team", [](Address parallel) { use_team(reinterpret_cast<Team>(parallel)); });
}

void bind_training(py::module_& module) {
    module.def(
        "noise",
        [](Address key, uint32_t stream, int64_t first, int64_t count, int noise_kind, Address z,
           int threads) {
            const NoiseSource source{key_at(key), stream, static_cast<NoiseKind>(noise_kind)};
            fill_noise(source, {first, count}, at<float>(z), threads);
        },
        Release());
    module.def(
        "weight_range",
        [](const WeightLists& weights, int64_t group_size, bool per_group, Address ranges, Address extremes,
           int threads) {
            weight_range(floats_of(weights), {group_size, per_group}, at<float>(ranges),
                         at<int64_t>(extremes), threads);
        },
        Release());
    module.def(
        "add_noise",
        [](const NoiseTuple& noise, const RangesTuple& places, const WeightLists& noisy, int threads) {
            const auto& [ranges, extremes] = places;
            const NoiseArguments arguments = noise_arguments(noise, ranges, threads);
            weight_range(arguments.weights, arguments.options.grouping, at<float>(ranges),
                         at<int64_t>(extremes), threads);
            add_noise(arguments, floats_of(noisy));
        },
        Release());
    module.def(
        "add_noise_backward",
        [](const NoiseTuple& noise, const RangesTuple& places, const WeightLists& grads,
           const GradientsTuple& gradients, int threads) {
            const auto& [ranges, extremes] = places;
            const NoiseArguments arguments = noise_arguments(noise, ranges, threads);
            add_noise_backward(arguments, at<const int64_t>(extremes), floats_of(grads),
                               gradients_of(gradients, arguments.weights));
        },
        Release());
}

void bind_uniform_noise(py::module_& module) {
    module.def(
        "add_uniform_noise",
        [](const UniformTuple& noise, const WeightLists& weights, const Addresses& steps,
           const WeightLists& noisy, int threads) {
            add_uniform_noise(uniform_noise_of(noise, threads), floats_of(weights),
                              at_all<const float>(steps), floats_of(noisy));
        },
        Release());
    module.def(
        "add_uniform_noise_backward",
        [](const UniformTuple& noise, const WeightLists& grads, const Addresses& grad_steps, int threads) {
            add_uniform_noise_backward(uniform_noise_of(noise, threads), floats_of(grads),
                                       at_all<float>(grad_steps));
        },
        Release());
}

void bind_sizes(py::module_& module) {
    module.def(
        "weight_sizes",
        [](const LearnedBitsTuple& learned, Address sizes, int threads) {
            weight_sizes(learned_bits_of(learned, threads), at<float>(sizes));
        },
        Release());
    module.def(
        "weight_sizes_backward",
        [](const LearnedBitsTuple& learned, Address grads, const Addresses& grad_logits, int threads) {
            weight_sizes_backward(learned_bits_of(learned, threads), at<const float>(grads),
                                  at_all<float>(grad_logits));
        },
        Release());
}

void bind_quantizing(py::module_& module) {
    module.def(
        "quantize",
        [](const WeightLists& weights, const Addresses& widths, Address ranges, int64_t group_size,
           bool per_group, const Addresses& levels, int threads) {
            quantize(floats_of(weights),
                     {at_all<const uint8_t>(widths), at<const float>(ranges), {group_size, per_group}},
                     at_all<uint32_t>(levels), threads);
        },
        Release());
    module.def(
        "dequantize",
        [](const Addresses& levels, const Addresses& widths, Address ranges, int64_t group_size,
           bool per_group, const WeightLists& weights, int threads) {
            dequantize(at_all<const uint32_t>(levels),
                       {at_all<const uint8_t>(widths), at<const float>(ranges), {group_size, per_group}},
                       floats_of(weights), threads);
        },
        Release());
    module.def(
        "fake_quantize",
        [](const WeightLists& weights, const Addresses& widths, Address ranges, int64_t group_size,
           bool per_group, const WeightLists& results, int threads) {
            fake_quantize(floats_of(weights),
                          {at_all<const uint8_t>(widths), at<const float>(ranges), {group_size, per_group}},
                          floats_of(results), threads);
        },
        Release());
    module.def(
        "find_widths",
        [](const ThresholdsTuple& thresholds, Address logits, int64_t count, Address widths, Address doubts,
           int threads) {
            find_widths(thresholds_of(thresholds), at<const float>(logits), count, at<uint8_t>(widths),
                        at<uint8_t>(doubts), threads);
        },
        Release());
    module.def(
        "count_widths",
        [](Address widths, int64_t groups, Address counts, int threads) {
            count_widths(at<const uint8_t>(widths), groups, at<int64_t>(counts), threads);
        },
        Release());
}

void bind_packing(py::module_& module) {
    module.def(
        "pack",
        [](const PackingTuple& packing, Address levels, Address words, int threads) {
            return pack(packing_of(packing, threads), at<const uint32_t>(levels), at<uint32_t>(words));
        },
        Release());
    module.def(
        "unpack",
        [](const PackingTuple& packing, Address words, Address levels, int threads) {
            return unpack(packing_of(packing, threads), at<const uint32_t>(words), at<uint32_t>(levels));
        },
        Release());
    module.def(
        "quantize_pack",
        [](const PackingTuple& packing, const WeightTuple& weight, Address ranges, bool per_group,
           Address words, int threads) {
            return quantize_pack(packing_of(packing, threads), weight_of(weight, packing),
                                 at<const float>(ranges), per_group, at<uint32_t>(words));
        },
        Release());
    module.def(
        "quantize_planes",
        [](const PackingTuple& packing, const WeightTuple& weight, Address range,
           const std::vector<int64_t>& level_counts, const Addresses& planes, int threads) {
            return quantize_planes(packing_of(packing, threads), weight_of(weight, packing),
                                   at<const float>(range), level_counts, at_all<void>(planes));
        },
        Release());
    module.def(
        "unpack_dequantize",
        [](const PackingTuple& packing, Address words, Address ranges, bool per_group,
           const WeightTuple& weight, int threads) {
            return unpack_dequantize(packing_of(packing, threads), at<const uint32_t>(words),
                                     at<const float>(ranges), per_group, weight_of(weight, packing));
        },
        Release());
    module.def(
        "pack_planes",
        [](const PlanesTuple& shape, Address values, int value_bytes, Address planes, int threads) {
            return pack_planes(shape_of(shape), at<const void>(values), value_bytes, at<void>(planes),
                               threads);
        },
        Release());
    module.def(
        "unpack_planes",
        [](const PlanesTuple& shape, Address planes, Address values, int threads) {
            unpack_planes(shape_of(shape), at<const void>(planes), at<int16_t>(values), threads);
        },
        Release());
}

// Both give what is wrong, or nothing.
void bind_coding(py::module_& module) {
    module.def("encode_levels", [](const CodeTuple& code, Address levels, int64_t count, int threads) {
        std::vector<uint16_t> words;
        const char* problem = nullptr;
        {
            const NoGil released;
            problem = encode_levels(at<const int32_t>(levels), count, code_of(code), threads, words);
        }
        const auto* const bytes = reinterpret_cast<const char*>(words.data());
        return py::make_tuple(problem, py::bytearray(bytes, 2 * words.size()));
    });
    module.def(
        "decode_levels",
        [](Address words, int64_t word_count, int64_t count, Address levels, int threads) {
            return decode_levels(at<const uint16_t>(words), word_count, count, at<int32_t>(levels), threads);
        },
        Release());
}

// Addresses of the data, the rows' starts, widths, scales and offsets; bytes, rows; columns, segment, group
// size, whether levels are centred, level count.
using RowsTuple = std::tuple<Address, Address, Address, Address, Address, int64_t, int64_t>;
using RowFormTuple = std::tuple<int64_t, int64_t, int64_t, bool, int64_t>;

PackedRows rows_of(const RowsTuple& rows, const RowFormTuple& form) {
    const auto& [data, starts, widths, scales, offsets, bytes, count] = rows;
    const auto& [columns, segment, group_size, centred, level_count] = form;
    return {at<const uint8_t>(data),
            bytes,
            at<const uint32_t>(starts),
            at<const uint8_t>(widths),
            at<const float>(scales),
            at<const float>(offsets),
            count,
            columns,
            segment,
            group_size,
            {centred, level_count}};
}

// False where rows do not lie in their data.
void bind_inference(py::module_& module) {
    module.def(
        "multiply_rows",
        [](const RowsTuple& rows, const RowFormTuple& form, Address vectors, int64_t count, bool int8,
           Address results, int threads) {
            const Activations activations = int8 ? Activations::int8 : Activations::exact;
            return multiply_rows(rows_of(rows, form), at<const float>(vectors), count, activations,
                                 at<float>(results), threads);
        },
        Release());
    module.def(
        "pack_rows",
        [](Address levels, Address widths, Address starts, int64_t rows, int64_t columns, int64_t segment,
           Address data, int64_t bytes, int threads) -> const char* {
            const RowsOfLevels given{at<const int32_t>(levels),
                                     at<const uint8_t>(widths),
                                     at<const uint32_t>(starts),
                                     rows,
                                     columns,
                                     segment};
            switch (pack_rows(given, at<uint8_t>(data), bytes, threads)) {
                case RowsProblem::none:
                    break;
                case RowsProblem::width:
                    return "widths must be between 1 and 16";
                case RowsProblem::level:
                    return "levels must be from 0 to 2**width - 1";
                case RowsProblem::outside:
                    return "a row does not lie in its data";
            }
            return "";
        },
        Release());
    // Where rows and machine are such that it is faster than multiplying floats.
    module.def(
        "has_panels",
        [](const RowsTuple& rows, const RowFormTuple& form) {
            const PackedRows given = rows_of(rows, form);
            return fit_panels(given) && are_panels_fast(given);
        },
        Release());
    module.def(
        "multiply_panels",
        [](const RowsTuple& rows, const RowFormTuple& form, Address vectors, int64_t count, Address bias,
           Address results, int threads) {
            return multiply_panels(rows_of(rows, form), at<const float>(vectors), count,
                                   at<const float>(bias), at<float>(results), threads);
        },
        Release());
    module.def("has_float_products", &has_float_products);
    module.def(
        "multiply_unpacked",
        [](const RowsTuple& rows, const RowFormTuple& form, Address vectors, int64_t count, Address results,
           int threads) {
            return multiply_unpacked(rows_of(rows, form), at<const float>(vectors), count, at<float>(results),
                                     threads);
        },
        Release());
    module.def(
        "round_activations",
        [](Address vectors, int64_t count, int64_t columns, Address rounded, int threads) {
            round_activations(at<const float>(vectors), count, columns, at<float>(rounded), threads);
        },
        Release());
    module.def(
        "unpack_rows",
        [](const RowsTuple& rows, const RowFormTuple& form, Address indices, int64_t count, Address values,
           int threads) {
            return unpack_rows(rows_of(rows, form), at<const int64_t>(indices), count, at<float>(values),
                               threads);
        },
        Release());
}

}  // namespace

PYBIND11_MODULE(_core, module, py::mod_gil_not_used()) {
    module.doc() = "diffq_fast's compiled core; diffq_fast.backends.cpu is its only user";
    bind_runtime(module);
    bind_training(module);
    bind_uniform_noise(module);
    bind_sizes(module);
    bind_quantizing(module);
    bind_packing(module);
    bind_coding(module);
    bind_inference(module);
}
