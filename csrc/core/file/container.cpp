#include "core/file/container.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/file/crc32.h"

namespace diffq_fast {
namespace {

constexpr char kFormat[] = "diffq_fast", kMetadata[] = "__metadata__", kDamaged[] = "damaged";
// Raw quotes cannot stand inside a JSON string, so this marks one place only.
constexpr std::string_view kChecksumKey = "\"header_crc32\":\"", kNoChecksum = "00000000";

struct ItemForm {
    const char* name;
    int64_t bytes;
};

constexpr ItemForm kItems[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
    {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8}, {"C64", 8},
};

uint32_t sum(std::string_view text, uint32_t before) {
    return crc32(reinterpret_cast<const uint8_t*>(text.data()), text.size(), before);
}

// Eight lower-case hexadecimal digits.
bool read_digits(std::string_view text, uint32_t& value) {
    value = 0;
    for (const char each : text) {
        const bool digit = each >= '0' && each <= '9';
        if (!digit && !(each >= 'a' && each <= 'f')) return false;
        value = value << 4 | static_cast<uint32_t>(digit ? each - '0' : each - 'a' + 10);
    }
    return text.size() == 8;
}

// CRC-32 of the 8 length bytes and the header, with the digits at `place` read as zeros.
uint32_t header_checksum(std::string_view header, size_t place) {
    uint8_t length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(uint64_t{header.size()} >> 8 * i);
    const uint32_t before = sum(header.substr(0, place), crc32(length, sizeof length));
    return sum(header.substr(std::min(header.size(), place + kNoChecksum.size())), sum(kNoChecksum, before));
}

bool check_header_checksum(std::string_view header, std::string_view stated, Failure& failure) {
    const size_t place = header.find(kChecksumKey);
    if (place == std::string_view::npos || header.find(kChecksumKey, place + 1) != std::string_view::npos)
        return failure.bad_file(
            "header", "header_crc32 is not written in the one form that can be checked; %s", kDamaged);
    const uint32_t expected = header_checksum(header, place + kChecksumKey.size());
    uint32_t found;
    if (read_digits(stated, found) && found == expected) return true;
    char shown[24];
    put_printable(stated, shown, sizeof shown, 20);
    return failure.bad_file("header", "checksum '%s' stored, '%08x' found; the header is damaged", shown,
                            static_cast<unsigned>(expected));
}

// Format and version first: another version may be anything else.
bool check_metadata(std::string_view header, const Metadata& metadata, Failure& failure) {
    char shown[48];
    if (metadata.format != kFormat) {
        put_printable(metadata.format, shown, sizeof shown, 40);
        return failure.bad_file("header", "not a diffq_fast packed file: its format is '%s', expected '%s'",
                                shown, kFormat);
    }
    if (metadata.version != "1" && metadata.version != "2") {
        put_printable(metadata.version, shown, sizeof shown, 40);
        return failure.bad_file(
            "header", "version '%s', this reader knows versions '1' and '2'; a newer diffq_fast may read it",
            shown);
    }
    for (const std::string_view text :
         {metadata.quantizer, metadata.layout, metadata.crc32, metadata.header_crc32}) {
        if (text.data() == nullptr)
            return failure.bad_file(
                "header", "the metadata lack quantizer, layout, crc32 or header_crc32; %s", kDamaged);
    }
    return check_header_checksum(header, metadata.header_crc32, failure);
}

bool read_metadata(JsonReader& reader, Names& names, Metadata& metadata) {
    if (!reader.begin_object()) return false;
    JsonString key, text;
    while (reader.next_key(key)) {
        if (!reader.string(text)) return false;
        if (key.is("format")) metadata.format = names.keep(text);
        if (key.is("version")) metadata.version = names.keep(text);
        if (key.is("quantizer")) metadata.quantizer = names.keep(text);
        if (key.is("layout")) metadata.layout = names.keep(text);
        if (key.is("crc32")) metadata.crc32 = names.keep(text);
        if (key.is("header_crc32")) metadata.header_crc32 = names.keep(text);
    }
    return reader.problem() == nullptr;
}

bool read_offsets(JsonReader& reader, TensorEntry& entry) {
    if (!reader.begin_list()) return false;
    int64_t places[2] = {};
    int number = 0;
    for (; reader.next_item(); ++number) {
        if (number == 2 || !reader.whole(places[number])) return false;
    }
    entry.begin = places[0];
    entry.end = places[1];
    return number == 2;
}

// One tensor of the header; the reader stands before its object.
bool read_entry(JsonReader& reader, Container& container, TensorEntry& entry, Failure& failure) {
    if (!reader.begin_object()) return failure.bad_file(entry.name, "expected an object; %s", kDamaged);
    JsonString key, type;
    int fields = 0;
    while (reader.next_key(key)) {
        if (key.is("dtype")) {
            if (!reader.string(type) || !find_item_type(type, entry.type))
                return failure.bad_file(entry.name, "unknown dtype");
            fields |= 1;
        } else if (key.is("shape")) {
            if (!read_shape(reader, container.sizes, entry.shape))
                return failure.bad_file(entry.name, "the shape is no list of sizes that a tensor can have");
            fields |= 2;
        } else if (key.is("data_offsets")) {
            if (!read_offsets(reader, entry))
                return failure.bad_file(entry.name, "data_offsets are not two byte positions");
            fields |= 4;
        } else {
            fields = -1;
            break;
        }
    }
    if (fields != 7 || reader.problem() != nullptr)
        return failure.bad_file(entry.name, "expected dtype, shape and data_offsets, and nothing else");
    const int64_t expected = entry.shape.count * item_bytes(entry.type);
    if (entry.end < entry.begin || entry.bytes() != expected)
        return failure.bad_file(
            entry.name, "expected %lld bytes for its dtype and shape, its offsets span %lld; %s",
            static_cast<Number>(expected), static_cast<Number>(entry.end) - entry.begin, kDamaged);
    return true;
}

bool check_cover(Container& container, Failure& failure) {
    int64_t position = 0;
    for (const TensorEntry& entry : container.tensors) {
        if (entry.begin != position)
            return failure.bad_file(entry.name, "%s the tensor before it: begins at byte %lld, expected %lld",
                                    entry.begin < position ? "overlaps" : "leaves a gap behind",
                                    static_cast<Number>(entry.begin), static_cast<Number>(position));
        position = entry.end;
    }
    container.data_bytes = position;
    return true;
}

// First pass: the text is sound JSON, the metadata are those of a packed file. tensors: how many there are.
bool read_texts(std::string_view header, const MemoryHooks& hooks, Container& container, size_t& tensors,
                Failure& failure) {
    JsonReader reader(header, false, hooks);
    JsonString key;
    tensors = 0;
    bool strings = true;
    if (reader.begin_object()) {
        while (strings && reader.next_key(key)) {
            if (!key.is(kMetadata)) {
                ++tensors;
                reader.skip();
                continue;
            }
            strings = read_metadata(reader, container.names, container.metadata);
        }
        reader.finish();
    }
    if (reader.problem() != nullptr)
        return failure.bad_file("header", "not the JSON that was expected (%s); %s", reader.problem(),
                                kDamaged);
    return check_metadata(header, container.metadata, failure);
}

bool read_tensors(std::string_view header, const MemoryHooks& hooks, Container& container, Failure& failure) {
    JsonReader reader(header, false, hooks);
    JsonString key;
    reader.begin_object();
    while (reader.next_key(key)) {
        if (key.is(kMetadata)) {
            reader.skip();
            continue;
        }
        TensorEntry entry{};
        entry.name = container.names.keep(key);
        if (!read_entry(reader, container, entry, failure)) return false;
        container.tensors.push_back(entry);
    }
    return true;
}

}  // namespace

const char* item_name(ItemType type) {
    return kItems[static_cast<size_t>(type)].name;
}

int64_t item_bytes(ItemType type) {
    return kItems[static_cast<size_t>(type)].bytes;
}

bool find_item_type(const JsonString& name, ItemType& type) {
    for (size_t i = 0; i < sizeof kItems / sizeof kItems[0]; ++i) {
        if (!name.is(kItems[i].name)) continue;
        type = static_cast<ItemType>(i);
        return true;
    }
    return false;
}

bool read_shape(JsonReader& reader, Sizes& sizes, Shape& shape) {
    shape = {static_cast<uint32_t>(sizes.size()), 0, 1};
    if (!reader.begin_list()) return false;
    int64_t product = 1;  // zeros read as ones
    for (; reader.next_item(); ++shape.rank) {
        int64_t size;
        if (shape.rank == kMostDimensions || !reader.whole(size)) return false;
        if (size > 1 && product > (kMostElements - 1) / size) return false;
        product *= std::max<int64_t>(size, 1);
        if (size == 0) shape.count = 0;
        sizes.push_back(size);
    }
    if (shape.count != 0) shape.count = product;
    return reader.problem() == nullptr;
}

int compare_names(std::string_view a, std::string_view a_ending, std::string_view b,
                  std::string_view b_ending) {
    const size_t common = std::min(a.size(), b.size());
    int order = a.substr(0, common).compare(b.substr(0, common));
    if (order != 0) return order < 0 ? -1 : 1;
    if (a.size() == b.size()) {
        order = a_ending.compare(b_ending);
    } else if (a.size() < b.size()) {
        const std::string_view rest = b.substr(common);
        order = a_ending.substr(0, rest.size()).compare(rest);
        if (order == 0) order = a_ending.substr(rest.size()).compare(b_ending);
    } else {
        return -compare_names(b, b_ending, a, a_ending);
    }
    return order < 0 ? -1 : order > 0 ? 1 : 0;
}

int64_t Container::find(std::string_view name, std::string_view ending) const {
    const auto place = std::lower_bound(by_name.begin(), by_name.end(), 0u, [&](uint32_t number, uint32_t) {
        return compare_names(tensors[number].name, {}, name, ending) < 0;
    });
    if (place == by_name.end() || compare_names(tensors[*place].name, {}, name, ending) != 0) return -1;
    return *place;
}

bool find_header(Bytes file, std::string_view& header, Failure& failure) {
    if (file.size < 8)
        return failure.bad_file("header", "expected at least 8 bytes, found %lld; not a safetensors file",
                                static_cast<Number>(file.size));
    uint64_t length = 0;
    for (int i = 0; i < 8; ++i) length |= uint64_t{file.data[i]} << 8 * i;
    if (length > static_cast<uint64_t>(std::min(kMostHeaderBytes, file.size - 8)))
        return failure.bad_file(
            "header",
            "its length says %llu bytes, but the file has %lld and the limit is %lld; damaged, "
            "truncated or no safetensors file",
            static_cast<unsigned long long>(length), static_cast<Number>(file.size),
            static_cast<Number>(kMostHeaderBytes));
    header = {reinterpret_cast<const char*>(file.data) + 8, static_cast<size_t>(length)};
    if (header.empty() || header[0] != '{')
        return failure.bad_file("header", "does not begin with '{'; damaged, or not a safetensors file");
    return valid_utf8(header) || failure.bad_file("header", "is not UTF-8; %s", kDamaged);
}

bool read_container(std::string_view header, const MemoryHooks& hooks, Container& container,
                    Failure& failure) {
    size_t count;
    if (!read_texts(header, hooks, container, count, failure)) return false;
    container.tensors.reserve(count);
    if (!read_tensors(header, hooks, container, failure)) return false;
    Vector<TensorEntry>& tensors = container.tensors;
    // Of empty tensors in one place, all have the same checksum, so their order does not matter.
    std::sort(tensors.begin(), tensors.end(), [](const TensorEntry& a, const TensorEntry& b) {
        return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
    });
    container.data_start = static_cast<int64_t>(8 + header.size());
    if (!check_cover(container, failure)) return false;
    container.by_name.resize(count);
    std::iota(container.by_name.begin(), container.by_name.end(), 0u);
    std::sort(container.by_name.begin(), container.by_name.end(),
              [&](uint32_t a, uint32_t b) { return tensors[a].name < tensors[b].name; });
    return read_checksums(hooks, container, failure);
}

bool check_length(const Container& container, int64_t file_bytes, Failure& failure) {
    const int64_t found = file_bytes - container.data_start;
    return found == container.data_bytes ||
           failure.bad_file("header",
                            "the tensors need %lld bytes of data, the file has %lld; truncated or damaged",
                            static_cast<Number>(container.data_bytes), static_cast<Number>(found));
}

bool read_checksums(const MemoryHooks& hooks, Container& container, Failure& failure) {
    JsonReader reader(container.metadata.crc32, false, hooks);
    JsonString text;
    size_t number = 0;
    bool sound = reader.begin_list();
    while (sound && reader.next_item()) {
        char digits[6 * 8];  // each may be escaped
        sound = reader.string(text) && text.raw.size() <= sizeof digits;
        if (!sound) break;
        uint32_t checksum;
        sound = read_digits({digits, text.decode(digits)}, checksum);
        if (number < container.tensors.size()) container.tensors[number].checksum = checksum;
        ++number;
    }
    if (!sound || !reader.finish())
        return failure.bad_file("crc32", "expected a list of strings of 8 lower-case hexadecimal digits; %s",
                                kDamaged);
    return number == container.tensors.size() ||
           failure.bad_file("crc32", "expected %lld checksums, found %lld; %s",
                            static_cast<Number>(container.tensors.size()), static_cast<Number>(number),
                            kDamaged);
}

}  // namespace diffq_fast
