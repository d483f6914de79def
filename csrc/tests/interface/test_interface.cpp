#include <cmath>
#include <cstring>
#include <thread>

#include "tests/check.h"
#include "tests/interface/reading.h"
#include "tests/sealed_file.h"

using namespace diffq_fast;

namespace {

const char* const kGolden[] = {"packed_v1_documented",
                               "packed_v1_kinds",
                               "packed_v1_even_and_scaled",
                               "packed_v2_coded",
                               "packed_v2_short_ranges",
                               "house/diffq",
                               "house/diffq_half",
                               "house/diffq_ranges_per_group",
                               "house/lsq",
                               "house/uniform",
                               "house/uniform_fractional"};

std::string path_of(const std::string& name) {
    return std::string(DIFFQ_FAST_DATA) + "/" + name + ".safetensors";
}

FileBytes golden(const std::string& name) {
    return read_bytes(path_of(name));
}

// What a reader takes for a file of so many bytes at most, beside the tensors that it is asked for.
size_t bound_of(size_t bytes) {
    return 20 * bytes + (size_t{64} << 10);
}

diffq_fast_status open_bytes(const FileBytes& bytes, diffq_fast_file** file,
                             diffq_fast_error* error = nullptr) {
    return diffq_fast_open_memory(bytes.data(), bytes.size(), nullptr, file, error);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), 4 * a.size()) == 0);
}

// The page's example: section 9 of docs/packed_format.md.
void the_documented_file_is_what_the_page_says() {
    diffq_fast_file* file = nullptr;
    diffq_fast_error error;
    CHECK(diffq_fast_open_path(path_of("packed_v1_documented").c_str(), nullptr, &file, &error) ==
          DIFFQ_FAST_OK);
    CHECK(error.status == DIFFQ_FAST_OK && error.message[0] == '\0' && diffq_fast_count(file) == 3);
    diffq_fast_tensor tensor;
    size_t index = 9;
    CHECK(diffq_fast_find(file, "v", &index, nullptr) == DIFFQ_FAST_OK && index == 2);
    CHECK(diffq_fast_describe(file, index, &tensor, nullptr) == DIFFQ_FAST_OK);
    CHECK(std::strcmp(tensor.name, "v") == 0 && std::strcmp(tensor.tied_to, "w") == 0);
    CHECK(tensor.packed == 1 && tensor.coded == 0 && tensor.least_bits == 2 && tensor.most_bits == 3);
    CHECK(tensor.rank == 2 && tensor.shape[0] == 2 && tensor.shape[1] == 3 && tensor.group_size == 4);
    CHECK(std::strcmp(tensor.dtype, "F32") == 0 && tensor.stored_dtype == nullptr &&
          tensor.stored_bytes == 30);
    float values[6];
    CHECK(diffq_fast_read_float32(file, index, values, 6, nullptr) == DIFFQ_FAST_OK);
    const float expected[] = {0, 1, 2, 3, 0.42857146f, 3};
    CHECK(std::memcmp(values, expected, sizeof values) == 0);
    CHECK(diffq_fast_find(file, "b", &index, nullptr) == DIFFQ_FAST_OK);
    CHECK(diffq_fast_describe(file, index, &tensor, nullptr) == DIFFQ_FAST_OK && tensor.packed == 0);
    CHECK(std::strcmp(tensor.dtype, "F32") == 0 && std::strcmp(tensor.stored_dtype, "F16") == 0);
    CHECK(diffq_fast_read_float32(file, index, values, 1, nullptr) == DIFFQ_FAST_OK && values[0] == 0.25f);
    const void* data = nullptr;
    size_t bytes = 0;
    CHECK(diffq_fast_plain_data(file, index, &data, &bytes, nullptr) == DIFFQ_FAST_OK && bytes == 2);
    CHECK(std::memcmp(data, "\x00\x34", 2) == 0);
    CHECK(diffq_fast_validate(file, nullptr) == DIFFQ_FAST_OK);
    diffq_fast_close(file);
}

