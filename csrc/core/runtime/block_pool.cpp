#include "core/runtime/block_pool.h"

#include <atomic>
#include <limits>
#include <new>
#include <vector>

#include "core/runtime/memory.h"

namespace diffq_fast {
namespace {

constexpr int64_t kUnit = int64_t{1} << 16;
constexpr std::align_val_t kAlignment{size_t{1} << 21};

int64_t rounded(int64_t bytes) {
    return (bytes / kUnit + 1) * kUnit;
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
        void* found = nullptr;
        for (size_t i = blocks_.size(); i-- > 0;) {  // the last freed first: it may still be in a cache
            if (blocks_[i].bytes != bytes) continue;
            found = blocks_[i].data;
            kept_ -= bytes;
            blocks_.erase(blocks_.begin() + static_cast<int64_t>(i));
            break;
        }
        busy_.clear(std::memory_order_release);
        return found;
    }

    // The oldest blocks make room. False where the block is not kept.
    bool give(void* data, int64_t bytes) {
        if (bytes > kKeptBytes || busy_.test_and_set(std::memory_order_acquire)) return false;
        while (kept_ + bytes > kKeptBytes) {
            ::operator delete(blocks_.front().data, kAlignment);
            kept_ -= blocks_.front().bytes;
            blocks_.erase(blocks_.begin());
        }
        blocks_.push_back({data, bytes});
        kept_ += bytes;
        busy_.clear(std::memory_order_release);
        return true;
    }

    int64_t kept() const { return kept_; }

  private:
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
    void* fresh = ::operator new(static_cast<size_t>(size), kAlignment);
    expect_writes(fresh, size);
    return fresh;
}

void give_block(void* block, int64_t bytes) {
    if (!free_list().give(block, rounded(bytes))) ::operator delete(block, kAlignment);
}

int64_t kept_bytes() {
    return free_list().kept();
}

}  // namespace diffq_fast
