// The container of a packed file, docs/packed_format.md sections 1 and 2: its tensors' places, and its
// metadata. Nothing is believed: every size is checked against the length of the file.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/file/failure.h"
#include "core/file/hooked_memory.h"
#include "core/file/json.h"

namespace diffq_fast {

constexpr int64_t kMostHeaderBytes = 100'000'000;
constexpr int kMostDimensions = 32;
constexpr int64_t kMostDataBytes = int64_t{1} << 50;  // so that sums of sizes cannot overflow
constexpr int64_t kMostElements = int64_t{1} << 60;   // of a tensor, less one

enum class ItemType : uint8_t {
    boolean,
    u8,
    i8,
    f8_e4m3,
    f8_e5m2,
    u16,
    i16,
    f16,
    bf16,
    u32,
    i32,
    f32,
    u64,
    i64,
    f64,
    c64,
};

const char* item_name(ItemType type);
int64_t item_bytes(ItemType type);

// False where there is no such type.
bool find_item_type(const JsonString& name, ItemType& type);

// A file's bytes, which stay where they are.
struct Bytes {
    const uint8_t* data;
    int64_t size;
};

// Names, each with a zero behind it, that stay where they are.
class Names {
  public:
    // room: characters of the text that they come from, quotes counted.
    Names(const MemoryHooks& hooks, size_t room) : memory_(hooks, static_cast<int64_t>(room)) {}

    std::string_view keep(const JsonString& name) {
        char* const to = memory_.data() + used_;
        const size_t size = name.decode(to);
        to[size] = '\0';
        used_ += size + 1;
        return {to, size};
    }

  private:
    Scratch<char> memory_;
    size_t used_ = 0;
};

// Sizes of a tensor, among those of all: see Sizes.
struct Shape {
    uint32_t first, rank;
    int64_t count;  // elements
};

using Sizes = Vector<int64_t>;

// A list of sizes whose strides fit 64 bits, even where one size is 0.
bool read_shape(JsonReader& reader, Sizes& sizes, Shape& shape);

// Bytes [begin, end) behind the header.
struct TensorEntry {
    std::string_view name;
    Shape shape;
    int64_t begin, end;
    uint32_t checksum;
    ItemType type;

    int64_t bytes() const { return end - begin; }
};

// The strings of the metadata that a reader looks at.
struct Metadata {
    std::string_view format, version, quantizer, layout, crc32, header_crc32;
};

struct Container {
    explicit Container(const MemoryHooks& hooks, size_t header_bytes)
        : names(hooks, header_bytes),
          sizes(empty_vector<int64_t>(hooks)),
          tensors(empty_vector<TensorEntry>(hooks)),
          by_name(empty_vector<uint32_t>(hooks)) {}

    Names names;
    Sizes sizes;
    Vector<TensorEntry> tensors;  // in file order
    Vector<uint32_t> by_name;     // their numbers
    Metadata metadata;
    int64_t data_start, data_bytes;  // behind the header, and how many its tensors need

    // The number of the tensor called name + ending, or -1.
    int64_t find(std::string_view name, std::string_view ending = {}) const;
};

// The header's bytes alone, if the file has so many.
bool find_header(Bytes file, std::string_view& header, Failure& failure);

// Reads all that stands in a header, and verifies it: format, version and the header's own checksum before
// anything else.
bool read_container(std::string_view header, const MemoryHooks& hooks, Container& container,
                    Failure& failure);

// Whether a file of so many bytes is as long as its tensors need.
bool check_length(const Container& container, int64_t file_bytes, Failure& failure);

// As many checksums as there are tensors, which they are given to.
bool read_checksums(const MemoryHooks& hooks, Container& container, Failure& failure);

// Whether name + ending is below, equal to or above another such name: -1, 0 or 1.
int compare_names(std::string_view a, std::string_view a_ending, std::string_view b,
                  std::string_view b_ending);

}  // namespace diffq_fast
