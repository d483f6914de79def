// Reads all that a file gives, through the C interface, with memory that is counted.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "diffq_fast.h"

// Counts what is taken; fails at the call number `fail_at`, if that is not 0.
struct CountedMemory {
    std::atomic<size_t> used{0}, most{0}, calls{0};
    size_t fail_at = 0;

    diffq_fast_allocator hooks() { return {allocate, release, this}; }

  private:
    static void* allocate(void* context, size_t bytes) {
        auto& self = *static_cast<CountedMemory*>(context);
        if (++self.calls == self.fail_at) return nullptr;
        const size_t used = self.used += bytes;
        if (used > self.most) self.most = used;
        return std::malloc(bytes);
    }
    static void release(void* context, void* block, size_t bytes) {
        static_cast<CountedMemory*>(context)->used -= bytes;
        std::free(block);
    }
};

struct Reading {
    diffq_fast_status status;  // the first one that is none of ok and unsupported
    std::string message;
    std::vector<std::string> names;
    std::vector<std::vector<float>> values;  // of the entries; none where they are not floating
};

// Rows and products of a packed weight against its values; false where they differ.
inline bool matrix_agrees(const diffq_fast_file* file, size_t index, const std::vector<float>& values,
                          diffq_fast_status& status) {
    diffq_fast_matrix* matrix = nullptr;
    status = diffq_fast_matrix_open(file, index, &matrix, nullptr);
    if (status != DIFFQ_FAST_OK) return matrix == nullptr;
    const size_t rows = diffq_fast_matrix_rows(matrix), columns = diffq_fast_matrix_columns(matrix);
    std::vector<int64_t> all(rows);
    for (size_t row = 0; row < rows; ++row) all[row] = static_cast<int64_t>(row);
    std::vector<float> found(values.size()), vector(columns, 0.5f), products(rows);
    bool same = rows * columns == values.size();
    same =
        same && diffq_fast_matrix_read_rows(matrix, all.data(), rows, found.data(), nullptr) == DIFFQ_FAST_OK;
    same = same && std::memcmp(values.data(), found.data(), 4 * found.size()) == 0;
    same = same &&
           diffq_fast_matrix_multiply(matrix, vector.data(), 1, products.data(), nullptr) == DIFFQ_FAST_OK;
    const int64_t outside = static_cast<int64_t>(rows);
    same = same &&
           diffq_fast_matrix_read_rows(matrix, &outside, 1, found.data(), nullptr) == DIFFQ_FAST_BAD_ARGUMENT;
    diffq_fast_matrix_close(matrix);
    return same;
}

// most_elements: of an entry that is read; larger ones are passed over.
inline Reading read_everything(const void* data, size_t bytes, CountedMemory& memory, bool lazy,
                               size_t most_elements = SIZE_MAX) {
    const diffq_fast_allocator hooks = memory.hooks();
    const diffq_fast_options options{&hooks, lazy ? 1 : 0};
    diffq_fast_file* file = nullptr;
    diffq_fast_error error;
    Reading reading{diffq_fast_open_memory(data, bytes, &options, &file, &error), "", {}, {}};
    const auto note = [&](diffq_fast_status status) {
        if (status == DIFFQ_FAST_OK || status == DIFFQ_FAST_UNSUPPORTED || reading.status != DIFFQ_FAST_OK)
            return;
        reading.status = status;
        reading.message = error.message;
    };
    if (reading.status != DIFFQ_FAST_OK) {
        reading.message = error.message;
        return reading;
    }
    for (size_t index = 0; index < diffq_fast_count(file); ++index) {
        diffq_fast_tensor tensor;
        note(diffq_fast_describe(file, index, &tensor, &error));
        reading.names.emplace_back(tensor.name, tensor.name_bytes);
        const auto count = static_cast<size_t>(tensor.count);
        std::vector<float> values(count > most_elements ? 0 : count);
        if (count <= most_elements) {
            const diffq_fast_status status =
                diffq_fast_read_float32(file, index, values.data(), count, &error);
            note(status);
            if (status != DIFFQ_FAST_OK) values.clear();
            diffq_fast_status opened = DIFFQ_FAST_OK;
            if (status == DIFFQ_FAST_OK && tensor.packed != 0 && !matrix_agrees(file, index, values, opened))
                note(DIFFQ_FAST_INTERNAL);
            if (opened != DIFFQ_FAST_UNSUPPORTED) note(opened);
        }
        reading.values.push_back(values);
    }
    note(diffq_fast_validate(file, &error));
    diffq_fast_close(file);
    return reading;
}
