#include <string>

#include "core/file/json.h"
#include "tests/check.h"

using namespace diffq_fast;

namespace {

const MemoryHooks kHooks = malloc_hooks();

bool sound(std::string_view text, bool fractions = true) {
    JsonReader reader(text, fractions, kHooks);
    return reader.skip() && reader.finish();
}

std::string repeated(std::string_view text, int count) {
    std::string made;
    for (int i = 0; i < count; ++i) made += text;
    return made;
}

void sound_texts_are_read() {
    for (const char* text :
         {"{}", "[]", " [ ] ", "\t{\n\"a\" :\r1 , \"b\":[true,false,null]}", "\"\"", "0", "-0", "12", "1.5",
          "-1e9", "1E+2", "2.5e-3", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\"", "\"\\ud83d\\uDE00\"",
          "{\"a\":{\"a\":1}}", "[1,[2,[3]]]"})
        CHECK(sound(text));
}

void what_is_no_json_is_refused() {
    for (const char* text : {"",          " ",         "{",           "}",    "[",
                             "[1",        "[1,",       "[1,]",        "[,1]", "[1 2]",
                             "{\"a\"}",   "{\"a\":}",  "{\"a\":1,}",  "{,}",  "{\"a\":1 \"b\":2}",
                             "{a:1}",     "{1:1}",     "'a'",         "\"a",  "\"\\",
                             "\"\\x\"",   "\"\\u12\"", "\"\\u12g4\"", "01",   "-",
                             "+1",        ".5",        "1.",          "1e",   "1e+",
                             "trux",      "True",      "nul",         "NaN",  "Infinity",
                             "-Infinity", "1 2",       "{}{}",        "[]]",  "\"a\nb\"",
                             "// a\n1",   "[1]x",      "{\"a\":1}}"})
        CHECK(!sound(text));
    CHECK(!sound(std::string_view("\"a\0b\"", 5)) && !sound(std::string_view("\"\\\0\"", 4)));
}

void fractions_are_refused_where_none_are_expected() {
    for (const char* text : {"1.5", "1e2", "[0.0]", "{\"a\":1E5}"}) CHECK(sound(text) && !sound(text, false));
}

void a_key_that_occurs_twice_is_refused() {
    CHECK(!sound("{\"a\":1,\"a\":2}") && !sound("{\"b\":1,\"a\":2,\"c\":3,\"a\":4}"));
    CHECK(!sound("{\"a\":1,\"\\u0061\":2}") && !sound("[{\"\\/\":1,\"/\":2}]"));
    CHECK(!sound("{\"\\ud83d\\ude00\":1,\"\xF0\x9F\x98\x80\":2}"));
    CHECK(!sound("{\"x\":{\"k\":1,\"y\":[{\"k\":1}],\"k\":3}}"));
    CHECK(sound("{\"a\":1,\"A\":2,\"ab\":3,\"\":4,\"x\":{\"a\":1}}"));
}

void half_a_surrogate_pair_is_refused() {
    for (const char* text : {"\"\\ud83d\"", "\"\\ude00\"", "\"\\ud83d\\ud83d\"", "\"\\ud83dx\"",
                             "\"\\ud83d\\n\"", "\"\\ude00\\ud83d\"", "\"\\ud83d\\u0041\""})
        CHECK(!sound(text));
}

void nesting_has_a_limit() {
    CHECK(sound(repeated("[", 64) + repeated("]", 64)) && !sound(repeated("[", 65) + repeated("]", 65)));
    CHECK(sound(repeated("{\"a\":", 63) + "[]" + repeated("}", 63)));
    CHECK(!sound(repeated("{\"a\":", 64) + "[]" + repeated("}", 64)));
    CHECK(!sound(repeated("[", 100000)));
}

void more_values_than_a_header_has_are_refused() {
    CHECK(sound("[" + repeated("[],", 100000) + "1]"));    // 8 MB of values
    CHECK(!sound("[" + repeated("[],", 2000000) + "1]"));  // 160 MB, where 146 MB are allowed
    CHECK(!sound("[" + repeated("{\"\":1},", 1000000) + "1]"));
}

void long_numbers_are_refused() {
    CHECK(sound(repeated("9", 4300)) && !sound(repeated("9", 4301)) && sound(repeated("9", 4301) + ".5"));
    int64_t value = 0;
    for (const char* text : {"9223372036854775808", "-1", "1.0", "99999999999999999999", "true", "\"1\""})
        CHECK(!JsonReader(text, true, kHooks).whole(value));
    CHECK(JsonReader("9223372036854775807", false, kHooks).whole(value) && value == INT64_MAX);
    CHECK(JsonReader("-0", false, kHooks).whole(value) && value == 0);
}

void strings_are_decoded() {
    JsonReader reader("\"\\u0041\\n\\u00e9\\u20AC\\ud83d\\ude00\\u0000z\"", false, kHooks);
    JsonString text;
    char decoded[64];
    CHECK(reader.string(text) && reader.finish());
    const std::string_view expected("A\n\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\0z", 13);
    CHECK(std::string_view(decoded, text.decode(decoded)) == expected && text.is(expected) && !text.is("A"));
}

void only_sound_utf8_is_let_pass() {
    for (const char* text :
         {"", "a", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xF4\x8F\xBF\xBF", "\xEE\x80\x80"})
        CHECK(valid_utf8(text));
    for (const char* text :
         {"\x80", "\xC3", "\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xE2\x82",
          "\xF0\x80\x80\x80", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xC3("})
        CHECK(!valid_utf8(text));
}

}  // namespace

RUN_TESTS(sound_texts_are_read, what_is_no_json_is_refused, fractions_are_refused_where_none_are_expected,
          a_key_that_occurs_twice_is_refused, half_a_surrogate_pair_is_refused, nesting_has_a_limit,
          more_values_than_a_header_has_are_refused, long_numbers_are_refused, strings_are_decoded,
          only_sound_utf8_is_let_pass)
