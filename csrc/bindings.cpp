// The core as a Python module: addresses and sizes in, results written where the caller says. Nothing is
// checked that diffq_fast/backends/cpu has checked. The GIL is released while the core works.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>

#include "core/pack/packed_levels.h"
#include "core/pack/planes.h"
#include "core/pack/quantize.h"
#include "core/pack/streams.h"
#include "core/pack/widths.h"
#include "core/runtime/block_pool.h"
#include "core/runtime/dispatch.h"
#include "core/runtime/thread_pool.h"
#include "core/train/add_noise.h"
#include "core/train/range.h"

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
using Options = std::tuple<int64_t, double, double, int, int, bool>;

NoiseArguments noise_arguments(const WeightLists& weights, const Addresses& logits, Address key,
                               const std::vector<uint32_t>& streams, const float* range,
                               const Options& options, int threads) {
    const auto& [group_size, min_bits, max_bits, param, kind, per_group] = options;
    return {floats_of(weights),
            at_all<const float>(logits),
            streams,
            range,
            key_at(key),
            static_cast<NoiseKind>(kind),
            BitsRule(static_cast<Param>(param), min_bits, max_bits),
            group_size,
            per_group,
            threads};
}

// (address of the widths, count, group size, words)
using PackingTuple = std::tuple<Address, int64_t, int64_t, int64_t>;

Packing packing_of(const PackingTuple& packing, int threads) {
    const auto& [widths, count, group_size, words] = packing;
    return {at<const uint8_t>(widths), count, group_size, words, threads};
}

WidthSteps width_steps(uint32_t lowest, const std::vector<float>& below, const std::vector<float>& from) {
    WidthSteps steps{lowest, static_cast<int>(from.size()), {}, {}};
    std::fill(std::begin(steps.below), std::end(steps.below), std::numeric_limits<float>::infinity());
    std::copy(below.begin(), below.end(), steps.below);
    std::copy(from.begin(), from.end(), steps.from);
    return steps;
}

}  // namespace

