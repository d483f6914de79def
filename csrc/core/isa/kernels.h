// What an instruction set provides: the inner loops of the core, over blocks that stay in the first-level
// cache. Every table computes the same: words, uniform draws, steps, sums, levels and packed words bit for
// bit as the scalar one; Gaussian noise within 2e-6; sums of bits and their gradients to rounding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/pack/level_code.h"
#include "core/pack/words.h"
#include "core/runtime/dtype.h"
#include "core/train/bits.h"
#include "core/train/noise.h"

namespace diffq_fast {

// Smallest and largest of some floats (infinities of the other sign where there are none), and whether one is
// NaN.
struct Range {
    float lo, hi;
    bool nan;
};

// The bits of some logits: their sum, to rounding, and their range.
struct BitSums {
    double sum;
    Range range;
};

// Where the levels of a block lie: in one range, or from a smallest weight and a length per element on; with
// one step, or with a step, its reciprocal and a highest level per element. A pointer is null where one value
// serves.
struct LevelGrid {
    float lo, length, step, inverse, top;  // inverse: 1 / step
    const float *los, *lengths, *steps, *inverses, *tops;
};

// A finite logit has the width `lowest` and one more for each of `reached` that it reaches; but where it
// reaches below[k] and not reached[k], or is not finite, the caller has to decide. Both ascend; below[count
// ...] is infinite.
constexpr int kMostThresholds = kMaxWidth - 1;
struct WidthThresholds {
    uint32_t lowest;
    int count;
    float below[kMostThresholds + 1], reached[kMostThresholds + 1];
};
constexpr int64_t kWidthWindow = 64;

// One tile of bit planes, see planes.cpp: `columns` (at most kTileColumns) columns of all rows of a block.
constexpr int64_t kTileColumns = 32;
struct PlaneTile {
    int64_t count;  // values of the whole tensor; what lies behind them counts as zero
    int bits, rows;
    int64_t row_length, block, column, columns;
};

// The noise of some elements that follow one another.
struct NoiseRun {
    NoiseSource source;
    Span span;
};

constexpr int64_t kReadBehind = 16;

// The table of a stream of coded levels, see coding.h: 4096 slots, and what makes levels of its symbols.
// escape: the symbol that stands for others, or kNoSymbol.
struct CodedSlots {
    const uint32_t* slots;
    int32_t origin;
    int low_bits;
    uint32_t escape;
};

constexpr uint32_t kNoSymbol = 256;
constexpr int64_t kCodedRows = 32;       // rows that one call decodes at most, a bit for each
constexpr int64_t kCodedReadAhead = 32;  // words that may be read behind those that are taken

// What the gradients of some groups' logits are made of: the logits, the sums of gradient times noise, and
// the lengths of the groups' ranges (or `length`, where `lengths` is null).
struct GroupSums {
    const float *logits, *sums, *lengths;
    float length;
    int64_t count;
};

// One row of a packed weight, see core/infer/packed_rows.h. scales, offsets: of the group that its first
// element is in, `before` elements behind that group's beginning; group_size 0: all are in one. steps,
// halves: by width. offsets: null where levels are centred.
struct PackedRow {
    const uint8_t *data, *widths;
    int64_t segments, segment, columns, group_size, before;
    const float *scales, *offsets, *steps, *halves, *scaled;
    bool own_steps;  // of a width: 1 / (2^width - 1)
};

// The group of one segment of a row after the other.
struct GroupCursor {
    explicit GroupCursor(const PackedRow& row)
        : group(0),
          inside(row.before),
          segment(row.segment),
          size(row.group_size > 0 ? row.group_size : INT64_MAX) {}

    void next_segment() {
        inside += segment;
        const bool over = inside >= size;
        group += over ? 1 : 0;
        inside -= over ? size : 0;
    }

