// Any words, ranges, widths and dtype: fused and apart, and on every instruction set, the same weights, bit
// for bit, without touching memory that is not their own. Apart also levels and widths that no packing has.
#include "core/pack/packed_levels.h"
#include "core/pack/quantize.h"
#include "core/pack/streams.h"
#include "tests/fuzz/fuzz_input.h"

using namespace diffq_fast;

namespace {

struct Form {
    int64_t count;
    Grouping grouping;
    DType dtype;
};

std::vector<uint8_t> apart(const Form& form, const std::vector<uint8_t>& widths,
                           const std::vector<float>& ranges, const std::vector<uint32_t>& levels) {
    std::vector<uint8_t> weight(static_cast<size_t>(form.count * item_size(form.dtype)));
    dequantize({levels.data()}, {{widths.data()}, ranges.data(), form.grouping},
               {{weight.data(), form.count, form.dtype}}, 1);
    return weight;
}

std::vector<uint8_t> fused(const Form& form, const std::vector<uint8_t>& widths,
                           const std::vector<float>& ranges, const std::vector<uint32_t>& words) {
    std::vector<uint8_t> weight(static_cast<size_t>(form.count * item_size(form.dtype)));
    const Packing packing{widths.data(), form.count, form.grouping.group_size,
                          static_cast<int64_t>(words.size()), 1};
    require(unpack_dequantize(packing, words.data(), ranges.data(), form.grouping.per_group,
                              {weight.data(), form.count, form.dtype}));
    return weight;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input input(data, size);
    const char* const instruction_set = input.instruction_set();
    Form form{input.count(), {input.byte() % 20, false}, DType::float32};
    const uint8_t choices = input.byte();
    form.grouping.per_group = choices & 1;
    form.dtype = static_cast<DType>((choices >> 1) % 3);
    const int64_t group_size = form.grouping.group_size, groups = group_count(form.count, group_size);
    auto widths = input.items<uint8_t>(groups);
    const auto ranges = input.items<float>(2 * form.grouping.range_count(form.count));
    if (choices >= 224) {  // out of the packed forms' reach
        const auto levels = input.items<uint32_t>(form.count);
        use_kernels("scalar");
        const auto expected = apart(form, widths, ranges, levels);
        use_kernels(instruction_set);
        require(same_floats(apart(form, widths, ranges, levels), expected, form.dtype));
        return 0;
    }
    for (uint8_t& width : widths) width = static_cast<uint8_t>(width % kMaxWidth + 1);
    const Streams streams(widths.data(), form.count, group_size, 1);
    const auto words = input.items<uint32_t>(streams.words());
    std::vector<uint32_t> levels(static_cast<size_t>(form.count));
    use_kernels("scalar");
    require(unpack({widths.data(), form.count, group_size, streams.words(), 1}, words.data(), levels.data()));
    const auto expected = apart(form, widths, ranges, levels);
    use_kernels(instruction_set);
    const bool together = choices & 16;
    const auto got = together ? fused(form, widths, ranges, words) : apart(form, widths, ranges, levels);
    require(same_floats(got, expected, form.dtype));
    return 0;
}
