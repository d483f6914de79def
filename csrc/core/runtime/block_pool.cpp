#include "core/runtime/block_pool.h"

#include <atomic>
#include <limits>
#include <new>
#include <thread>
#include <vector>

#include "core/runtime/memory.h"

namespace diffq_fast {
namespace {

constexpr int64_t kGranularity = int64_t{1} << 16;
constexpr std::align_val_t kAlignment{size_t{1} << 21};

int64_t rounded(int64_t bytes) {
    return (bytes / kGranularity + 1) * kGranularity;
}

struct FreeBlock {
    void* data;
    int64_t bytes;
};

// Whoever finds the list in use goes to the system instead of waiting: no lock can be left behind by a fork.
class FreeList {
  public:
    void* take(int64_t bytes) {
        if (busy_.test_and_set(std::memory_order_acquire)) return nullptr;
        void* taken = nullptr;
        for (size_t i = blocks_.size(); i-- > 0;) {  // the last freed first: it may still be in a cache
            if (blocks_[i].bytes != bytes) continue;
            taken = blocks_[i].data;
            kept_ -= bytes;
            blocks_.erase(blocks_.begin() + static_cast<int64_t>(i));
            break;
        }
        busy_.clear(std::memory_order_release);
        return taken;
    }

    // The oldest blocks make room. False where the block is not kept.
    bool give(void* data, int64_t bytes) {
        if (bytes > kMostKeptBytes || busy_.test_and_set(std::memory_order_acquire)) return false;
        while (kept_ + bytes > kMostKeptBytes) free_oldest();
        blocks_.push_back({data, bytes});
        kept_ += bytes;
        busy_.clear(std::memory_order_release);
        return true;
    }

    // Waits for whoever uses the list, but not forever: in a forked child that may be a thread of its parent.
    void empty() {
        for (int attempt = 0; busy_.test_and_set(std::memory_order_acquire); ++attempt) {
            if (attempt == 1000) return;
            std::this_thread::yield();
        }
        while (!blocks_.empty()) free_oldest();
        busy_.clear(std::memory_order_release);
    }

    int64_t kept() const { return kept_; }

  private:
    void free_oldest() {
        ::operator delete(blocks_.front().data, kAlignment);
        kept_ -= blocks_.front().bytes;
        blocks_.erase(blocks_.begin());
    }

    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
    std::vector<FreeBlock> blocks_;
    std::atomic<int64_t> kept_{0};
};

// Never destroyed: tensors may outlive everything else when a process ends.
FreeList& free_list() {
    static FreeList* const list = new FreeList;
    return *list;
}

}  // namespace

void* take_block(int64_t bytes) {
    if (bytes < 0 || bytes > std::numeric_limits<int64_t>::max() / 2) throw std::bad_alloc();
    const int64_t size = rounded(bytes);
    if (void* kept = free_list().take(size)) return kept;
    void* fresh = ::operator new(static_cast<size_t>(size), kAlignment, std::nothrow);
    if (!fresh)
        throw std::bad_alloc();  // not by operator new itself: under a sanitizer, that ends the process
    expect_writes(fresh, size);
    return fresh;
}

void give_block(void* block, int64_t bytes) {
    if (!free_list().give(block, rounded(bytes))) ::operator delete(block, kAlignment);
}

int64_t kept_bytes() {
    return free_list().kept();
}

void empty_cache() {
    free_list().empty();
}

}  // namespace diffq_fast
