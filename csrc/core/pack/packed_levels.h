// A weight's levels <-> its words (streams.h says which level goes where), and the same fused with
// quantising, so that levels exist only a block at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "core/runtime/groups.h"

namespace diffq_fast {

// How one weight is packed. widths: uint8 [groups].
struct Packing {
    const uint8_t* widths;
    int64_t count;
    int64_t group_size;
    int64_t word_count;  // 32-bit words that the caller has; false is returned, and nothing done, when they
                         // do not fit
    int threads;
};

bool pack(const Packing& packing, const uint32_t* levels, uint32_t* words);
bool unpack(const Packing& packing, const uint32_t* words, uint32_t* levels);

// ranges: the weight's (lo, hi), or with `per_group` that of each group.
bool quantize_pack(const Packing& packing, const Floats& weight, const float* ranges, bool per_group,
                   uint32_t* words);

// Levels as diffq's bit planes (planes.h, 64 rows of 32 columns), the groups of each width by themselves in
// group order: planes[width - 1] is uint64 [blocks][width][32] for each width up to kMaxWidth. False, and
// nothing done, when there are not level_counts[width - 1] levels of each width. word_count is not used.
bool quantize_planes(const Packing& packing, const Floats& weight, const float* range,
                     const std::vector<int64_t>& level_counts, const std::vector<void*>& planes);

bool unpack_dequantize(const Packing& packing, const uint32_t* words, const float* ranges, bool per_group,
                       const Floats& weight);

}  // namespace diffq_fast