void golden_files_are_read_at_every_address_and_lazily() {
    for (const char* name : kGolden) {
        const FileBytes bytes = golden(name);
        CHECK(!bytes.empty());
        CountedMemory memory;
        const Reading first = read_everything(bytes.data(), bytes.size(), memory, false);
        CHECK(first.status == DIFFQ_FAST_OK && !first.names.empty());
        for (size_t shift = 1; shift < 8; ++shift) {
            FileBytes moved(shift, 0);
            moved.insert(moved.end(), bytes.begin(), bytes.end());
            const Reading again = read_everything(moved.data() + shift, bytes.size(), memory, shift % 2 == 0);
            CHECK(again.status == DIFFQ_FAST_OK && again.names == first.names);
            for (size_t i = 0; i < first.values.size(); ++i)
                CHECK(same_bits(again.values[i], first.values[i]));
        }
        CHECK(memory.used == 0 && memory.calls > 0);
    }
}

void opening_takes_memory_in_proportion_to_the_file() {
    for (const char* name : kGolden) {
        const FileBytes bytes = golden(name);
        CountedMemory memory;
        const diffq_fast_allocator hooks = memory.hooks();
        const diffq_fast_options options{&hooks, 0};
        diffq_fast_file* file = nullptr;
        CHECK(diffq_fast_open_memory(bytes.data(), bytes.size(), &options, &file, nullptr) == DIFFQ_FAST_OK);
        CHECK(memory.used > 0 && memory.most <= bound_of(bytes.size()));
        diffq_fast_close(file);
        CHECK(memory.used == 0);
    }
}

// Wherever an allocation fails, the status says so, and nothing is lost.
void failing_memory_is_a_status() {
    for (const char* name : {"packed_v1_documented", "packed_v2_coded", "packed_v2_short_ranges"}) {
        const FileBytes bytes = golden(name);
        CountedMemory whole;
        CHECK(read_everything(bytes.data(), bytes.size(), whole, false).status == DIFFQ_FAST_OK);
        const size_t calls = whole.calls, step = calls / 200 + 1;
        for (size_t fail_at = 1; fail_at <= calls; fail_at += step) {
            CountedMemory memory;
            memory.fail_at = fail_at;
            CHECK(read_everything(bytes.data(), bytes.size(), memory, false).status ==
                  DIFFQ_FAST_OUT_OF_MEMORY);
            CHECK(memory.used == 0);
        }
    }
}

void every_flipped_bit_is_found() {
    FileBytes bytes = golden("packed_v1_documented");
    for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
        bytes[bit / 8] = static_cast<uint8_t>(bytes[bit / 8] ^ 1u << bit % 8);
        diffq_fast_file* file = nullptr;
        diffq_fast_error error;
        CHECK(open_bytes(bytes, &file, &error) == DIFFQ_FAST_BAD_FILE && file == nullptr);
        CHECK(std::strncmp(error.message, "diffq_fast_open_memory: memory: ", 32) == 0);
        bytes[bit / 8] = static_cast<uint8_t>(bytes[bit / 8] ^ 1u << bit % 8);
    }
}

void every_truncation_and_extension_is_found() {
    const FileBytes bytes = golden("packed_v1_documented");
    diffq_fast_file* file = nullptr;
    for (size_t length = 0; length < bytes.size(); ++length) {
        const FileBytes part(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length));
        CHECK(open_bytes(part, &file) == DIFFQ_FAST_BAD_FILE);
    }
    FileBytes more = bytes;
    more.push_back(0);
    CHECK(open_bytes(more, &file) == DIFFQ_FAST_BAD_FILE);
}

void a_lazy_file_is_verified_when_it_is_read() {
    FileBytes bytes = golden("packed_v1_documented");
    bytes[0x290] ^= 1;  // in w.words
    const diffq_fast_options lazy{nullptr, 1};
    diffq_fast_file* file = nullptr;
    diffq_fast_error error;
    float values[6];
    CHECK(diffq_fast_open_memory(bytes.data(), bytes.size(), nullptr, &file, &error) == DIFFQ_FAST_BAD_FILE);
    CHECK(diffq_fast_open_memory(bytes.data(), bytes.size(), &lazy, &file, &error) == DIFFQ_FAST_OK);
    CHECK(diffq_fast_read_float32(file, 1, values, 1, &error) == DIFFQ_FAST_OK && values[0] == 0.25f);
    CHECK(diffq_fast_read_float32(file, 0, values, 6, &error) == DIFFQ_FAST_BAD_FILE);
    CHECK(std::strstr(error.message, "w.words: checksum") != nullptr);
    CHECK(diffq_fast_validate(file, &error) == DIFFQ_FAST_BAD_FILE);
    diffq_fast_close(file);
}

