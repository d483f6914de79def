// Memory for large results, kept for the next ones. Fresh memory costs far more than the kernels that fill it
// (64 MB: 25 ms of page faults and clearing against 6 ms for the noise, on a 2-core Xeon), and C libraries
// give blocks of this size back to the system each time they are freed.
#pragma once

#include <cstdint>

namespace diffq_fast {

// So many bytes of free blocks are kept at most: the oldest go back to the system when another is freed, and
// what is larger than all of this is never kept.
constexpr int64_t kMostKeptBytes = int64_t{512} << 20;

// A block of at least `bytes` bytes, aligned for huge pages; throws std::bad_alloc.
void* take_block(int64_t bytes);

// `bytes` as asked for in take_block().
void give_block(void* block, int64_t bytes);

// What is kept at present.
int64_t kept_bytes();

// Gives all that is kept back to the system. Blocks in use are not touched, and are kept again when freed.
void empty_cache();

// Owns a block.
class PooledBlock {
  public:
    explicit PooledBlock(int64_t bytes) : bytes_(bytes), data_(take_block(bytes)) {}
    ~PooledBlock() { give_block(data_, bytes_); }
    PooledBlock(const PooledBlock&) = delete;
    PooledBlock& operator=(const PooledBlock&) = delete;

    void* data() const { return data_; }
    int64_t bytes() const { return bytes_; }

  private:
    int64_t bytes_;
    void* data_;
};

}  // namespace diffq_fast
