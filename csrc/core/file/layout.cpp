#include "core/file/layout.h"

#include <algorithm>
#include <numeric>

#include "core/runtime/groups.h"

namespace diffq_fast {
namespace {

constexpr char kDamaged[] = "the file is damaged or truncated";
constexpr std::string_view kWords = ".words", kCoded = ".coded", kRange = ".range", kWidths = ".widths";
constexpr std::string_view kEndings[] = {{}, kWords, kRange, kWidths, kCoded};

// Endings of the names of a weight's tensors.
size_t endings_of(bool second_version) {
    return second_version ? 5 : 4;
}

// Fields of a weight's layout, as bits.
constexpr unsigned kShape = 1, kType = 2, kGroupSize = 4, kScope = 8, kCoding = 16, kRequired = 31,
                   kLevels = 32, kRans = 64, kPerUnit = 128;

bool read_coding(JsonReader& reader, WidthCoding& coding) {
    JsonString form;
    if (!reader.begin_list() || !reader.next_item() || !reader.string(form)) return false;
    int64_t numbers[2] = {};
    int count = 0;
    for (; reader.next_item(); ++count) {
        if (count == 2 || !reader.whole(numbers[count])) return false;
    }
    if (reader.problem() != nullptr) return false;
    const bool lowest = numbers[0] >= 1 && numbers[0] <= kMaxWidth;
    coding.lowest = static_cast<uint8_t>(lowest ? numbers[0] : 0);
    coding.bits = static_cast<uint8_t>(numbers[1] & 7);
    if (form.is("one")) {
        coding.form = WidthForm::one;
        return count == 1 && lowest;
    }
    if (form.is("fixed")) {
        coding.form = WidthForm::fixed;
        return count == 2 && lowest && numbers[1] >= 1 && numbers[1] <= 4;
    }
    coding.form = WidthForm::runs;
    return form.is("runs") && count == 0;
}

bool read_scope(JsonReader& reader, Scope& scope) {
    JsonString text;
    if (!reader.string(text)) return false;
    constexpr std::string_view kNames[] = {"tensor", "group", "scale", "steps"};
    for (size_t i = 0; i < 4; ++i) {
        if (!text.is(kNames[i])) continue;
        scope = static_cast<Scope>(i);
        return true;
    }
    return false;
}

bool read_weight_type(JsonReader& reader, ItemType& type) {
    JsonString text;
    if (!reader.string(text) || !find_item_type(text, type)) return false;
    return type == ItemType::f32 || type == ItemType::f16 || type == ItemType::bf16;
}

class LayoutReader {
  public:
    LayoutReader(const MemoryHooks& hooks, const Container& container, Layout& layout, Failure& failure)
        : hooks_(hooks),
          container_(container),
          layout_(layout),
          failure_(failure),
          second_(container.metadata.version == "2"),
          half_(empty_vector<Half>(hooks)),
          buffers_(empty_vector<std::string_view>(hooks)) {}

    bool read() {
        JsonReader reader(container_.metadata.layout, false, hooks_);
        JsonString key;
        bool sound = reader.begin_object(), weights = false;
        while (sound && reader.next_key(key)) {
            if (key.is("weights")) {
                weights = true;
                sound = read_weights(reader);
            } else if (key.is("ties")) {
                sound = read_ties(reader);
            } else if (key.is("half")) {
                sound = read_half(reader);
            } else if (key.is("buffers")) {
                sound = read_buffers(reader);
            } else {
                return failure_.bad_file("layout",
                                         "expected weights, ties, half, buffers, found something else");
            }
        }
        if (failure_.status != Status::ok) return false;
        if (!sound || !reader.finish())
            return failure_.bad_file("layout", "not the JSON that was expected (%s); damaged",
                                     reader.problem() != nullptr ? reader.problem() : "of another form");
        if (!weights) return failure_.bad_file("layout", "expected weights, found none");
        return check_version() && find_plain() && check_names() && apply_half() && find_ties();
    }

  private:
    struct Half {
        std::string_view name;
        ItemType type;
        bool known;
    };

    struct MeantName {
        std::string_view name;
        size_t ending;
    };

    bool read_weights(JsonReader& reader) {
        JsonString name;
        if (!reader.begin_object()) return false;
        while (reader.next_key(name)) {
            Weight weight{};
            weight.name = layout_.names.keep(name);
            weight.levels = weight.range = weight.widths = kNone;
            if (!read_weight(reader, weight)) return false;
            layout_.weights.push_back(weight);
        }
        return reader.problem() == nullptr;
    }