    int64_t group, inside, segment, size;
};

// The width of a segment, among a row's half bytes.
inline int width_of_segment(const uint8_t* widths, int64_t segment) {
    const auto index = static_cast<uint64_t>(segment);
    return (widths[index / 2] >> (index % 2 * 4) & 15) + 1;
}

// Vectors that a row is multiplied with: `values` are `stride` apart and zero from the row's columns up to a
// whole sixteen; sums [count][segments]. Of vectors of whole numbers `integers` are those, as far apart, each
// of whose blocks of kBlockColumns stands for as many times its one of `units` [count][blocks]; `values` are
// what they stand for. `whole` [count][blocks][kBlockColumns] are the same in order, zeros behind the columns
// and one more block of them behind all; `halves` and `quarters` the columns of a block whose index is 0
// modulo 2 (or 4), then 1, and so on. Null: of other vectors.
struct RowVectors {
    const float* values;
    int64_t stride;
    const float *sums, *totals;
    int64_t count;  // at most the kernels' row_vectors
    const int16_t* integers = nullptr;
    const int8_t *whole = nullptr, *halves = nullptr, *quarters = nullptr;
    const float* units = nullptr;
    int64_t blocks = 0;
};

constexpr int64_t kBlockColumns = 64;
constexpr int64_t kMostVectors = 8;

// Parts of kPanelRows rows of levels, unpacked: levels [parts][blocks][kBlockColumns / 4][kPanelRows][4],
// four columns of one row after the other. Pieces of `piece` columns (32 or 64) of a row have one width; a
// level stands for level * scale + offset, scales and offsets [parts][pieces][kPanelRows]. begins
// [parts][kPanelRows]: what a row's products are added to. widest [parts][pieces]: the largest width of a
// row's, where the kernels ask for it.
constexpr int64_t kPanelRows = 16, kMostPanelParts = 2, kMostPanelVectors = 6;
struct RowPanel {
    const uint8_t* levels;
    const float *scales, *offsets, *begins;
    const uint8_t* widest;
    int64_t blocks, piece;
};

// Vectors of whole numbers from -127 to 127: whole [count][blocks][kBlockColumns], `stride` apart, the unit
// of each block [count][blocks], and the sums of the whole numbers of pieces [count][pieces].
struct WholeVectors {
    const int8_t* whole;
    int64_t stride;
    const float *units, *sums;
    int64_t count;  // at most the kernels' panels.vectors
};

// What panels a set of kernels takes: of how many parts, vectors at once, levels of up to so many bits;
// whether it looks at the widest levels of pieces, and how many products of one take as long as one of
// floats.
struct PanelForm {
    int64_t parts, vectors;
    int most_width;
    bool asks_for_widest;
    double passes;
};

// Floats in rows that are `stride` apart.
struct FloatRows {
    const float* values;
    int64_t stride, count;
};

struct Kernels {
    const char* name;

    void (*make_noise)(const NoiseRun& run, float* z);

    // See bits.h.
    void (*make_steps)(const float* logits, int64_t count, const BitsRule& rule, float* steps);
    BitSums (*sum_bits)(const float* logits, int64_t count, const BitsRule& rule);
    // gradients[i] = factor * d bits / d logit, to rounding. `past_cache` as below.
    void (*make_bit_gradients)(const float* logits, int64_t count, const BitsRule& rule, float factor,
                               bool past_cache, float* gradients);
    // noisy[i] = weights[i] + amplitudes[i / group_size] * z[i] for the elements of the run, which is made of
    // whole groups; group_size 0: one amplitude; beside 0 and 1 the run begins with a Philox call. Amplitudes
    // are followed by kReadBehind readable floats. `past_cache`: `noisy` is not read soon, so it need not go
    // through the cache.
    void (*add_noise)(const NoiseRun& run, const float* weights, const float* amplitudes, int64_t group_size,
                      bool past_cache, float* noisy);

    // To be called by each thread after its last write past the cache, before others read what it wrote.
    void (*finish_writes)();

    // copies = gradients; products[i] = gradients[i] * z[i].
    void (*multiply_noise)(const NoiseRun& run, const float* gradients, bool past_cache, float* copies,
                           float* products);
    // sums[g] = sum of the group's products in float32, pairwise; group_size 1, 2, 4, 8 or 16.
    void (*sum_groups)(const float* products, int64_t groups, int64_t group_size, float* sums);
    // In double: eight lanes by i % 8, then pairwise.
    double (*sum)(const float* values, int64_t count);
    double (*dot)(const float* a, const float* b, int64_t count);

