#include "core/file/json.h"

#include <algorithm>
#include <cstring>

namespace diffq_fast {
namespace {

// What a tree of values takes, about, in an interpreter: docs/packed_format.md, section 1.
constexpr int64_t kSpareParsed = int64_t{32} << 20, kParsedRatio = 19, kListBytes = 80, kMemberBytes = 200;
constexpr size_t kMostDigits = 4300;
constexpr uint32_t kEscaped = 1u << 31;

bool is_digit(char each) {
    return each >= '0' && each <= '9';
}

int digit_of(char each) {
    if (is_digit(each)) return each - '0';
    if (each >= 'a' && each <= 'f') return each - 'a' + 10;
    if (each >= 'A' && each <= 'F') return each - 'A' + 10;
    return -1;
}

bool is_high(uint32_t unit) {
    return unit >= 0xD800 && unit < 0xDC00;
}
bool is_low(uint32_t unit) {
    return unit >= 0xDC00 && unit < 0xE000;
}

int put_utf8(uint32_t point, char* to) {
    const auto put = [&](int place, uint32_t byte) { to[place] = static_cast<char>(byte); };
    if (point < 0x80) {
        put(0, point);
        return 1;
    }
    const int length = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    for (int place = length - 1; place > 0; --place, point >>= 6) put(place, 0x80 | (point & 0x3F));
    put(0, point | (0xF0u << (4 - length) & 0xFF));
    return length;
}

// The bytes of a string one after the other.
class StringBytes {
  public:
    explicit StringBytes(std::string_view raw) : raw_(raw) {}

    // -1 behind the last one.
    int next() {
        if (given_ < made_) return static_cast<unsigned char>(buffer_[given_++]);
        if (place_ == raw_.size()) return -1;
        if (raw_[place_] != '\\') return static_cast<unsigned char>(raw_[place_++]);
        const char kind = raw_[place_ + 1];
        place_ += 2;
        if (kind != 'u') {
            static constexpr char kFrom[] = "bfnrt", kTo[] = "\b\f\n\r\t";
            const char* const found = std::strchr(kFrom, kind);
            return static_cast<unsigned char>(found == nullptr ? kind : kTo[found - kFrom]);
        }
        uint32_t point = unit();
        if (is_high(point)) {
            place_ += 2;  // the other half's backslash and u
            point = 0x10000 + ((point - 0xD800) << 10) + (unit() - 0xDC00);
        }
        made_ = put_utf8(point, buffer_);
        given_ = 1;
        return static_cast<unsigned char>(buffer_[0]);
    }

  private:
    uint32_t unit() {
        uint32_t value = 0;
        for (int i = 0; i < 4; ++i) value = value << 4 | static_cast<uint32_t>(digit_of(raw_[place_++]));
        return value;
    }

