// The C interface: handles, statuses and messages over core/file. No exception leaves it.
#include "diffq_fast.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "core/file/packed_matrix.h"
#include "core/file/weight_values.h"
#include "interface/handle.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "diffq_fast: files are little-endian, and so must the machine be"
#endif

using namespace diffq_fast;

struct diffq_fast_matrix {
    explicit diffq_fast_matrix(const MemoryHooks& given) : hooks(given), packed(hooks) {}

    MemoryHooks hooks;
    PackedMatrix packed;
};

namespace {

constexpr char kVersion[] = DIFFQ_FAST_VERSION;

bool bad_argument(Failure& failure, const char* problem) {
    return failure.fail(Status::bad_argument, "%s", problem);
}

const char* source_of(const diffq_fast_file* file) {
    return file == nullptr ? nullptr : file->source.data();
}

MemoryHooks hooks_of(const diffq_fast_options* options) {
    if (options == nullptr || options->allocator == nullptr) return malloc_hooks();
    return {options->allocator->allocate, options->allocator->release, options->allocator->context};
}

template <typename T>
void destroy(T* handle) {
    if (handle == nullptr) return;
    const MemoryHooks hooks = handle->hooks;
    handle->~T();
    hooks.release(hooks.context, handle, sizeof(T));
}

// Gives a handle back unless it is let go.
template <typename T>
class Owned {
  public:
    template <typename... Arguments>
    explicit Owned(const MemoryHooks& hooks, const Arguments&... arguments) {
        void* const place = hooks.allocate(hooks.context, sizeof(T));
        if (place == nullptr) throw std::bad_alloc();
        try {
            handle_ = new (place) T(hooks, arguments...);
        } catch (...) {
            hooks.release(hooks.context, place, sizeof(T));
            throw;
        }
    }
    ~Owned() { destroy(handle_); }
    Owned(const Owned&) = delete;
    Owned& operator=(const Owned&) = delete;

    T* operator->() { return handle_; }
    T* let_go() {
        T* const handle = handle_;
        handle_ = nullptr;
        return handle;
    }

  private:
    T* handle_;
};

// map(mapped file, failure): the bytes that are to be read.
template <typename Map>
diffq_fast_status open_file(const char* who, const char* source, const diffq_fast_options* options,
                            diffq_fast_file** file, diffq_fast_error* error, Map&& map) {
    return guarded(who, source, error, [&](Failure& failure) {
        const MemoryHooks hooks = hooks_of(options);
        if (file == nullptr) return bad_argument(failure, "file must not be null");
        if (hooks.allocate == nullptr || hooks.release == nullptr)
            return bad_argument(failure, "the allocator must have both of its functions");
        Owned<diffq_fast_file> opened(hooks, source);
        Bytes bytes{nullptr, 0};
        std::string_view header;
        if (!map(opened->mapped, bytes, failure) || !find_header(bytes, header, failure)) return false;
        opened->packed.emplace(bytes, header, opened->hooks);
        const bool lazy = options != nullptr && options->lazy != 0;
        if (!opened->packed->read(failure) || (!lazy && !opened->packed->verify_all(failure))) return false;
        *file = opened.let_go();
        return true;
    });
}

// Calls body(entry, failure) for an entry that there is.
template <typename Body>
diffq_fast_status with_entry(const char* who, const diffq_fast_file* file, size_t index, const void* result,
                             diffq_fast_error* error, Body&& body) {
    return guarded(who, source_of(file), error, [&](Failure& failure) {
        if (file == nullptr || result == nullptr)
            return bad_argument(failure, "file and result must not be null");
        const int64_t entries = file->packed->layout().entries();
        if (index >= static_cast<size_t>(entries))
            return failure.fail(Status::bad_argument, "entry %llu of %lld",
                                static_cast<unsigned long long>(index), static_cast<Number>(entries));
        return body(file->packed->entry(static_cast<int64_t>(index)), failure);
    });
}

int64_t stored_bytes_of(const PackedFile& packed, const Weight& weight) {
    int64_t bytes = 0;
    for (const int64_t part : {weight.levels, weight.range, weight.widths})
        bytes += part == kNone ? 0 : packed.tensor(part).bytes();
    return bytes;
}

void describe_weight(const PackedFile& packed, const Weight& weight, diffq_fast_tensor& tensor) {
    tensor.dtype = item_name(weight.type);
    tensor.shape = packed.layout().sizes.data() + weight.shape.first;
    tensor.rank = weight.shape.rank;
    tensor.count = weight.shape.count;
    tensor.stored_bytes = stored_bytes_of(packed, weight);
    tensor.group_size = weight.group_size;
    tensor.packed = 1;
    tensor.coded = weight.coded ? 1 : 0;
    for (int width = 1; width <= kMaxWidth && weight.scope != Scope::steps; ++width) {
        if (weight.level_counts[static_cast<size_t>(width)] == 0) continue;
        if (tensor.least_bits == 0) tensor.least_bits = width;
        tensor.most_bits = width;
    }
}

void describe_plain(const PackedFile& packed, const Plain& plain, diffq_fast_tensor& tensor) {
    const TensorEntry& stored = packed.tensor(plain.tensor);
    tensor.dtype = item_name(plain.type);
    tensor.stored_dtype = item_name(stored.type);
    tensor.shape = packed.container().sizes.data() + stored.shape.first;
    tensor.rank = stored.shape.rank;
    tensor.count = stored.shape.count;
    tensor.stored_bytes = stored.bytes();
}

bool is_plain_float(ItemType type) {
    const ItemType floats[] = {ItemType::f64,  ItemType::f32,     ItemType::f16,
                               ItemType::bf16, ItemType::f8_e4m3, ItemType::f8_e5m2};
    return std::find(std::begin(floats), std::end(floats), type) != std::end(floats);
}

bool read_entry(const PackedFile& packed, const Entry& entry, float* values, size_t count, Failure& failure) {
    const Shape& shape =
        entry.weight != nullptr ? entry.weight->shape : packed.tensor(entry.plain->tensor).shape;
    if (count != static_cast<uint64_t>(shape.count))
        return failure.fail(Status::bad_argument, "a buffer of %llu values for a tensor of %lld",
                            static_cast<unsigned long long>(count), static_cast<Number>(shape.count));
    if (entry.weight != nullptr) {
        return packed.verify(*entry.weight, failure) &&
               dequantize_weight(packed, *entry.weight, values, failure);
    }
    const ItemType stored = packed.tensor(entry.plain->tensor).type;
    if (!is_plain_float(stored))
        return failure.fail(Status::unsupported,
                            "a tensor of %s is not given as float32; see diffq_fast_plain_data",
                            item_name(stored));
    return packed.verify(*entry.plain, failure) && read_plain(packed, *entry.plain, values);
}

// Calls body(matrix, failure) where nothing is null.
template <typename Body>
diffq_fast_status with_matrix(const char* who, const diffq_fast_matrix* matrix, bool given,
                              diffq_fast_error* error, Body&& body) {
    return guarded(who, nullptr, error, [&](Failure& failure) {
        if (matrix == nullptr || !given) return bad_argument(failure, "no pointer may be null");
        return body(matrix->packed, failure);
    });
}

}  // namespace

