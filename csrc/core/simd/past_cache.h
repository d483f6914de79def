// Stores that may go past the cache.

DIFFQ_INLINE bool is_aligned(const float* data) {
    return reinterpret_cast<uintptr_t>(data) % sizeof(Float) == 0;
}

template <bool kPastCache>
DIFFQ_INLINE void put(Float value, float* to) {
    if constexpr (kPastCache) {
        store_past_cache(value, to);
    } else {
        store(value, to);
    }
}