PYBIND11_MODULE(_core, module, py::mod_gil_not_used()) {
    module.doc() = "diffq_fast's compiled core; diffq_fast.backends.cpu is its only user";
    py::class_<PooledBlock>(module, "Block", py::buffer_protocol())
        .def(py::init<int64_t>())
        .def_buffer([](PooledBlock& block) {
            return py::buffer_info(static_cast<uint8_t*>(block.data()), block.bytes());
        });
    module.def("kept_bytes", kept_bytes);
    module.def("instruction_sets", [] {  // what this machine runs, the best one last
        std::vector<std::string> names;
        for (const Kernels* each : supported_kernels()) names.emplace_back(each->name);
        return names;
    });
    module.def("instruction_set", [] { return kernels().name; });
    module.def("use_team", [](Address parallel) { use_team(reinterpret_cast<Team>(parallel)); });
    module.def("use_instruction_set", [](const std::string& name) { return use_kernels(name); });
    module.def(
        "noise",
        [](Address key, uint32_t stream, int64_t first, int64_t count, int kind, Address out, int threads) {
            fill_noise(key_at(key), stream, first, count, static_cast<NoiseKind>(kind), at<float>(out),
                       threads);
        },
        Release());
    module.def(
        "weight_range",
        [](const WeightLists& weights, int64_t group_size, bool per_group, Address range, Address extremes,
           int threads) {
            weight_range(floats_of(weights), group_size, per_group, at<float>(range), at<int64_t>(extremes),
                         threads);
        },
        Release());
    module.def(
        "add_noise",
        [](const WeightLists& weights, const Addresses& logits, Address key,
           const std::vector<uint32_t>& streams, const Options& options, const WeightLists& noisy,
           Address range, Address extremes, int threads) {
            const auto arguments =
                noise_arguments(weights, logits, key, streams, at<const float>(range), options, threads);
            weight_range(arguments.weights, arguments.group_size, arguments.per_group, at<float>(range),
                         at<int64_t>(extremes), threads);
            add_noise(arguments, floats_of(noisy));
        },
        Release());
    module.def(
        "add_noise_backward",
        [](const WeightLists& grads, const WeightLists& weights, const Addresses& logits, Address range,
           Address extremes, Address key, const std::vector<uint32_t>& streams, const Options& options,
           const Addresses& grad_weights, const Addresses& grad_logits, Address nonfinite, int threads) {
            add_noise_backward(
                noise_arguments(weights, logits, key, streams, at<const float>(range), options, threads),
                at<const int64_t>(extremes), floats_of(grads), at_all<void>(grad_weights),
                at_all<float>(grad_logits), at<float>(nonfinite));
        },
        Release());
    module.def(
        "quantize",
        [](const WeightLists& weights, const Addresses& widths, Address range, int64_t group_size,
           bool per_group, const Addresses& levels, int threads) {
            quantize(floats_of(weights), at_all<const uint8_t>(widths), at<const float>(range), group_size,
                     per_group, at_all<uint32_t>(levels), threads);
        },
        Release());
    module.def(
        "dequantize",
        [](const Addresses& levels, const Addresses& widths, Address range, int64_t group_size,
           bool per_group, const WeightLists& weights, int threads) {
            dequantize(at_all<const uint32_t>(levels), at_all<const uint8_t>(widths), at<const float>(range),
                       group_size, per_group, floats_of(weights), threads);
        },
        Release());
    module.def(
        "fake_quantize",
        [](const WeightLists& weights, const Addresses& widths, Address range, int64_t group_size,
           bool per_group, const WeightLists& results, int threads) {
            fake_quantize(floats_of(weights), at_all<const uint8_t>(widths), at<const float>(range),
                          group_size, per_group, floats_of(results), threads);
        },
        Release());
    module.def(
        "find_widths",
        [](uint32_t lowest, const std::vector<float>& below, const std::vector<float>& from, Address logits,
           int64_t count, Address widths, Address doubts, int threads) {
            find_widths(width_steps(lowest, below, from), at<const float>(logits), count, at<uint8_t>(widths),
                        at<uint8_t>(doubts), threads);
        },
        Release());
    module.def(
        "count_widths",
        [](Address widths, int64_t groups, Address counts, int threads) {
            count_widths(at<const uint8_t>(widths), groups, at<int64_t>(counts), threads);
        },
        Release());
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
        [](const PackingTuple& packing, Address weight, int dtype, Address range, bool per_group,
           Address words, int threads) {
            const Floats floats{at<void>(weight), std::get<1>(packing), static_cast<DType>(dtype)};
            return quantize_pack(packing_of(packing, threads), floats, at<const float>(range), per_group,
                                 at<uint32_t>(words));
        },
        Release());
    module.def(
        "quantize_planes",
        [](const PackingTuple& packing, Address weight, int dtype, Address range,
           const std::vector<int64_t>& level_counts, const Addresses& planes, int threads) {
            const Floats floats{at<void>(weight), std::get<1>(packing), static_cast<DType>(dtype)};
            return quantize_planes(packing_of(packing, threads), floats, at<const float>(range), level_counts,
                                   at_all<void>(planes));
        },
        Release());
    module.def(
        "unpack_dequantize",
        [](const PackingTuple& packing, Address words, Address range, bool per_group, Address weight,
           int dtype, int threads) {
            const Floats floats{at<void>(weight), std::get<1>(packing), static_cast<DType>(dtype)};
            return unpack_dequantize(packing_of(packing, threads), at<const uint32_t>(words),
                                     at<const float>(range), per_group, floats);
        },
        Release());
    module.def(
        "pack_planes",
        [](Address values, int value_bytes, int64_t count, int nbits, int rows, int64_t columns,
           Address words, int threads) {
            return pack_planes({count, nbits, rows, columns}, at<const void>(values), value_bytes,
                               at<void>(words), threads);
        },
        Release());
    module.def(
        "unpack_planes",
        [](Address words, int64_t count, int nbits, int rows, int64_t columns, Address values, int threads) {
            unpack_planes({count, nbits, rows, columns}, at<const void>(words), at<int16_t>(values), threads);
        },
        Release());
}