    bool bad(const Weight& weight, const char* problem) {
        return failure_.bad_file(weight.name, "%s", problem);
    }

    bool read_weight(JsonReader& reader, Weight& weight) {
        if (!reader.begin_object()) return bad(weight, "expected an object of fields; damaged");
        JsonString key;
        unsigned fields = 0;
        while (reader.next_key(key)) {
            const unsigned field = read_field(reader, key, weight);
            if (field == 0) {
                const char* const problem = reader.problem();
                return bad(weight,
                           problem != nullptr ? problem : "a field of its layout is none that can be");
            }
            fields |= field;
        }
        if (reader.problem() != nullptr) return bad(weight, reader.problem());
        if ((fields & kRequired) != kRequired)
            return bad(weight, "the layout must state dtype, group_size, range, shape, widths");
        weight.coded = (fields & kRans) != 0;
        if (weight.scope == Scope::steps && !weight.coded)
            return bad(weight, "only coded weights have steps");
        if (!check_scheme(weight, (fields & kLevels) != 0)) return false;
        const int64_t count = weight.shape.count;
        // A group that holds the whole weight is one, whatever its size.
        if (weight.group_size >= count) weight.group_size = 0;
        weight.groups = group_count(count, weight.group_size);
        return find_parts(weight) && find_widths(weight);
    }

    // The bit of the field, 0 where it is none or its value cannot be.
    unsigned read_field(JsonReader& reader, const JsonString& key, Weight& weight) {
        JsonString text;
        if (key.is("shape")) return read_shape(reader, layout_.sizes, weight.shape) ? kShape : 0;
        if (key.is("dtype")) return read_weight_type(reader, weight.type) ? kType : 0;
        if (key.is("group_size")) return reader.whole(weight.group_size) ? kGroupSize : 0;
        if (key.is("range")) return read_scope(reader, weight.scope) ? kScope : 0;
        if (key.is("widths")) return read_coding(reader, weight.coding) ? kCoding : 0;
        if (key.is("levels")) return reader.whole(weight.level_count) ? kLevels : 0;
        if (!second_) return 0;
        if (key.is("coding")) return reader.string(text) && text.is("rans") ? kRans : 0;
        if (!key.is("groups_per_unit") || !reader.whole(weight.groups_per_unit)) return 0;
        return weight.groups_per_unit >= 1 && weight.groups_per_unit <= kMostGroupsPerUnit ? kPerUnit : 0;
    }

    // A scale and a count of levels are for one width, which a count needs.
    bool check_scheme(const Weight& weight, bool counted) {
        const int width = weight.coding.form == WidthForm::one ? weight.coding.lowest : 0;
        if (weight.scope == Scope::scale && (weight.group_size != 0 || (width < 2 && weight.shape.count > 0)))
            return bad(weight, "range \"scale\" needs group_size 0 and the coding [\"one\", 2 ... 16]");
        if (weight.short_ranges() && weight.scope != Scope::group)
            return bad(weight, "groups_per_unit needs range \"group\"");
        if (!counted) return true;
        const bool fits = weight.level_count > (1 << width) / 2 && weight.level_count < 1 << width;
        if (!fits || weight.scope != Scope::tensor)
            return bad(
                weight,
                "levels needs range \"tensor\" and the coding [\"one\", the fewest bits for more than 2]");
        return true;
    }

    const TensorEntry& tensor(int64_t number) const {
        return container_.tensors[static_cast<size_t>(number)];
    }

    // The number of a part of the weight, kNone where it is not as it must be.
    int64_t part(const Weight& weight, std::string_view ending, ItemType type) {
        const int64_t number = container_.find(weight.name, ending);
        const char* problem = nullptr;
        if (number < 0) {
            problem = "the file has no tensor";
        } else if (tensor(number).type != type) {
            problem = "another dtype than it must have for";
        } else if (ending != kRange && tensor(number).shape.rank != 1) {
            problem = "more or fewer dimensions than one for";
        }
        if (problem == nullptr) return number;
        failure_.bad_file(weight.name, "%s its %s; %s", problem, ending.data() + 1, kDamaged);
        return kNone;
    }

