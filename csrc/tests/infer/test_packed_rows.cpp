#include <cmath>
#include <cstring>
#include <string>

#include "core/infer/packed_rows.h"
#include "core/infer/row_panels.h"
#include "core/infer/unpacked_rows.h"
#include "core/isa/targets.h"
#include "core/runtime/dispatch.h"
#include "tests/check.h"

using namespace diffq_fast;

namespace {

struct Widths {
    int least, most;
    int64_t wide_rows = 0;  // the first ones, whose widths are of 9 to 16 bits
};

// Rows of random levels, and what they stand for.
struct Weight {
    Weight(int64_t rows, int64_t columns, int64_t segment, int64_t group_size, LevelMeaning meaning,
           Widths of_segments)
        : values(static_cast<size_t>(rows * columns)) {
        const int64_t segments = columns / segment;
        std::mt19937 generator(static_cast<uint32_t>(rows + columns + segment));
        const int64_t groups = group_size > 0 ? (rows * columns + group_size - 1) / group_size : 1;
        scales = random_floats(groups, 1);
        offsets = random_floats(groups, 2);
        widths.assign(static_cast<size_t>(rows * ((segments + 1) / 2)), 0);
        for (int64_t r = 0; r < rows; ++r) {
            data.resize((data.size() + kRowAlignment - 1) / kRowAlignment * kRowAlignment);
            starts.push_back(static_cast<uint32_t>(data.size() / kRowAlignment));
            for (int64_t s = 0; s < segments; ++s) {
                const Widths of_row = r < of_segments.wide_rows ? Widths{9, kMaxWidth} : of_segments;
                const auto choices = static_cast<uint32_t>(of_row.most - of_row.least + 1);
                const int width = of_row.least + static_cast<int>(generator() % choices);
                widths[static_cast<size_t>(r * ((segments + 1) / 2) + s / 2)] |=
                    static_cast<uint8_t>((width - 1) << (s % 2 * 4));
                segment_widths.push_back(static_cast<uint8_t>(width));
                const size_t begin = data.size();
                data.resize(begin + static_cast<size_t>((segment * width + 7) / 8));
                for (int64_t i = 0; i < segment; ++i) {
                    const uint32_t level = generator() & ((uint32_t{1} << width) - 1);
                    levels.push_back(static_cast<int32_t>(level));
                    for (int64_t bit = 0; bit < width; ++bit) {
                        const int64_t at = i * width + bit;
                        data[begin + static_cast<size_t>(at / 8)] |=
                            static_cast<uint8_t>((level >> bit & 1) << (at % 8));
                    }
                    const int64_t element = r * columns + s * segment + i;
                    const auto group = static_cast<size_t>(group_size > 0 ? element / group_size : 0);
                    const float top = static_cast<float>(meaning.level_count > 0 ? meaning.level_count - 1
                                                                                 : (int64_t{1} << width) - 1);
                    const float centred = static_cast<float>(level) - static_cast<float>(1 << (width - 1));
                    const float scaled = static_cast<float>(level) * (1.0f / top) * scales[group];
                    origins.push_back(std::fabs(meaning.centred
                                                    ? static_cast<float>(1 << (width - 1)) * scales[group]
                                                    : offsets[group]));
                    values[static_cast<size_t>(element)] =
                        meaning.centred ? centred * scales[group] : scaled + offsets[group];
                }
            }
        }
        starts.push_back(static_cast<uint32_t>((data.size() + kRowAlignment - 1) / kRowAlignment));
        data.resize(data.size() + kReadBehindRows);
        rows_ = {data.data(),   static_cast<int64_t>(data.size()),
                 starts.data(), widths.data(),
                 scales.data(), offsets.data(),
                 rows,          columns,
                 segment,       group_size,
                 meaning};
    }

