#include <cstring>
#include <thread>

#include "core/runtime/block_pool.h"
#include "tests/check.h"

using namespace diffq_fast;

namespace {

void a_freed_block_serves_the_next_of_its_size() {
    void* block = take_block(5000000);
    CHECK(reinterpret_cast<uintptr_t>(block) % 64 == 0);
    std::memset(block, 1, 5000000);
    give_block(block, 5000000);
    CHECK(kept_bytes() >= 5000000);
    CHECK(take_block(5000001) == block);
    void* another = take_block(9000000);
    CHECK(another != block);
    give_block(another, 9000000);
    give_block(block, 5000001);
}

void no_more_than_the_limit_is_kept() {
    for (int i = 0; i < 12; ++i) {
        PooledBlock one(kMostKeptBytes / 4), two(kMostKeptBytes / 4 + 200000 * i), three(kMostKeptBytes / 3);
    }
    CHECK(kept_bytes() <= kMostKeptBytes);
    {
        PooledBlock large(2 * kMostKeptBytes);
    }
    CHECK(kept_bytes() <= kMostKeptBytes);
}

void an_emptied_pool_keeps_nothing_and_goes_on() {
    PooledBlock in_use(3000000);
    give_block(take_block(5000000), 5000000);
    give_block(take_block(7000000), 7000000);
    CHECK(kept_bytes() >= 12000000);
    empty_cache();
    CHECK(kept_bytes() == 0);
    std::memset(in_use.data(), 1, 3000000);
    give_block(take_block(5000000), 5000000);
    CHECK(kept_bytes() >= 5000000);
    empty_cache();
    empty_cache();
    CHECK(kept_bytes() == 0);
}

// Run under the thread sanitizer, too.
void a_pool_can_be_emptied_while_threads_use_it() {
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
        threads.emplace_back([] {
            for (int i = 0; i < 200; ++i) {
                PooledBlock block(100000 + i % 3 * 100000);
                std::memset(block.data(), i, 1000);
                if (i % 10 == 0) empty_cache();
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    empty_cache();
    CHECK(kept_bytes() == 0);
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
          an_emptied_pool_keeps_nothing_and_goes_on, a_pool_can_be_emptied_while_threads_use_it,
          impossible_sizes_are_refused, threads_get_blocks_of_their_own)
