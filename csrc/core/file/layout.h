// What a packed file's tensors mean: its layout, docs/packed_format.md section 3, checked against the
// tensors.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "core/file/container.h"
#include "core/file/width_table.h"

namespace diffq_fast {

// Whose range a level lies in, or what it is multiplied with.
enum class Scope : uint8_t { tensor, group, scale, steps };

constexpr int64_t kElementsPerWord = 512;  // of a coded weight, for each 16-bit word, at most
constexpr int64_t kMostGroupsPerUnit = int64_t{1} << 30;
constexpr int64_t kNone = -1;  // no such tensor

// How one weight is stored.
struct Weight {
    std::string_view name;
    Shape shape;
    int64_t group_size;  // 0 where one group has all elements
    int64_t groups;
    int64_t level_count;                              // 0: the width says it
    int64_t groups_per_unit;                          // of short ranges, or 0
    int64_t levels, range, widths;                    // numbers of its tensors, or kNone
    std::array<int64_t, kMaxWidth + 1> level_counts;  // of each width
    WidthCoding coding;
    ItemType type;
    Scope scope;
    bool coded;

    bool short_ranges() const { return groups_per_unit > 0; }
    int64_t unit_count() const { return groups / groups_per_unit + (groups % groups_per_unit != 0); }
};

// A tensor that is kept as it is. type: of the model's own, which differs where it is stored in half
// precision.
struct Plain {
    uint32_t tensor;
    ItemType type;
};

// A further name of a weight or plain tensor.
struct Tie {
    std::string_view alias, name;
    int64_t entry;  // weights first, then plain tensors
};

struct Layout {
    Layout(const MemoryHooks& hooks, size_t room)
        : names(hooks, room),
          sizes(empty_vector<int64_t>(hooks)),
          weights(empty_vector<Weight>(hooks)),
          plain(empty_vector<Plain>(hooks)),
          ties(empty_vector<Tie>(hooks)) {}

    Names names;
    Sizes sizes;  // of the weights
    Vector<Weight> weights;
    Vector<Plain> plain;  // in file order
    Vector<Tie> ties;

    int64_t entries() const { return static_cast<int64_t>(weights.size() + plain.size() + ties.size()); }
};

// Reads the layout, and verifies it: names, and all sizes that do not depend on widths.
bool read_layout(const MemoryHooks& hooks, const Container& container, Layout& layout, Failure& failure);

// Whether the metadata's "quantizer" is what one is.
bool check_quantizer(const MemoryHooks& hooks, const Metadata& metadata, Failure& failure);

}  // namespace diffq_fast
