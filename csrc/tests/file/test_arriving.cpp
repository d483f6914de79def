// Files whose bytes arrive one after the other. What has not arrived is not there: blocks are as long as what
// they hold, so that the sanitizer sees a read beyond.
#include <cstring>
#include <memory>
#include <string>

#include "core/file/packed_file.h"
#include "core/file/weight_values.h"
#include "tests/check.h"
#include "tests/sealed_file.h"

using namespace diffq_fast;

namespace {

const char* const kGolden[] = {"packed_v1_documented", "packed_v1_kinds", "packed_v1_even_and_scaled",
                               "packed_v2_coded", "packed_v2_short_ranges"};

FileBytes golden(const std::string& name) {
    return read_bytes(std::string(DIFFQ_FAST_DATA) + "/" + name + ".safetensors");
}

// The first bytes of a file, in a block of their own.
struct Part {
    Part(const FileBytes& file, int64_t count) : bytes(new uint8_t[static_cast<size_t>(count)]), size(count) {
        std::memcpy(bytes.get(), file.data(), static_cast<size_t>(count));
    }
    Bytes all() const { return {bytes.get(), size}; }

    std::unique_ptr<uint8_t[]> bytes;
    int64_t size;
};

int64_t header_end(const FileBytes& file) {
    Failure failure;
    std::string_view header;
    CHECK(find_header({file.data(), static_cast<int64_t>(file.size())}, header, failure));
    return static_cast<int64_t>(8 + header.size());
}

bool verify(const PackedFile& file, const Entry& entry, Failure& failure) {
    return entry.weight != nullptr ? file.verify(*entry.weight, failure) : file.verify(*entry.plain, failure);
}

// As bits; nothing for what is no float.
std::vector<float> values_of(const PackedFile& file, const Entry& entry) {
    Failure failure;
    const Shape& shape =
        entry.weight != nullptr ? entry.weight->shape : file.tensor(entry.plain->tensor).shape;
    std::vector<float> values(static_cast<size_t>(shape.count) + 1);
    const bool done = entry.weight != nullptr ? dequantize_weight(file, *entry.weight, values.data(), failure)
                                              : read_plain(file, *entry.plain, values.data());
    return done ? values : std::vector<float>();
}

void an_entry_can_be_read_as_soon_as_its_bytes_are_there() {
    const MemoryHooks hooks = malloc_hooks();
    for (const char* const name : kGolden) {
        const FileBytes bytes = golden(name);
        Failure failure;
        std::string_view header;
        CHECK(find_header({bytes.data(), static_cast<int64_t>(bytes.size())}, header, failure));
        PackedFile whole({bytes.data(), static_cast<int64_t>(bytes.size())}, header, hooks);
        CHECK(whole.read(failure) && whole.verify_all(failure));

        const Part first(bytes, header_end(bytes));
        std::string_view same(reinterpret_cast<const char*>(first.bytes.get()) + 8, header.size());
        PackedFile file(first.all(), same, hooks);
        CHECK(file.read_header(false, failure));
        const int64_t count = file.layout().entries();
        CHECK(count == whole.layout().entries() && count > 0);
        for (int64_t number = 0; number < count; ++number) {
            CHECK(file.name(number) == whole.name(number));
            const int64_t end = file.end_of(number);
            CHECK(end <= static_cast<int64_t>(bytes.size()));
            file.move_to(first.all());
            const bool empty = end == first.size;  // nothing of it has to arrive
            const Entry entry = file.entry(number);
            if (!empty && number < count - static_cast<int64_t>(file.layout().ties.size())) {
                const Part most(bytes, end - 1);
                file.move_to(most.all());
                Failure refused;
                const bool read = file.read_widths_of(number, refused) && verify(file, entry, refused);
                CHECK(!read && std::strcmp(refused.message, "not all of it has arrived") == 0);
            }
            const Part enough(bytes, end);
            file.move_to(enough.all());
            CHECK(file.read_widths_of(number, failure) && verify(file, entry, failure));
            const std::vector<float> values = values_of(file, entry);
            const std::vector<float> expected = values_of(whole, whole.entry(number));
            CHECK(values.size() == expected.size());
            CHECK(values.empty() || std::memcmp(values.data(), expected.data(), 4 * values.size()) == 0);
        }
    }
}

// Of such a file nothing is known but what its header says.
void a_header_of_far_too_many_bytes_is_refused() {
    const std::string size = std::to_string(int64_t{1} << 51);
    const std::string text =
        R"({"__metadata__":{"format":"diffq_fast","version":"1","quantizer":"{\"class\":\"none\",\"arguments\":{}}",)"
        R"("layout":"{\"weights\":{}}","crc32":"[\"00000000\"]","header_crc32":"00000000"},)"
        R"("a":{"dtype":"U8","shape":[)" +
        size + R"(],"data_offsets":[0,)" + size + "]}}";
    FileBytes bytes(8);
    for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<uint8_t>(uint64_t{text.size()} >> 8 * i);
    bytes.insert(bytes.end(), text.begin(), text.end());
    seal(bytes);
    const MemoryHooks hooks = malloc_hooks();
    const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + 8, text.size());
    Failure failure;
    PackedFile file({bytes.data(), static_cast<int64_t>(bytes.size())}, header, hooks);
    CHECK(!file.read_header(false, failure) && failure.status == Status::bad_file);
    CHECK(std::strstr(failure.message, "2251799813685248 bytes of data") != nullptr);
}

}  // namespace

RUN_TESTS(an_entry_can_be_read_as_soon_as_its_bytes_are_there, a_header_of_far_too_many_bytes_is_refused)