    bool find_parts(Weight& weight) {
        weight.levels =
            weight.coded ? part(weight, kCoded, ItemType::u16) : part(weight, kWords, ItemType::u32);
        if (weight.levels == kNone || !find_range(weight)) return false;
        const int64_t bytes = tensor(weight.levels).bytes(), count = weight.shape.count;
        const int64_t most = weight.coded ? bytes / 2 * kElementsPerWord : 8 * bytes;
        if (weight.coded && container_.find(weight.name, kWords) >= 0)
            return bad(weight, "its levels are coded, so there must be no tensor for its words");
        // This bounds all memory by the length of the file.
        return most >= count ||
               failure_.bad_file(weight.name, "%lld packed bytes cannot hold %lld levels; %s",
                                 static_cast<Number>(bytes), static_cast<Number>(count), kDamaged);
    }

    bool find_range(Weight& weight) {
        if (weight.scope == Scope::steps) {
            return container_.find(weight.name, kRange) < 0 ||
                   bad(weight, "its steps are coded, so there must be no tensor for its range");
        }
        weight.range = part(weight, kRange, weight.short_ranges() ? ItemType::u8 : ItemType::f32);
        if (weight.range == kNone) return false;
        const Shape& shape = tensor(weight.range).shape;
        const int64_t* const sizes = container_.sizes.data() + shape.first;
        bool fits = shape.rank == 1;
        if (weight.short_ranges()) {
            fits = fits && sizes[0] == 4 * weight.unit_count() + 2 * weight.groups;
        } else if (weight.scope == Scope::group) {
            fits = shape.rank == 2 && sizes[0] == weight.groups && sizes[1] == 2;
        } else {
            fits = fits && sizes[0] == (weight.scope == Scope::tensor ? 2 : 1);
        }
        return fits ||
               failure_.bad_file(weight.name, "a range of another shape than it must have; %s", kDamaged);
    }

    bool find_widths(Weight& weight) {
        const int64_t number = container_.find(weight.name, kWidths);
        if (weight.coding.form == WidthForm::one)
            return number < 0 ||
                   bad(weight, "all groups have one width, so there must be no tensor for widths");
        weight.widths = part(weight, kWidths, ItemType::u8);
        if (weight.widths == kNone) return false;
        const int64_t bytes = tensor(weight.widths).bytes();
        return weight.coding.form == WidthForm::runs ||
               bytes == fixed_width_bytes(weight.groups, weight.coding.bits) ||
               failure_.bad_file(weight.name, "expected another number than %lld bytes for %lld widths; %s",
                                 static_cast<Number>(bytes), static_cast<Number>(weight.groups), kDamaged);
    }

    bool read_ties(JsonReader& reader) {
        JsonString alias, name;
        if (!reader.begin_object()) return false;
        while (reader.next_key(alias)) {
            if (!reader.string(name)) return false;
            layout_.ties.push_back({layout_.names.keep(alias), layout_.names.keep(name), 0});
        }
        return reader.problem() == nullptr;
    }

    bool read_half(JsonReader& reader) {
        JsonString name, type;
        if (!reader.begin_object()) return false;
        while (reader.next_key(name)) {
            if (!reader.string(type)) return false;
            Half half{layout_.names.keep(name), ItemType::f16, false};
            half.known =
                find_item_type(type, half.type) &&
                (half.type == ItemType::f64 || half.type == ItemType::f32 || half.type == ItemType::bf16);
            half_.push_back(half);
        }
        return reader.problem() == nullptr;
    }

    bool read_buffers(JsonReader& reader) {
        JsonString name;
        if (!reader.begin_list()) return false;
        while (reader.next_item()) {
            if (!reader.string(name)) return false;
            buffers_.push_back(layout_.names.keep(name));
        }
        return reader.problem() == nullptr;
    }

    bool check_version() {
        const auto needs_second = [](const Weight& weight) { return weight.coded || weight.short_ranges(); };
        return !second_ || std::any_of(layout_.weights.begin(), layout_.weights.end(), needs_second) ||
               failure_.bad_file("layout",
                                 "expected a coded weight, or one with short ranges, in a file of version 2");
    }

    // All tensors that are no part of a weight.
    bool find_plain() {
        Vector<uint8_t> parts(container_.tensors.size(), 0, HookedAllocator<uint8_t>(hooks_));
        for (const Weight& weight : layout_.weights) {
            for (size_t ending = 1; ending < endings_of(second_); ++ending) {
                const int64_t number = container_.find(weight.name, kEndings[ending]);
                if (number >= 0) parts[static_cast<size_t>(number)] = 1;
            }
        }
        for (uint32_t number = 0; number < parts.size(); ++number) {
            if (parts[number] == 0) layout_.plain.push_back({number, container_.tensors[number].type});
        }
        return true;
    }