    std::vector<uint8_t> data, widths, segment_widths;
    std::vector<int32_t> levels;
    std::vector<uint32_t> starts;
    std::vector<float> scales, offsets, values;
    std::vector<float> origins;  // how far from zero a level of 0 is
    PackedRows rows_;
};

struct Shape {
    int64_t rows, columns, segment, group_size;
};
const std::vector<Shape> kShapes = {
    {5, 64, 8, 0},      {19, 48, 16, 16},    {33, 96, 32, 0}, {3, 40, 8, 8},     {4, 27, 1, 8},
    {2, 100, 100, 0},   {3, 256, 64, 64},    {6, 96, 32, 64}, {7, 1, 1, 4},      {40, 8, 8, 0},
    {2, 8, 4, 4},       {3, 17, 17, 34},     {1, 1000, 8, 0}, {2, 1000, 200, 0}, {3, 96, 32, 32},
    {4, 9, 9, 0},       {2, 1024, 256, 256}, {3, 73, 73, 0},  {2, 4160, 64, 64}, {2, 2208, 32, 0},
    {40, 128, 64, 128}, {35, 512, 64, 64},   {3, 24, 8, 0}};

// A vector's blocks in whole numbers, in double precision.
void round_to_int8(float* vector, int64_t columns) {
    for (int64_t begin = 0; begin < columns; begin += kBlockColumns) {
        const int64_t end = std::min(begin + kBlockColumns, columns);
        float most = 0;
        for (int64_t i = begin; i < end; ++i) most = std::max(most, std::fabs(vector[i]));
        for (int64_t i = begin; i < end; ++i)
            vector[i] = static_cast<float>(std::nearbyint(double{vector[i]} * 127.0 / most) * most / 127.0);
    }
}

// To rounding. The vectors are those that were multiplied, rounded where they are. bias: what was added, if
// anything.
void check_products(const Weight& weight, const std::vector<float>& vectors,
                    const std::vector<float>& products, const std::vector<float>& bias = {}) {
    const int64_t rows = weight.rows_.rows, columns = weight.rows_.columns;
    for (int64_t v = 0; v < static_cast<int64_t>(vectors.size()) / columns; ++v) {
        for (int64_t r = 0; r < rows; ++r) {
            double product = bias.empty() ? 0 : bias[static_cast<size_t>(r)], size = std::fabs(product);
            for (int64_t c = 0; c < columns; ++c) {
                const double x = vectors[static_cast<size_t>(v * columns + c)];
                const double w = weight.values[static_cast<size_t>(r * columns + c)];
                product += x * w;
                size += std::fabs(x) * (std::fabs(w) + weight.origins[static_cast<size_t>(r * columns + c)]);
            }
            const double found = products[static_cast<size_t>(v * rows + r)];
            CHECK(std::fabs(found - product) <= size * 0x1p-21);
        }
    }
}

void check(const Shape& shape, LevelMeaning meaning, Activations activations, Widths widths) {
    const Weight weight(shape.rows, shape.columns, shape.segment, shape.group_size, meaning, widths);
    std::vector<int64_t> indices;
    for (int64_t r = 0; r < shape.rows; ++r) indices.push_back(r);
    std::vector<float> back(weight.values.size());
    CHECK(unpack_rows(weight.rows_, indices.data(), shape.rows, back.data(), 2));
    CHECK(std::memcmp(back.data(), weight.values.data(), 4 * back.size()) == 0);
    for (const int64_t count : {1, 2, 3, 4, 5, 8, 9}) {
        const std::vector<float> given = random_floats(count * shape.columns, 3);
        std::vector<float> vectors = given, products(static_cast<size_t>(count * shape.rows));
        CHECK(multiply_rows(weight.rows_, given.data(), count, activations, products.data(), 2));
        if (activations == Activations::int8)
            for (int64_t v = 0; v < count; ++v)
                round_to_int8(vectors.data() + v * shape.columns, shape.columns);
        check_products(weight, vectors, products);
        if (activations == Activations::exact && has_float_products()) {
            std::fill(products.begin(), products.end(), NAN);
            CHECK(multiply_unpacked(weight.rows_, given.data(), count, products.data(), 2));
            check_products(weight, vectors, products);
        }
        if (activations == Activations::exact || !fit_panels(weight.rows_)) continue;
        std::fill(products.begin(), products.end(), NAN);
        CHECK(multiply_panels(weight.rows_, given.data(), count, nullptr, products.data(), 2));
        check_products(weight, vectors, products);
        const std::vector<float> bias = random_floats(shape.rows, 5);
        std::fill(products.begin(), products.end(), NAN);
        CHECK(multiply_panels(weight.rows_, given.data(), count, bias.data(), products.data(), 2));
        check_products(weight, vectors, products, bias);
    }
}

// Whole numbers, of which each block has one of 127, so that a unit is 1.
std::vector<float> whole_numbers(int64_t count, int64_t columns) {
    std::mt19937 generator(7);
    std::vector<float> vectors;
    for (int64_t i = 0; i < count * columns; ++i) {
        const auto any = static_cast<float>(static_cast<int>(generator() % 255) - 127);
        vectors.push_back(i % columns % kBlockColumns == 0 ? -127.0f : any);
    }
    return vectors;
}

// Floats hold these products, and all that they are summed up from: they are the same bits whatever makes
// them.
void check_exact(const Shape& shape, int width) {
    Weight weight(shape.rows, shape.columns, shape.segment, shape.group_size, {true, 0}, {width, width});
    std::fill(weight.scales.begin(), weight.scales.end(), 0.5f);
    for (const int64_t count : {1, 2, 5, 7, 8, 13}) {
        const std::vector<float> vectors = whole_numbers(count, shape.columns);
        std::vector<float> expected;
        for (int64_t v = 0; v < count; ++v)
            for (int64_t r = 0; r < shape.rows; ++r) {
                int64_t product = 0;
                for (int64_t c = 0; c < shape.columns; ++c) {
                    const int32_t level = weight.levels[static_cast<size_t>(r * shape.columns + c)];
                    const float x = vectors[static_cast<size_t>(v * shape.columns + c)];
                    product += (level - (1 << (width - 1))) * static_cast<int64_t>(x);
                }
                expected.push_back(static_cast<float>(product) / 2);
            }
        std::vector<float> products(expected.size());
        for (const Activations activations : {Activations::exact, Activations::int8}) {
            CHECK(multiply_rows(weight.rows_, vectors.data(), count, activations, products.data(), 2));
            CHECK(products == expected);
        }
        if (has_float_products()) {
            std::fill(products.begin(), products.end(), NAN);
            CHECK(multiply_unpacked(weight.rows_, vectors.data(), count, products.data(), 3));
            CHECK(products == expected);
        }
        if (!fit_panels(weight.rows_)) continue;
        CHECK(multiply_panels(weight.rows_, vectors.data(), count, nullptr, products.data(), 2));
        CHECK(products == expected);
    }
}

void whole_numbers_have_the_same_products_on_every_instruction_set() {
    for (const Kernels* kernels : supported_kernels()) {
        CHECK(use_kernels(kernels->name));
        for (int width = 1; width <= 8; ++width)
            for (const Shape& shape :
                 {Shape{37, 192, 64, 0}, Shape{3, 96, 32, 32}, Shape{3, 160, 32, 160}, Shape{2, 200, 200, 0},
                  Shape{2, 65, 65, 65}, Shape{4, 72, 8, 8}, Shape{2, 48, 16, 16}, Shape{2, 7, 7, 0},
                  Shape{2, 20, 4, 4}, Shape{6, 600, 600, 0}})
                check_exact(shape, width);
    }
}

// The rows of one panel have one digit, two and three.
void levels_that_are_too_wide_for_panels_are_multiplied_digit_by_digit() {
    for (const Kernels* kernels : supported_kernels()) {
        CHECK(use_kernels(kernels->name));
        for (const Shape& shape :
             {Shape{128, 128, 64, 64}, Shape{45, 192, 32, 192}, Shape{33, 100, 100, 100}}) {
            const Weight weight(shape.rows, shape.columns, shape.segment, shape.group_size, {false, 0},
                                {3, 6, 16});
            const std::vector<float> given = random_floats(13 * shape.columns, 3);
            std::vector<float> vectors = given, products(static_cast<size_t>(13 * shape.rows));
            CHECK(multiply_panels(weight.rows_, given.data(), 13, nullptr, products.data(), 2));
            for (int64_t v = 0; v < 13; ++v) round_to_int8(vectors.data() + v * shape.columns, shape.columns);
            check_products(weight, vectors, products);
        }
    }
}

// Where all levels are wide, every panel is multiplied as often as they have digits.
void panels_are_fast_where_few_products_stand_for_one_of_floats() {
    for (const Kernels* kernels : supported_kernels()) {
        CHECK(use_kernels(kernels->name));
        const PanelForm form = kernels->panels;
        for (int width = 1; width <= kMaxWidth; ++width) {
            const int digits = (width + form.most_width - 1) / form.most_width;
            CHECK(are_panels_fast(Weight(40, 64, 64, 0, {true, 0}, {width, width}).rows_) ==
                  (digits <= form.passes));
        }
    }
}

// The largest levels and activations there are: sums of pairs must not overflow.
void extreme_levels_do_not_overflow() {
    for (int width = 1; width <= kernels().panels.most_width; ++width) {
        for (const int64_t segment : {32, 64, 192}) {
            Weight weight(17, 192, segment, 0, {true, 0}, {width, width});
            std::fill(weight.data.begin(), weight.data.end() - kReadBehindRows, uint8_t{255});
            const auto top = static_cast<float>((1 << width) - 1 - (1 << (width - 1)));
            std::fill(weight.values.begin(), weight.values.end(), top * weight.scales[0]);
            for (const float sign : {1.0f, -1.0f}) {
                const std::vector<float> vectors(static_cast<size_t>(5 * 192), sign * 127.0f);
                std::vector<float> products(static_cast<size_t>(5 * 17));
                CHECK(fit_panels(weight.rows_));
                CHECK(multiply_panels(weight.rows_, vectors.data(), 5, nullptr, products.data(), 1));
                check_products(weight, vectors, products);
            }
        }
    }
}

void rows_that_fit_no_panels_are_told() {
    CHECK(fit_panels(Weight(3, 192, 64, 0, {true, 0}, {1, kMaxWidth}).rows_));
    CHECK(!fit_panels(Weight(2, 48, 16, 0, {true, 0}, {4, 4}).rows_));
    CHECK(fit_panels(Weight(2, 33, 33, 0, {true, 0}, {7, 7}).rows_));
}

void every_instruction_set_unpacks_and_multiplies() {
    for (const Kernels* kernels : supported_kernels()) {
        CHECK(use_kernels(kernels->name));
        extreme_levels_do_not_overflow();
        for (const Shape& shape : kShapes)
            for (const LevelMeaning meaning :
                 {LevelMeaning{false, 0}, LevelMeaning{true, 0}, LevelMeaning{false, 7}})
                for (const Activations activations : {Activations::exact, Activations::int8})
                    for (const Widths widths :
                         {Widths{1, 8}, Widths{1, kMaxWidth}, Widths{2, 2}, Widths{4, 4}, Widths{1, 7},
                          Widths{8, 8}, Widths{9, 9}, Widths{kMaxWidth, kMaxWidth}})
                        check(shape, meaning, activations, meaning.level_count > 0 ? Widths{1, 3} : widths);
    }
}

// Vectors of lanes add up in another order than scalar code, which the last bits of products tell: those of
// the same bits everywhere would be made by the same code.
void every_set_of_vectors_has_products_of_its_own() {
    const Kernels* const scalar = supported_kernels().front();
    CHECK(std::string(scalar->name) == "scalar" && scalar->multiply_floats == nullptr);
#if defined(__aarch64__) && defined(DIFFQ_NEON_VECTORS)
    CHECK(supported_kernels().size() == 2 && std::string(supported_kernels().back()->name) == "neon");
#endif
    for (const Shape& shape : {Shape{40, 512, 64, 64}, Shape{40, 512, 64, 0}, Shape{40, 512, 32, 32},
                               Shape{40, 512, 8, 0}, Shape{40, 512, 8, 8}}) {
        for (const int width : {2, 4, 5, 12}) {
            const Weight weight(shape.rows, shape.columns, shape.segment, shape.group_size, {false, 0},
                                {width, width});
            for (const Activations activations : {Activations::exact, Activations::int8}) {
                for (const int64_t count : {1, 2, 3, 4}) {
                    const std::vector<float> vectors = random_floats(count * shape.columns, 3);
                    std::vector<float> expected(static_cast<size_t>(count * shape.rows)), products = expected;
                    const auto multiply = [&](const Kernels* kernels, std::vector<float>& to) {
                        CHECK(use_kernels(kernels->name));
                        CHECK(multiply_rows(weight.rows_, vectors.data(), count, activations, to.data(), 1));
                    };
                    multiply(scalar, expected);
                    for (const Kernels* kernels : supported_kernels()) {
                        if (kernels == scalar) continue;
                        multiply(kernels, products);
                        CHECK(products != expected);
                        CHECK(kernels->multiply_floats != nullptr);
                    }
                }
            }
        }
    }
}

void rows_outside_of_their_data_are_refused() {
    Weight weight(4, 64, 32, 0, {false, 0}, {1, 4});
    const std::vector<float> vector = random_floats(64, 1);
    std::vector<float> results(4 * 64);
    const std::vector<int64_t> bad = {-1, 4, INT64_MIN, INT64_MAX};
    for (const int64_t& index : bad) CHECK(!unpack_rows(weight.rows_, &index, 1, results.data(), 1));
    weight.starts[2] = UINT32_MAX;
    CHECK(!multiply_rows(weight.rows_, vector.data(), 1, Activations::exact, results.data(), 2));
    std::vector<float> many(4 * 9);
    const std::vector<float> vectors = random_floats(9 * 64, 1);
    CHECK(!multiply_panels(weight.rows_, vectors.data(), 9, nullptr, many.data(), 2));
    CHECK(!has_float_products() || !multiply_unpacked(weight.rows_, vectors.data(), 9, many.data(), 2));
    weight.starts[2] = weight.starts[4];
    CHECK(!multiply_rows(weight.rows_, vector.data(), 1, Activations::exact, results.data(), 2));
    weight.starts[2] = 0;
    CHECK(multiply_rows(weight.rows_, vector.data(), 1, Activations::exact, results.data(), 2));
    weight.rows_.bytes = kReadBehindRows;
    CHECK(!multiply_rows(weight.rows_, vector.data(), 1, Activations::exact, results.data(), 2));
}

void packing_gives_the_same_data() {
    for (const int64_t segment : {1, 3, 8, 24}) {
        const Weight weight(70, 24, segment, 0, {false, 0}, {1, 16});
        const RowsOfLevels given{
            weight.levels.data(), weight.segment_widths.data(), weight.starts.data(), 70, 24, segment};
        const auto bytes = static_cast<int64_t>(weight.data.size());
        std::vector<uint8_t> made(weight.data.size());
        CHECK(pack_rows(given, made.data(), bytes, 2) == RowsProblem::none);
        CHECK(made == weight.data);
        std::vector<uint8_t> part(weight.data.size() - kRowAlignment);
        const auto shorter = static_cast<int64_t>(part.size());
        CHECK(pack_rows(given, part.data(), shorter, 2) == RowsProblem::outside);
    }
}

void levels_and_widths_that_do_not_fit_are_told() {
    const uint32_t starts[] = {0, 1};
    for (const int32_t level : {4, -1, INT32_MIN}) {
        const int32_t levels[] = {3, level};
        uint8_t data[4 + kReadBehindRows]{};
        for (const uint8_t width : {2, 0, 17}) {
            const uint8_t widths[] = {width};
            const RowsProblem found = pack_rows({levels, widths, starts, 1, 2, 2}, data, sizeof data, 1);
            CHECK(found == (width == 2 ? RowsProblem::level : RowsProblem::width));
        }
    }
}

}  // namespace

RUN_TESTS(packing_gives_the_same_data, levels_and_widths_that_do_not_fit_are_told,
          every_instruction_set_unpacks_and_multiplies, every_set_of_vectors_has_products_of_its_own,
          rows_that_fit_no_panels_are_told, whole_numbers_have_the_same_products_on_every_instruction_set,
          levels_that_are_too_wide_for_panels_are_multiplied_digit_by_digit,
          panels_are_fast_where_few_products_stand_for_one_of_floats, rows_outside_of_their_data_are_refused)
