// Vector words of kLanes floats, which the algorithms of this folder are written against. Included inside the
// namespace and the target region of one instruction set, which has defined kLanes and, after this, the words
// that the compiler's own vectors lack or do badly: mul_wide, widen, doubles_of, multiply_add, positive_root,
// lesser, greater, larger, look_up, store_past_cache. No include guard, and everything static: each
// instruction set gets its own copy and no linker mixes them up.

// Floats by which loops ask for their input ahead of its use: processors look ahead by themselves, but only
// within a page (the range of 2^24 weights takes 4.4 ms without, 2.3 ms with this, on one core of a Xeon).
constexpr int64_t kAhead = 1024;

#define DIFFQ_INLINE static inline __attribute__((always_inline))
#define DIFFQ_MEMBER inline __attribute__((always_inline))

typedef float Float __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Uint __attribute__((vector_size(4 * kLanes)));
typedef int32_t Int __attribute__((vector_size(4 * kLanes)));
typedef uint64_t Wide __attribute__((vector_size(4 * kLanes)));  // kLanes / 2
typedef uint16_t Half __attribute__((vector_size(2 * kLanes)));
typedef float FewFloats __attribute__((vector_size(2 * kLanes)));  // kLanes / 2
typedef double Doubles __attribute__((vector_size(4 * kLanes)));
typedef float FourFloats __attribute__((vector_size(16)));

template <typename Vector, typename Item>
DIFFQ_INLINE Vector load_as(const Item* from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

DIFFQ_INLINE Float load(const float* from) {
    return load_as<Float>(from);
}
DIFFQ_INLINE Uint load(const uint32_t* from) {
    return load_as<Uint>(from);
}

template <typename Vector, typename Item>
DIFFQ_INLINE void store(Vector value, Item* to) {
    std::memcpy(to, &value, sizeof value);
}

// value + 0 would lose the sign of -0.
DIFFQ_INLINE Float splat(float value) {
    return value - Float{};
}
DIFFQ_INLINE Wide splat_wide(uint64_t value) {
    return Wide{} + value;
}

DIFFQ_INLINE Uint bits_of(Float value) {
    return (Uint)value;
}
DIFFQ_INLINE Float float_of(Uint bits) {
    return (Float)bits;
}
DIFFQ_INLINE Float float_from_int(Int value) {
    return __builtin_convertvector(value, Float);
}

DIFFQ_INLINE Float choose(Int condition, Float yes, Float no) {
    return condition ? yes : no;
}
DIFFQ_INLINE Uint choose(Int condition, Uint yes, Uint no) {
    return condition ? yes : no;
}

DIFFQ_INLINE int64_t sum_of(Uint value) {
    int64_t sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += value[lane];
    return sum;
}

// Sequences of lane numbers, for __builtin_shufflevector.
template <int... kIndex>
struct Indices {};
template <int kCount, int... kIndex>
struct MakeIndices : MakeIndices<kCount - 1, kCount - 1, kIndex...> {};
template <int... kIndex>
struct MakeIndices<0, kIndex...> {
    using type = Indices<kIndex...>;
};
template <int kCount>
using Count = typename MakeIndices<kCount>::type;