    std::string_view raw_;
    size_t place_ = 0;
    char buffer_[4];
    int given_ = 0, made_ = 0;
};

int compare(const JsonString& a, const JsonString& b) {
    if (!a.escaped && !b.escaped) return a.raw.compare(b.raw);
    StringBytes of_a(a.raw), of_b(b.raw);
    for (;;) {
        const int from_a = of_a.next(), from_b = of_b.next();
        if (from_a != from_b) return from_a < from_b ? -1 : 1;
        if (from_a < 0) return 0;
    }
}

}  // namespace

size_t JsonString::decode(char* to) const {
    if (!escaped) {
        if (!raw.empty()) std::memcpy(to, raw.data(), raw.size());
        return raw.size();
    }
    StringBytes bytes(raw);
    size_t size = 0;
    for (int byte = bytes.next(); byte >= 0; byte = bytes.next()) to[size++] = static_cast<char>(byte);
    return size;
}

bool JsonString::is(std::string_view text) const {
    return compare(*this, {text, false}) == 0;
}

JsonReader::JsonReader(std::string_view text, bool fractions, const MemoryHooks& hooks)
    : text_(text), fractions_(fractions), keys_(HookedAllocator<Key>(hooks)) {
    const auto continues = [](char each) { return (static_cast<unsigned char>(each) & 0xC0) == 0x80; };
    const auto characters =
        static_cast<int64_t>(text.size()) - std::count_if(text.begin(), text.end(), continues);
    allowed_ = kSpareParsed + kParsedRatio * characters;
}

bool JsonReader::fail(const char* problem) {
    if (problem_ == nullptr) problem_ = problem;
    return false;
}

void JsonReader::pass_space() {
    while (at(' ') || at('\t') || at('\n') || at('\r')) ++place_;
}

JsonReader::Kind JsonReader::kind() {
    if (problem_ != nullptr) return Kind::nothing;
    pass_space();
    if (place_ == text_.size()) return Kind::nothing;
    const char each = text_[place_];
    if (each == '{') return Kind::object;
    if (each == '[') return Kind::list;
    if (each == '"') return Kind::string;
    if (each == '-' || is_digit(each)) return Kind::number;
    return each == 't' || each == 'f' || each == 'n' ? Kind::literal : Kind::nothing;
}

bool JsonReader::count_values(int64_t bytes) {
    allowed_ -= bytes;
    return allowed_ >= 0 || fail("of far more values than a header of its length has; hostile");
}

bool JsonReader::begin(Kind kind, char bracket) {
    if (this->kind() != kind) return fail(bracket == '{' ? "expected an object" : "expected a list");
    if (depth_ == kMostNesting) return fail("nested too deeply (more than 64); damaged or hostile");
    ++place_;
    open_[depth_++] = {true, keys_.size()};
    return count_values(kListBytes);
}

bool JsonReader::pass_comma() {
    bool& first = open_[depth_ - 1].first;
    if (!first) {
        if (!at(',')) return fail("expected a comma or the end of a list or object");
        ++place_;
        pass_space();
    }
    first = false;
    return true;
}

JsonString JsonReader::key_at(const Key& key) const {
    return {text_.substr(key.begin, key.length_and_escaped & ~kEscaped),
            (key.length_and_escaped & kEscaped) != 0};
}

bool JsonReader::close_object() {
    ++place_;
    --depth_;
    const auto first = keys_.begin() + static_cast<std::ptrdiff_t>(open_[depth_].keys);
    std::sort(first, keys_.end(),
              [&](const Key& a, const Key& b) { return compare(key_at(a), key_at(b)) < 0; });
    const auto twice = std::adjacent_find(
        first, keys_.end(), [&](const Key& a, const Key& b) { return compare(key_at(a), key_at(b)) == 0; });
    if (twice != keys_.end()) return fail("a key occurs twice");
    keys_.erase(first, keys_.end());
    return false;
}

bool JsonReader::next_key(JsonString& key) {
    if (problem_ != nullptr) return false;
    pass_space();
    if (at('}')) return close_object();
    if (!pass_comma() || !read_string(key)) return false;
    const auto begin = static_cast<uint32_t>(key.raw.data() - text_.data());
    keys_.push_back({begin, static_cast<uint32_t>(key.raw.size()) | (key.escaped ? kEscaped : 0)});
    pass_space();
    if (!at(':')) return fail("expected a colon behind a key");
    ++place_;
    return count_values(kMemberBytes);
}

bool JsonReader::next_item() {
    if (problem_ != nullptr) return false;
    pass_space();
    if (at(']')) {
        ++place_;
        --depth_;
        return false;
    }
    return pass_comma();
}

bool JsonReader::string(JsonString& value) {
    if (kind() != Kind::string) return fail("expected a string");
    return read_string(value);
}

bool JsonReader::read_string(JsonString& value) {
    if (!at('"')) return fail("expected a string");
    const size_t begin = ++place_;
    value.escaped = false;
    for (;; ++place_) {
        if (place_ == text_.size()) return fail("a string does not end");
        const auto byte = static_cast<unsigned char>(text_[place_]);
        if (byte == '"') break;
        if (byte < 0x20) return fail("a control character in a string");
        if (byte != '\\') continue;
        value.escaped = true;
        if (!read_escape()) return false;
    }
    value.raw = text_.substr(begin, place_ - begin);
    ++place_;
    return true;
}

// place_: of the backslash, and then of the last character.
bool JsonReader::read_escape() {
    ++place_;
    if (place_ == text_.size()) return fail("a string does not end");
    if (text_[place_] != 'u') {
        return std::strchr("\"\\/bfnrt", text_[place_]) != nullptr && text_[place_] != '\0'
                   ? true
                   : fail("an unknown escape in a string");
    }
    uint32_t unit;
    if (!read_unicode(unit)) return false;
    if (is_low(unit)) return fail("half of a surrogate pair");
    if (!is_high(unit)) return true;
    if (text_.substr(place_ + 1, 2) != "\\u") return fail("half of a surrogate pair");
    place_ += 2;
    return read_unicode(unit) && (is_low(unit) || fail("half of a surrogate pair"));
}

// place_: of the u, and then of the last digit.
bool JsonReader::read_unicode(uint32_t& unit) {
    unit = 0;
    for (int i = 0; i < 4; ++i) {
        const int digit = ++place_ < text_.size() ? digit_of(text_[place_]) : -1;
        if (digit < 0) return fail("expected four hexadecimal digits behind \\u");
        unit = unit << 4 | static_cast<uint32_t>(digit);
    }
    return true;
}

size_t JsonReader::read_digits() {
    const size_t begin = place_;
    while (place_ < text_.size() && is_digit(text_[place_])) ++place_;
    return place_ - begin;
}

bool JsonReader::read_number(std::string_view& digits, bool& negative, bool& fraction) {
    negative = at('-');
    place_ += negative ? 1 : 0;
    const size_t begin = place_, count = read_digits();
    if (count == 0 || (count > 1 && text_[begin] == '0')) return fail("expected a number");
    digits = text_.substr(begin, count);
    fraction = false;
    if (at('.')) {
        ++place_;
        fraction = true;
        if (read_digits() == 0) return fail("expected digits behind a point");
    }
    if (at('e') || at('E')) {
        ++place_;
        fraction = true;
        place_ += at('+') || at('-') ? 1 : 0;
        if (read_digits() == 0) return fail("expected the digits of an exponent");
    }
    if (fraction && !fractions_) return fail("a fraction is not allowed here");
    return fraction || count <= kMostDigits || fail("a number of more than 4,300 digits");
}

bool JsonReader::whole(int64_t& value) {
    std::string_view digits;
    bool negative, fraction;
    if (kind() != Kind::number) return fail("expected a whole number");
    if (!read_number(digits, negative, fraction)) return false;
    value = 0;
    for (const char each : digits) {
        const int64_t digit = each - '0';
        if (value > (std::numeric_limits<int64_t>::max() - digit) / 10) return fail("a number is too large");
        value = 10 * value + digit;
    }
    return (!fraction && (!negative || value == 0)) || fail("expected a whole number that is not negative");
}

bool JsonReader::read_literal() {
    for (const std::string_view word : {"true", "false", "null"}) {
        if (text_.substr(place_, word.size()) != word) continue;
        place_ += word.size();
        return true;
    }
    return fail("expected a value");
}

// NOLINTNEXTLINE(misc-no-recursion): 64 deep at most
bool JsonReader::skip() {
    JsonString text;
    std::string_view digits;
    bool negative, fraction;
    switch (kind()) {
        case Kind::object:
            if (!begin_object()) return false;
            while (next_key(text)) skip();
            return problem_ == nullptr;
        case Kind::list:
            if (!begin_list()) return false;
            while (next_item()) skip();
            return problem_ == nullptr;
        case Kind::string:
            return read_string(text);
        case Kind::number:
            return read_number(digits, negative, fraction);
        case Kind::literal:
            return read_literal();
        default:
            return fail("expected a value");
    }
}

bool JsonReader::finish() {
    if (problem_ != nullptr) return false;
    pass_space();
    return place_ == text_.size() || fail("something stands behind the end");
}

bool valid_utf8(std::string_view text) {
    const auto* at = reinterpret_cast<const unsigned char*>(text.data());
    const auto* const end = at + text.size();
    const auto continues = [&](const unsigned char* place, unsigned char lowest, unsigned char highest) {
        return place < end && *place >= lowest && *place <= highest;
    };
    while (at < end) {
        const unsigned char first = *at++;
        if (first < 0x80) continue;
        if (first < 0xC2 || first > 0xF4) return false;
        // The second byte excludes what has a shorter form, surrogates, and what is beyond Unicode.
        const auto lowest = static_cast<unsigned char>(first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80);
        const auto highest = static_cast<unsigned char>(first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF);
        if (!continues(at++, lowest, highest)) return false;
        const int more = first >= 0xF0 ? 2 : first >= 0xE0 ? 1 : 0;
        for (int i = 0; i < more; ++i) {
            if (!continues(at++, 0x80, 0xBF)) return false;
        }
    }
    return true;
}

}  // namespace diffq_fast
