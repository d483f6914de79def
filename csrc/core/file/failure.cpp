#include "core/file/failure.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

namespace diffq_fast {
namespace {

constexpr size_t kMostName = 200;

}  // namespace

size_t put_printable(std::string_view text, char* to, size_t room, size_t most) {
    static constexpr char kDigits[] = "0123456789abcdef";
    const size_t limit = std::min(room == 0 ? 0 : room - 1, most);
    size_t size = 0;
    for (const char each : text) {
        const auto byte = static_cast<unsigned char>(each);
        const bool plain = byte >= 0x20 && byte < 0x7F && byte != '\\';
        if (size + (plain ? 1 : 4) > limit) break;
        if (plain) {
            to[size++] = each;
            continue;
        }
        to[size++] = '\\';
        to[size++] = 'x';
        to[size++] = kDigits[byte >> 4];
        to[size++] = kDigits[byte & 15];
    }
    if (room > 0) to[size] = '\0';
    return size;
}

bool Failure::bad_file(std::string_view where, const char* format, ...) {
    status = Status::bad_file;
    size_t size = put_printable(where, message, sizeof message, kMostName);
    for (const char each : {':', ' '}) message[size++] = each;
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message + size, sizeof message - size, format, arguments);
    va_end(arguments);
    return false;
}

bool Failure::fail(Status what, const char* format, ...) {
    status = what;
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return false;
}

}  // namespace diffq_fast
