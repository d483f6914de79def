#include <cstring>
#include <thread>

#include "core/runtime/block_pool.h"
#include "tests/check.h"

using namespace diffq_fast;

namespace {

void a_freed_block_serves_the_next_of_its_size() {
    void* first = take_block(5000000);
    CHECK(reinterpret_cast<uintptr_t>(first) % 64 == 0);
    std::memset(first, 1, 5000000);
    give_block(first, 5000000);
    CHECK(kept_bytes() >= 5000000);
    CHECK(take_block(5000001) == first);
    void* other = take_block(9000000);
    CHECK(other != first);
    give_block(other, 9000000);
    give_block(first, 5000001);
}

void no_more_than_the_limit_is_kept() {
    for (int i = 0; i < 12; ++i) {
        PooledBlock one(kKeptBytes / 4), two(kKeptBytes / 4 + 200000 * i), three(kKeptBytes / 3);
    }
    CHECK(kept_bytes() <= kKeptBytes);
    {
        PooledBlock large(2 * kKeptBytes);
    }
    CHECK(kept_bytes() <= kKeptBytes);
}

void impossible_sizes_are_refused() {
    for (const int64_t bytes : {int64_t{-1}, INT64_MIN, INT64_MAX, INT64_MAX - 65536}) {
        bool refused = false;
        try {
            PooledBlock block(bytes);
        } catch (const std::bad_alloc&) {
            refused = true;
        }
        CHECK(refused);
    }
}

void threads_get_blocks_of_their_own() {
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([t] {
            for (int i = 0; i < 200; ++i) {
                PooledBlock block(100000 + i % 3 * 100000);
                auto* data = static_cast<unsigned char*>(block.data());
                std::memset(data, t, 1000);
                std::this_thread::yield();
                CHECK(data[0] == t && data[999] == t);
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
}

}  // namespace

RUN_TESTS(a_freed_block_serves_the_next_of_its_size, no_more_than_the_limit_is_kept,
          impossible_sizes_are_refused, threads_get_blocks_of_their_own)
