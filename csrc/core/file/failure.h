// What is wrong, and where: written where it is found, without memory of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#if defined(__GNUC__) || defined(__clang__)
#define DIFFQ_FAST_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define DIFFQ_FAST_PRINTF(text, first)
#endif

namespace diffq_fast {

// The numbers are those of diffq_fast_status.
enum class Status : int {
    ok = 0,
    bad_argument = 1,
    cannot_open = 2,
    bad_file = 3,
    out_of_memory = 4,
    not_found = 5,
    unsupported = 6,
    internal = 7,
};

struct Failure {
    Status status = Status::ok;
    char message[512] = "";

    // "where: problem". Returns false, so that a reader can end with it.
    bool bad_file(std::string_view where, const char* format, ...) DIFFQ_FAST_PRINTF(3, 4);
    bool fail(Status what, const char* format, ...) DIFFQ_FAST_PRINTF(3, 4);
};

// Puts text into `to`, of `room` bytes, with a zero behind it: printable ASCII as it is, all else escaped, so
// that no name can rule a terminal. At most `most` bytes of it; returns how many there are.
size_t put_printable(std::string_view text, char* to, size_t room, size_t most);

using Number = long long;  // for printf

}  // namespace diffq_fast
