// One float as a vector word, for the algorithms that need no more than lanes beside one another.

#define DIFFQ_INLINE static inline
#define DIFFQ_MEMBER inline

using Float = float;
using Uint = uint32_t;
using Int = int32_t;

DIFFQ_INLINE Float load(const float* from) {
    return *from;
}
DIFFQ_INLINE void store(Float value, float* to) {
    *to = value;
}
DIFFQ_INLINE Float splat(float value) {
    return value;
}
DIFFQ_INLINE Uint bits_of(Float value) {
    return diffq_fast::bits_of(value);
}
DIFFQ_INLINE Float float_of(Uint bits) {
    return diffq_fast::float_of(bits);
}
DIFFQ_INLINE Float float_from_int(Int value) {
    return static_cast<Float>(value);
}
DIFFQ_INLINE Float choose(Int condition, Float yes, Float no) {
    return condition ? yes : no;
}
DIFFQ_INLINE Uint choose(Int condition, Uint yes, Uint no) {
    return select(mask_of(condition != 0), yes, no);
}
DIFFQ_INLINE Float multiply_add(Float a, Float b, Float c) {
    return a * b + c;
}
DIFFQ_INLINE Float look_up(const float* table, Uint index) {
    return table[index];
}
DIFFQ_INLINE int64_t sum_of(Uint value) {
    return value;
}
// The second one where an argument is NaN.
DIFFQ_INLINE Float lesser(Float a, Float b) {
    return a < b ? a : b;
}
DIFFQ_INLINE Float greater(Float a, Float b) {
    return a > b ? a : b;
}