// Sealed again: what lies behind the checksums has to refuse it, or to give values, in bounded memory.
void a_thousand_corrupted_files_are_refused_or_read() {
    std::mt19937 generator(7);
    std::vector<FileBytes> files;
    for (const char* name : kGolden) files.push_back(golden(name));
    int read = 0, refused = 0;
    for (int run = 0; run < 1000; ++run) {
        FileBytes bytes = files[static_cast<size_t>(run) % files.size()];
        for (unsigned change = 0; change <= generator() % 4; ++change) {
            const size_t place = generator() % bytes.size();
            bytes[place] = static_cast<uint8_t>(generator() % 3 == 0 ? generator()
                                                                     : bytes[place] ^ 1u << generator() % 8);
        }
        if (run % 8 != 0) seal(bytes);
        CountedMemory memory;
        const size_t elements = 1 << 16;
        const Reading reading = read_everything(bytes.data(), bytes.size(), memory, run % 2 == 0, elements);
        CHECK(reading.status == DIFFQ_FAST_OK || reading.status == DIFFQ_FAST_BAD_FILE);
        CHECK(memory.used == 0 && memory.most <= bound_of(bytes.size()) + 32 * elements);
        ++(reading.status == DIFFQ_FAST_OK ? read : refused);
    }
    CHECK(read > 100 && refused > 100);  // the forgeries reach both
}

void products_equal_those_of_the_values() {
    for (const char* name : kGolden) {
        const FileBytes bytes = golden(name);
        diffq_fast_file* file = nullptr;
        CHECK(open_bytes(bytes, &file) == DIFFQ_FAST_OK);
        for (size_t index = 0; index < diffq_fast_count(file); ++index) {
            diffq_fast_matrix* matrix = nullptr;
            diffq_fast_tensor tensor;
            diffq_fast_describe(file, index, &tensor, nullptr);
            const diffq_fast_status status = diffq_fast_matrix_open(file, index, &matrix, nullptr);
            const bool fits = tensor.packed != 0 && tensor.rank >= 2 && tensor.count > 0;
            CHECK(status == (fits ? DIFFQ_FAST_OK : DIFFQ_FAST_UNSUPPORTED));
            if (!fits) continue;
            const size_t rows = diffq_fast_matrix_rows(matrix), columns = diffq_fast_matrix_columns(matrix);
            std::vector<float> values(rows * columns), products(3 * rows);
            const std::vector<float> vectors = random_floats(static_cast<int64_t>(3 * columns), 1);
            diffq_fast_read_float32(file, index, values.data(), values.size(), nullptr);
            CHECK(diffq_fast_matrix_multiply(matrix, vectors.data(), 3, products.data(), nullptr) ==
                  DIFFQ_FAST_OK);
            // Products are of the weight before it is rounded to its type; levels are rounded in steps.
            const double rounding = std::strcmp(tensor.dtype, "F32") == 0 ? 1e-5 : 1e-2;
            for (size_t v = 0; v < 3; ++v) {
                for (size_t r = 0; r < rows; ++r) {
                    double sum = 0, size = 1;
                    for (size_t c = 0; c < columns; ++c) {
                        const double product = double{values[r * columns + c]} * vectors[v * columns + c];
                        sum += product;
                        size += std::fabs(product);
                    }
                    CHECK(std::fabs(products[v * rows + r] - sum) <= rounding * size);
                }
            }
            diffq_fast_matrix_close(matrix);
        }
        diffq_fast_close(file);
    }
}

