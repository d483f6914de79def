// One float as a vector word, for the algorithms that need no more than lanes beside one another.

#define DIFFQ_WORD static inline
#define DIFFQ_MEMBER inline

using Float = float;
using Word = uint32_t;
using Int = int32_t;

DIFFQ_WORD Float load(const float* from) {
    return *from;
}
DIFFQ_WORD void store(Float value, float* to) {
    *to = value;
}
DIFFQ_WORD Float splat(float value) {
    return value;
}
DIFFQ_WORD Word bits_of(Float value) {
    return diffq_fast::bits_of(value);
}
DIFFQ_WORD Float float_of(Word bits) {
    return diffq_fast::float_of(bits);
}
DIFFQ_WORD Float float_from_int(Int value) {
    return static_cast<Float>(value);
}
DIFFQ_WORD Float choose(Int condition, Float yes, Float no) {
    return condition ? yes : no;
}
DIFFQ_WORD Word choose(Int condition, Word yes, Word no) {
    return select(mask_of(condition != 0), yes, no);
}
DIFFQ_WORD Float multiply_add(Float a, Float b, Float c) {
    return a * b + c;
}
DIFFQ_WORD Float look_up(const float* table, Word index) {
    return table[index];
}
DIFFQ_WORD int64_t sum_of(Word value) {
    return value;
}
// The second one where an argument is NaN.
DIFFQ_WORD Float lesser(Float a, Float b) {
    return a < b ? a : b;
}
DIFFQ_WORD Float greater(Float a, Float b) {
    return a > b ? a : b;
}