    // Each name means one thing only.
    bool check_names() {
        auto names = empty_vector<MeantName>(hooks_);
        const size_t endings = endings_of(second_);
        names.reserve(1 + endings * layout_.weights.size() + layout_.plain.size() + layout_.ties.size());
        names.push_back({"__metadata__", 0});
        for (const Weight& weight : layout_.weights) {
            for (size_t ending = 0; ending < endings; ++ending) names.push_back({weight.name, ending});
        }
        for (const Plain& plain : layout_.plain) names.push_back({tensor(plain.tensor).name, 0});
        for (const Tie& tie : layout_.ties) names.push_back({tie.alias, 0});
        const auto compare = [](const MeantName& a, const MeantName& b) {
            return compare_names(a.name, kEndings[a.ending], b.name, kEndings[b.ending]);
        };
        std::sort(names.begin(), names.end(),
                  [&](const MeantName& a, const MeantName& b) { return compare(a, b) < 0; });
        const auto twice =
            std::adjacent_find(names.begin(), names.end(),
                               [&](const MeantName& a, const MeantName& b) { return compare(a, b) == 0; });
        return twice == names.end() || failure_.bad_file("layout",
                                                         "a name means two things: a weight, a part of one, "
                                                         "a plain tensor, a tied name or the metadata");
    }

    // The place of a plain tensor among them, or kNone.
    int64_t find_plain(std::string_view name) const {
        const int64_t number = container_.find(name);
        const auto place = std::lower_bound(
            layout_.plain.begin(), layout_.plain.end(), number,
            [](const Plain& plain, int64_t wanted) { return int64_t{plain.tensor} < wanted; });
        if (number < 0 || place == layout_.plain.end() || int64_t{place->tensor} != number) return kNone;
        return place - layout_.plain.begin();
    }

    bool apply_half() {
        for (const Half& half : half_) {
            const int64_t place = find_plain(half.name);
            if (place == kNone)
                return failure_.bad_file("half", "names something that is no plain tensor of the file");
            Plain& plain = layout_.plain[static_cast<size_t>(place)];
            if (!half.known || tensor(plain.tensor).type != ItemType::f16)
                return failure_.bad_file(half.name,
                                         "expected F16 restored to F64, F32 or BF16, found another dtype");
            plain.type = half.type;
        }
        for (const std::string_view name : buffers_) {
            if (find_plain(name) == kNone)
                return failure_.bad_file("buffers", "names something that is no plain tensor of the file");
        }
        return true;
    }

    bool find_ties() {
        const Vector<Weight>& weights = layout_.weights;
        Vector<uint32_t> by_name(weights.size(), 0, HookedAllocator<uint32_t>(hooks_));
        std::iota(by_name.begin(), by_name.end(), 0u);
        std::sort(by_name.begin(), by_name.end(),
                  [&](uint32_t a, uint32_t b) { return weights[a].name < weights[b].name; });
        for (Tie& tie : layout_.ties) {
            const auto place = std::lower_bound(
                by_name.begin(), by_name.end(), tie.name,
                [&](uint32_t number, std::string_view name) { return weights[number].name < name; });
            const int64_t plain = find_plain(tie.name);
            if (place != by_name.end() && weights[*place].name == tie.name) {
                tie.entry = *place;
            } else if (plain != kNone) {
                tie.entry = static_cast<int64_t>(weights.size()) + plain;
            } else {
                return failure_.bad_file(tie.alias, "is tied to a name that the file does not have");
            }
        }
        return true;
    }

    const MemoryHooks& hooks_;
    const Container& container_;
    Layout& layout_;
    Failure& failure_;
    const bool second_;
    Vector<Half> half_;
    Vector<std::string_view> buffers_;
};

}  // namespace

bool read_layout(const MemoryHooks& hooks, const Container& container, Layout& layout, Failure& failure) {
    return LayoutReader(hooks, container, layout, failure).read();
}

bool check_quantizer(const MemoryHooks& hooks, const Metadata& metadata, Failure& failure) {
    JsonReader reader(metadata.quantizer, true, hooks);
    JsonString key, text;
    bool name = false, arguments = false, sound = reader.begin_object();
    while (sound && reader.next_key(key)) {
        if (key.is("class")) {
            name = true;
            sound = reader.string(text);
        } else if (key.is("arguments")) {
            arguments = reader.kind() == JsonReader::Kind::object;
            sound = arguments && reader.skip();
        } else {
            sound = reader.skip();
        }
    }
    return (sound && reader.finish() && name && arguments) ||
           failure.bad_file("quantizer", "expected a class name and an object of arguments; damaged");
}

}  // namespace diffq_fast