void bad_arguments_are_statuses() {
    diffq_fast_file* file = nullptr;
    diffq_fast_error error;
    CHECK(diffq_fast_open_path(nullptr, nullptr, &file, &error) == DIFFQ_FAST_BAD_ARGUMENT);
    CHECK(diffq_fast_open_path("no/such/file", nullptr, &file, &error) == DIFFQ_FAST_CANNOT_OPEN);
    CHECK(std::strstr(error.message, "no/such/file") != nullptr);
    const diffq_fast_status folder = diffq_fast_open_path(DIFFQ_FAST_DATA, nullptr, &file, &error);
    CHECK(folder == DIFFQ_FAST_BAD_FILE || folder == DIFFQ_FAST_CANNOT_OPEN);  // as the system has it
    CHECK(diffq_fast_open_memory(nullptr, 5, nullptr, &file, &error) == DIFFQ_FAST_BAD_ARGUMENT);
    CHECK(diffq_fast_open_memory(nullptr, 0, nullptr, &file, &error) == DIFFQ_FAST_BAD_FILE);
    CHECK(diffq_fast_open_memory("", 0, nullptr, nullptr, &error) == DIFFQ_FAST_BAD_ARGUMENT);
    const diffq_fast_allocator half{nullptr, nullptr, nullptr};
    const diffq_fast_options options{&half, 0};
    CHECK(diffq_fast_open_memory("", 0, &options, &file, &error) == DIFFQ_FAST_BAD_ARGUMENT);
    const FileBytes bytes = golden("packed_v1_documented");
    CHECK(open_bytes(bytes, &file) == DIFFQ_FAST_OK);
    float values[6];
    size_t index;
    CHECK(diffq_fast_read_float32(file, 3, values, 6, &error) == DIFFQ_FAST_BAD_ARGUMENT);
    CHECK(diffq_fast_read_float32(file, SIZE_MAX, values, 6, &error) == DIFFQ_FAST_BAD_ARGUMENT);
    CHECK(diffq_fast_read_float32(file, 0, values, 5, &error) == DIFFQ_FAST_BAD_ARGUMENT);
    CHECK(diffq_fast_read_float32(file, 0, nullptr, 6, &error) == DIFFQ_FAST_BAD_ARGUMENT);
    CHECK(diffq_fast_read_float32(nullptr, 0, values, 6, &error) == DIFFQ_FAST_BAD_ARGUMENT);
    CHECK(diffq_fast_find(file, "nothing", &index, &error) == DIFFQ_FAST_NOT_FOUND);
    CHECK(std::strstr(error.message, "no entry 'nothing'") != nullptr);
    CHECK(diffq_fast_matrix_multiply(nullptr, values, 1, values, &error) == DIFFQ_FAST_BAD_ARGUMENT);
    CHECK(diffq_fast_count(nullptr) == 0 && diffq_fast_matrix_rows(nullptr) == 0);
    diffq_fast_close(file);
    diffq_fast_close(nullptr);
    diffq_fast_matrix_close(nullptr);
    CHECK(std::strcmp(diffq_fast_status_text(DIFFQ_FAST_BAD_FILE), "bad file") == 0);
    CHECK(std::strcmp(diffq_fast_status_text(99), "unknown status") == 0);
}

void threads_read_one_file_at_once() {
    const FileBytes bytes = golden("packed_v2_coded");
    const diffq_fast_options lazy{nullptr, 1};
    diffq_fast_file* file = nullptr;
    CHECK(diffq_fast_open_memory(bytes.data(), bytes.size(), &lazy, &file, nullptr) == DIFFQ_FAST_OK);
    std::vector<std::vector<float>> found(4);
    std::vector<std::thread> threads;
    for (std::vector<float>& mine : found) {
        threads.emplace_back([&] {
            for (size_t index = 0; index < diffq_fast_count(file); ++index) {
                diffq_fast_tensor tensor;
                diffq_fast_describe(file, index, &tensor, nullptr);
                std::vector<float> values(static_cast<size_t>(tensor.count));
                if (diffq_fast_read_float32(file, index, values.data(), values.size(), nullptr) !=
                    DIFFQ_FAST_OK)
                    continue;
                mine.insert(mine.end(), values.begin(), values.end());
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(!found[0].empty());
    for (const auto& mine : found) CHECK(same_bits(mine, found[0]));
    diffq_fast_close(file);
}

}  // namespace

RUN_TESTS(the_documented_file_is_what_the_page_says, golden_files_are_read_at_every_address_and_lazily,
          opening_takes_memory_in_proportion_to_the_file, failing_memory_is_a_status,
          every_flipped_bit_is_found, every_truncation_and_extension_is_found,
          a_lazy_file_is_verified_when_it_is_read, a_thousand_corrupted_files_are_refused_or_read,
          products_equal_those_of_the_values, bad_arguments_are_statuses, threads_read_one_file_at_once)