extern "C" {

const char* diffq_fast_version(void) {
    return kVersion;
}

const char* diffq_fast_status_text(int status) {
    static const char* const kTexts[] = {"no error",    "bad argument",  "cannot open the file",
                                         "bad file",    "out of memory", "not found",
                                         "unsupported", "internal error"};
    const auto place = static_cast<size_t>(status);
    return place < sizeof kTexts / sizeof kTexts[0] ? kTexts[place] : "unknown status";
}

diffq_fast_status diffq_fast_open_path(const char* path, const diffq_fast_options* options,
                                       diffq_fast_file** file, diffq_fast_error* error) {
    const auto map = [&](MappedFile& mapped, Bytes& bytes, Failure& failure) {
        if (path == nullptr) return bad_argument(failure, "path must not be null");
        if (!mapped.map(path, failure)) return false;
        bytes = mapped.bytes();
        return true;
    };
    return open_file("diffq_fast_open_path", path == nullptr ? "" : path, options, file, error, map);
}

diffq_fast_status diffq_fast_open_memory(const void* data, size_t bytes, const diffq_fast_options* options,
                                         diffq_fast_file** file, diffq_fast_error* error) {
    const auto map = [&](MappedFile&, Bytes& found, Failure& failure) {
        if (data == nullptr && bytes > 0) return bad_argument(failure, "data must not be null");
        if (bytes > static_cast<size_t>(INT64_MAX)) return bad_argument(failure, "bytes are too many");
        found = {static_cast<const uint8_t*>(data), static_cast<int64_t>(bytes)};
        return true;
    };
    return open_file("diffq_fast_open_memory", "memory", options, file, error, map);
}

void diffq_fast_close(diffq_fast_file* file) {
    destroy(file);
}

diffq_fast_status diffq_fast_validate(const diffq_fast_file* file, diffq_fast_error* error) {
    return guarded("diffq_fast_validate", source_of(file), error, [&](Failure& failure) {
        if (file == nullptr) return bad_argument(failure, "file must not be null");
        return file->packed->verify_all(failure);
    });
}

size_t diffq_fast_count(const diffq_fast_file* file) {
    return file == nullptr ? 0 : static_cast<size_t>(file->packed->layout().entries());
}

diffq_fast_status diffq_fast_describe(const diffq_fast_file* file, size_t index, diffq_fast_tensor* tensor,
                                      diffq_fast_error* error) {
    return with_entry("diffq_fast_describe", file, index, tensor, error, [&](const Entry& entry, Failure&) {
        const PackedFile& packed = *file->packed;
        const Layout& layout = packed.layout();
        diffq_fast_tensor made{};
        if (entry.weight != nullptr) {
            describe_weight(packed, *entry.weight, made);
        } else {
            describe_plain(packed, *entry.plain, made);
        }
        if (made.rank == 0) made.shape = nullptr;
        const std::string_view name = packed.name(static_cast<int64_t>(index));
        made.name = name.data();
        made.name_bytes = name.size();
        const size_t stored = layout.weights.size() + layout.plain.size();
        if (index >= stored) made.tied_to = layout.ties[index - stored].name.data();
        *tensor = made;
        return true;
    });
}

diffq_fast_status diffq_fast_find(const diffq_fast_file* file, const char* name, size_t* index,
                                  diffq_fast_error* error) {
    return guarded("diffq_fast_find", source_of(file), error, [&](Failure& failure) {
        if (file == nullptr || name == nullptr || index == nullptr)
            return bad_argument(failure, "no pointer may be null");
        const int64_t entries = file->packed->layout().entries();
        for (int64_t number = 0; number < entries; ++number) {
            if (file->packed->name(number) != name) continue;
            *index = static_cast<size_t>(number);
            return true;
        }
        char shown[200];
        put_printable(name, shown, sizeof shown, sizeof shown);
        return failure.fail(Status::not_found, "no entry '%s'", shown);
    });
}

diffq_fast_status diffq_fast_read_float32(const diffq_fast_file* file, size_t index, float* values,
                                          size_t count, diffq_fast_error* error) {
    float none;
    float* const to = count == 0 ? &none : values;  // which may be null for a tensor without elements
    return with_entry("diffq_fast_read_float32", file, index, to, error,
                      [&](const Entry& entry, Failure& failure) {
                          return read_entry(*file->packed, entry, to, count, failure);
                      });
}

diffq_fast_status diffq_fast_plain_data(const diffq_fast_file* file, size_t index, const void** data,
                                        size_t* bytes, diffq_fast_error* error) {
    const void* const given = bytes == nullptr ? nullptr : data;
    return with_entry(
        "diffq_fast_plain_data", file, index, given, error, [&](const Entry& entry, Failure& failure) {
            if (entry.plain == nullptr)
                return failure.fail(Status::unsupported,
                                    "a packed weight has no plain data; see diffq_fast_read_float32");
            if (!file->packed->verify(*entry.plain, failure)) return false;
            const Bytes found = file->packed->data(entry.plain->tensor);
            *data = found.data;
            *bytes = static_cast<size_t>(found.size);
            return true;
        });
}

diffq_fast_status diffq_fast_matrix_open(const diffq_fast_file* file, size_t index,
                                         diffq_fast_matrix** matrix, diffq_fast_error* error) {
    return with_entry(
        "diffq_fast_matrix_open", file, index, matrix, error, [&](const Entry& entry, Failure& failure) {
            if (entry.weight == nullptr || entry.weight->shape.rank < 2 || entry.weight->shape.count == 0)
                return failure.fail(Status::unsupported,
                                    "expected a packed weight of two dimensions or more, with elements");
            if (!file->packed->verify(*entry.weight, failure)) return false;
            Owned<diffq_fast_matrix> made(file->hooks);
            if (!made->packed.make(*file->packed, *entry.weight, failure)) return false;
            *matrix = made.let_go();
            return true;
        });
}

void diffq_fast_matrix_close(diffq_fast_matrix* matrix) {
    destroy(matrix);
}

size_t diffq_fast_matrix_rows(const diffq_fast_matrix* matrix) {
    return matrix == nullptr ? 0 : static_cast<size_t>(matrix->packed.rows());
}

size_t diffq_fast_matrix_columns(const diffq_fast_matrix* matrix) {
    return matrix == nullptr ? 0 : static_cast<size_t>(matrix->packed.columns());
}

size_t diffq_fast_matrix_bytes(const diffq_fast_matrix* matrix) {
    return matrix == nullptr ? 0 : static_cast<size_t>(matrix->packed.bytes());
}

diffq_fast_status diffq_fast_matrix_multiply(const diffq_fast_matrix* matrix, const float* vectors,
                                             size_t count, float* results, diffq_fast_error* error) {
    const bool given = count == 0 || (vectors != nullptr && results != nullptr);
    return with_matrix("diffq_fast_matrix_multiply", matrix, given, error,
                       [&](const PackedMatrix& packed, Failure&) {
                           return packed.multiply(vectors, static_cast<int64_t>(count), results);
                       });
}

diffq_fast_status diffq_fast_matrix_read_rows(const diffq_fast_matrix* matrix, const int64_t* indices,
                                              size_t count, float* values, diffq_fast_error* error) {
    const bool given = count == 0 || (indices != nullptr && values != nullptr);
    const char* const who = "diffq_fast_matrix_read_rows";
    return with_matrix(who, matrix, given, error, [&](const PackedMatrix& packed, Failure& failure) {
        return packed.unpack(indices, static_cast<int64_t>(count), values) ||
               bad_argument(failure, "an index is out of bounds");
    });
}

}  // extern "C"
