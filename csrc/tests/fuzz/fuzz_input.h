// Takes a fuzz target's choices, and then its data, from the bytes that the fuzzer gives.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/runtime/dispatch.h"
#include "core/runtime/groups.h"

namespace diffq_fast {

class Input {
  public:
    Input(const uint8_t* data, size_t size) : data_(data), size_(size) {
        uint32_t hash = 2166136261;  // FNV-1a
        for (size_t i = 0; i < size; ++i) hash = (hash ^ data[i]) * 16777619;
        sum_ = static_cast<uint8_t>(hash >> 24);
    }

    // The next byte; zeros follow the last one.
    uint8_t byte() {
        if (size_ == 0) return 0;
        --size_;
        return *data_++;
    }

    // Elements: few as a rule, so that runs are short; else beside the end of one block or two, or up to
    // 4080. Which of these, all of the input's bytes say together: a fuzzer that keeps long inputs for what
    // they alone reach would make nearly all runs long ones.
    int64_t count() {
        const uint8_t choice = sum_;
        const int64_t low = byte();
        if (choice < 248) return low % 50;
        if (choice < 252) return 1008 + low % 64;
        return choice < 254 ? 2032 + low % 64 : low << 4;
    }

    // Vectors of the exact size, so that a sanitizer sees every step over their ends. What is left of the
    // bytes, repeated.
    template <typename Item>
    std::vector<Item> items(int64_t count) const {
        std::vector<Item> made(static_cast<size_t>(count));
        auto* const to = reinterpret_cast<uint8_t*>(made.data());
        const size_t bytes = made.size() * sizeof(Item);
        for (size_t i = 0; i < bytes && size_ > 0; i += size_)
            std::memcpy(to + i, data_, std::min(size_, bytes - i));
        return made;
    }

    // One of those that this machine runs, scalar among them.
    const char* instruction_set() {
        const std::vector<const Kernels*>& all = supported_kernels();
        return all[byte() % all.size()]->name;
    }

  private:
    const uint8_t* data_;
    size_t size_;
    uint8_t sum_;
};

inline void require(bool holds) {
    if (!holds) std::abort();
}

// The same bits; which NaN it is does not matter.
inline bool same_float(float a, float b) {
    return std::memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b);
}

inline float float_at(const std::vector<uint8_t>& items, DType dtype, size_t i) {
    if (dtype == DType::float32) {
        float value;
        std::memcpy(&value, items.data() + 4 * i, sizeof value);
        return value;
    }
    uint16_t half;
    std::memcpy(&half, items.data() + 2 * i, sizeof half);
    return dtype == DType::float16 ? float_from_float16(half) : float_from_bfloat16(half);
}

inline bool same_floats(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b, DType dtype) {
    if (a == b) return true;
    const auto count = a.size() / static_cast<size_t>(item_size(dtype));
    for (size_t i = 0; i < count; ++i) {
        if (!same_float(float_at(a, dtype, i), float_at(b, dtype, i))) return false;
    }
    return a.size() == b.size();
}

}  // namespace diffq_fast
