// Hints about memory that is about to be read or written.
#pragma once

#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace diffq_fast {

// Fresh memory costs a page fault per 4 kB, more than most kernels' own time (64 MB: 11 ms of faults, 5 ms of
// copying, on a 2-core Xeon); asked for 2 MB pages, Linux takes one per 2 MB. A hint only: its failure is no
// error.
inline void expect_writes(void* data, int64_t bytes) {
#ifdef __linux__
    constexpr uintptr_t kHugePage = uintptr_t{1} << 21;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
    const uintptr_t end =
        (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(kHugePage - 1);
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)data;
    (void)bytes;
#endif
}

// The compiler has to see what is inside: copies of a known size; and GCC drops calls of functions that only
// prefetch, as they have no effect.
#if defined(__GNUC__) || defined(__clang__)
#define DIFFQ_FAST_PREFETCH(place, writes) __builtin_prefetch(place, writes)
#define DIFFQ_FAST_INLINE inline __attribute__((always_inline))
#else
#define DIFFQ_FAST_PREFETCH(place, writes) static_cast<void>(place)
#define DIFFQ_FAST_INLINE inline
#endif

// Asks for the cache line at `place`, which is read or written soon; any address will do.
DIFFQ_FAST_INLINE void expect_read(const void* place) {
    DIFFQ_FAST_PREFETCH(place, 0);
}

DIFFQ_FAST_INLINE void expect_write(const void* place) {
    DIFFQ_FAST_PREFETCH(place, 1);
}

// Asks for the beginning of the block behind this one. Processors look ahead by themselves, but only within a
// page, which is what a block of 1024 floats is.
DIFFQ_FAST_INLINE void expect_next_block(const void* place) {
    for (int64_t offset = 0; offset < 16 * 64; offset += 64)
        expect_read(static_cast<const char*>(place) + offset);
}

// Whether so many weights leave no result in the cache for whoever reads it next.
inline bool goes_past_cache(int64_t elements) {
    return elements >= int64_t{1} << 22;
}

}  // namespace diffq_fast
