// A strict reader of JSON texts that nobody trusts: one value after the other, without a tree of them.
//
// Refused, as docs/packed_format.md has it: a key that an object has twice, lists and objects more than 64
// deep, far more values than a header of that length has, half a surrogate pair, whole numbers of more than
// 4,300 digits, NaN and infinity, and fractions where none are expected.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/file/hooked_memory.h"

namespace diffq_fast {

constexpr int kMostNesting = 64;

// What stands between the quotes of a JSON string, well formed.
struct JsonString {
    std::string_view raw;
    bool escaped;  // whether there is a backslash

    // UTF-8, at most as many bytes as `raw` has; returns how many.
    size_t decode(char* to) const;
    bool is(std::string_view text) const;
};

class JsonReader {
  public:
    enum class Kind { object, list, string, number, literal, nothing };

    // text: UTF-8, of less than 2^31 bytes. fractions: whether numbers may have them, or exponents.
    JsonReader(std::string_view text, bool fractions, const MemoryHooks& hooks);

    // Null, or what is wrong; then nothing else is read any more.
    const char* problem() const { return problem_; }

    // Of the value that comes next.
    Kind kind();

    // Of these, all return false where what is asked for does not come next.
    bool begin_object() { return begin(Kind::object, '{'); }
    bool begin_list() { return begin(Kind::list, '['); }
    bool string(JsonString& value);
    bool whole(int64_t& value);  // 0 to 2^63 - 1
    bool skip();                 // any value

    // False at the end of the object or list too: problem() says which it is.
    bool next_key(JsonString& key);
    bool next_item();

    // Whether the text ends here.
    bool finish();

  private:
    struct Key {
        uint32_t begin, length_and_escaped;
    };
    struct Open {
        bool first;
        size_t keys;  // of the objects around it
    };

    bool fail(const char* problem);
    bool begin(Kind kind, char bracket);
    bool at(char wanted) const { return place_ < text_.size() && text_[place_] == wanted; }
    void pass_space();
    bool pass_comma();
    bool close_object();
    bool read_string(JsonString& value);
    bool read_escape();
    bool read_unicode(uint32_t& unit);
    bool read_number(std::string_view& digits, bool& negative, bool& fraction);
    bool read_literal();
    size_t read_digits();
    bool count_values(int64_t bytes);
    JsonString key_at(const Key& key) const;

    std::string_view text_;
    bool fractions_;
    size_t place_ = 0;
    int depth_ = 0;
    Open open_[kMostNesting];
    Vector<Key> keys_;  // of all objects that are open
    int64_t allowed_;   // bytes that the values may take when they are parsed
    const char* problem_ = nullptr;
};

// Whether it is UTF-8, without overlong forms and surrogates.
bool valid_utf8(std::string_view text);

}  // namespace diffq_fast
