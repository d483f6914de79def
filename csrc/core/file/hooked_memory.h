// Memory for what is read from files: from the functions that the user of a file gives, or from malloc. A
// failure is std::bad_alloc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <vector>

namespace diffq_fast {

// Blocks are aligned like malloc's; null is a failure. `bytes` of release: as they were asked for.
struct MemoryHooks {
    void* (*allocate)(void* context, size_t bytes);
    void (*release)(void* context, void* block, size_t bytes);
    void* context;
};

inline MemoryHooks malloc_hooks() {
    return {[](void*, size_t bytes) { return std::malloc(bytes); },
            [](void*, void* block, size_t) { std::free(block); }, nullptr};
}

// `hooks` outlive what is made with it.
template <typename T>
class HookedAllocator {
  public:
    using value_type = T;

    explicit HookedAllocator(const MemoryHooks& hooks) : hooks_(&hooks) {}
    template <typename Other>
    HookedAllocator(const HookedAllocator<Other>& other)
        : hooks_(&other.hooks()) {}  // NOLINT: as std wants it

    T* allocate(size_t count) {
        if (count > std::numeric_limits<size_t>::max() / 2 / sizeof(T)) throw std::bad_alloc();
        void* const block = hooks_->allocate(hooks_->context, count * sizeof(T));
        if (block == nullptr) throw std::bad_alloc();
        return static_cast<T*>(block);
    }
    void deallocate(T* block, size_t count) { hooks_->release(hooks_->context, block, count * sizeof(T)); }

    const MemoryHooks& hooks() const { return *hooks_; }
    template <typename Other>
    bool operator==(const HookedAllocator<Other>& other) const {
        return hooks_ == &other.hooks();
    }
    template <typename Other>
    bool operator!=(const HookedAllocator<Other>& other) const {
        return hooks_ != &other.hooks();
    }

  private:
    const MemoryHooks* hooks_;
};

template <typename T>
using Vector = std::vector<T, HookedAllocator<T>>;

template <typename T>
Vector<T> empty_vector(const MemoryHooks& hooks) {
    return Vector<T>(HookedAllocator<T>(hooks));
}

// So many numbers, not set to anything.
template <typename T>
class Scratch {
  public:
    Scratch(const MemoryHooks& hooks, int64_t count)
        : allocator_(hooks),
          size_(checked(count)),
          data_(size_ == 0 ? nullptr : allocator_.allocate(size_)) {}
    ~Scratch() {
        if (data_ != nullptr) allocator_.deallocate(data_, size_);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator[](int64_t i) { return data_[i]; }
    const T& operator[](int64_t i) const { return data_[i]; }
    int64_t size() const { return static_cast<int64_t>(size_); }

  private:
    // Where size_t has 32 bits, a weight of a small file may have more elements than it counts.
    static size_t checked(int64_t count) {
        if (static_cast<uint64_t>(count) > std::numeric_limits<size_t>::max()) throw std::bad_alloc();
        return static_cast<size_t>(count);
    }

    HookedAllocator<T> allocator_;
    size_t size_;
    T* data_;
};

}  // namespace diffq_fast
