// Stores that may go past the cache.

DIFFQ_WORD bool is_aligned(const float* data) {
    return reinterpret_cast<uintptr_t>(data) % sizeof(Float) == 0;
}

template <bool kPastCache>
DIFFQ_WORD void put(Float value, float* to) {
    if constexpr (kPastCache) {
        store_past_cache(value, to);
    } else {
        store(value, to);
    }
}