    // The groups' steps, and gradients[g] = length * sum * d step / d logit; those that are not finite become
    // 0 and are counted.
    int64_t (*make_logit_gradients)(const GroupSums& groups, const BitsRule& rule, float* steps,
                                    float* gradients);

    Range (*find_range)(const float* values, int64_t count);

    void (*floats_from_halves)(const uint16_t* halves, DType dtype, int64_t count, float* values);
    void (*halves_from_floats)(const float* values, DType dtype, int64_t count, uint16_t* halves);

    // See quantize.h.
    void (*quantize)(const float* weights, int64_t count, const LevelGrid& grid, uint32_t* levels);
    void (*dequantize)(const uint32_t* levels, int64_t count, const LevelGrid& grid, bool past_cache,
                       float* weights);

    // doubts[w] = 1 where logits 64 w ... 64 w + 63 hold one in doubt, else 0.
    void (*find_widths)(const WidthThresholds& thresholds, const float* logits, int64_t count,
                        uint8_t* widths, uint8_t* doubts);

    // One block, see words.h.
    void (*pack_words)(int width, const uint32_t* levels, int64_t lanes, uint32_t* words);
    void (*unpack_words)(int width, const uint32_t* words, int64_t lanes, uint32_t* levels);

    // Whole rows of 32 lanes, at most kCodedRows: levels [rows][32]. Behind `words` so many times 32, and
    // kCodedReadAhead more, are readable. Returns the place behind the last one that was taken. escaped: bit
    // r is set where row r has the escape.
    const uint16_t* (*decode_rows)(const CodedSlots& code, uint32_t* states, const uint16_t* words,
                                   int64_t rows, int32_t* levels, uint32_t* escaped);

    // A block of at most kBlockColumns activations in whole numbers from -127 to 127, as `unit`, which is
    // returned, counts them; NaN, and zeros, where one is not finite.
    float (*round_block)(const float* values, int64_t count, int8_t* whole);

    // products[v] of the row with each vector, to rounding; values [columns] bit for bit. kReadBehindRows
    // bytes behind the row are readable.
    void (*multiply_row)(const PackedRow& row, const RowVectors& vectors, float* products);
    int64_t row_vectors;  // that it takes at once
    void (*unpack_row)(const PackedRow& row, float* values);

    // The levels of a row of no wider ones, whose segments are whole sixteens or one; up to kReadBehind bytes
    // behind `levels` [columns] are written, too.
    void (*unpack_bytes)(const PackedRow& row, uint8_t* levels);
    // levels [kPanelRows][blocks][kBlockColumns] as a part of a RowPanel has them.
    void (*interleave_rows)(const uint8_t* levels, int64_t blocks, uint8_t* panel);
    // products: of each vector those with all parts' rows, `stride` apart, to rounding: in whole numbers but
    // for the sum of pieces.
    void (*multiply_panel)(const RowPanel& panel, const WholeVectors& vectors, float* products,
                           int64_t stride);
    PanelForm panels;
    // products[v * apart + r]: of vector v and row r, whose count is of whole fours, as many columns as whole
    // sixteens are. Null: torch does that as fast.
    void (*multiply_floats)(const FloatRows& rows, const FloatRows& vectors, int64_t columns, float* products,
                            int64_t apart);

    // Returns all values of the tile joined by "or", with their sign: what has a bit that a value has.
    uint64_t (*pack_planes)(const PlaneTile& tile, const void* values, int value_bytes, void* planes);
    void (*unpack_planes)(const PlaneTile& tile, const void* planes, int16_t* values);
};

// Null where the compiler or the machine it compiles for has no such instructions. What runs is dispatch.h's
// choice.
const Kernels* scalar_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_vnni_kernels();
const Kernels* avx512_vbmi_kernels();
const Kernels* neon_kernels();

}  // namespace diffq_fast
