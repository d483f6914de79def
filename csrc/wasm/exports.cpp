// What index.js calls beside the functions of diffq_fast.h: a file whose bytes arrive one after the other,
// the memory of calls, and what the C++ runtime lacks here.
//
// Errors are values, as everywhere in the core. The one exception that it throws, std::bad_alloc, is one of
// JavaScript's here: WebAssembly's own need a runtime that Debian does not have. It passes by all
// destructors, so index.js lets go of an instance that has thrown.
#include <algorithm>
#include <cstddef>
#include <cstdlib>

#include "interface/handle.h"

using namespace diffq_fast;

#define DIFFQ_FAST_IMPORT(name) __attribute__((import_module("env"), import_name(name)))

extern "C" [[noreturn]] DIFFQ_FAST_IMPORT("out_of_memory") void diffq_fast_throw_out_of_memory();

// index.js reads these fields where they are.
static_assert(offsetof(diffq_fast_error, message) == 4, "index.js: MESSAGE");
static_assert(sizeof(diffq_fast_error) == 1028, "index.js: ERROR_BYTES");
static_assert(offsetof(diffq_fast_tensor, name_bytes) == 4 && offsetof(diffq_fast_tensor, dtype) == 12 &&
                  offsetof(diffq_fast_tensor, stored_dtype) == 16 &&
                  offsetof(diffq_fast_tensor, shape) == 20 && offsetof(diffq_fast_tensor, rank) == 24 &&
                  offsetof(diffq_fast_tensor, count) == 32 &&
                  offsetof(diffq_fast_tensor, stored_bytes) == 40 &&
                  offsetof(diffq_fast_tensor, group_size) == 48 &&
                  offsetof(diffq_fast_tensor, packed) == 56 && offsetof(diffq_fast_tensor, coded) == 60 &&
                  offsetof(diffq_fast_tensor, least_bits) == 64 &&
                  offsetof(diffq_fast_tensor, most_bits) == 68 && sizeof(diffq_fast_tensor) == 72,
              "index.js: describe()");

namespace {

constexpr size_t kLeastRoom = 64 << 10, kMostBytes = size_t{1} << 31;

// The file of an instance. There is one at most.
struct Arriving {
    diffq_fast_file file;
    uint8_t* bytes;
    size_t size, room;

    Bytes all() const { return {bytes, static_cast<int64_t>(size)}; }
    const char* source() const { return file.source.data(); }

    bool make_room(size_t more, Failure& failure) {
        if (more > kMostBytes - size)
            return failure.fail(Status::unsupported, "more than 2 GiB, which is the most that fits here");
        if (more <= room - size) return true;
        // Half as much again, so that what arrives in many pieces is moved a few times only.
        const size_t wanted = std::max({size + more, room + room / 2, kLeastRoom});
        auto* const moved = static_cast<uint8_t*>(std::realloc(bytes, wanted));
        if (moved == nullptr) return failure.fail(Status::out_of_memory, "out of memory");
        bytes = moved;
        room = wanted;
        if (file.packed) file.packed->move_to(all());
        return true;
    }

    // ended: nothing else will arrive.
    bool take(size_t more, bool ended, Failure& failure) {
        size += more;
        if (!file.packed) {
            if (!ended && !has_header()) return true;
            std::string_view header;
            if (!find_header(all(), header, failure)) return false;
            file.packed.emplace(all(), header, file.hooks);
            if (!file.packed->read_header(ended, failure)) return false;
        }
        file.packed->move_to(all());
        const Container& container = file.packed->container();
        const bool too_long = all().size - container.data_start > container.data_bytes;
        return (!ended && !too_long) || check_length(container, all().size, failure);
    }

    // Or enough of it to see that it is none.
    bool has_header() const {
        if (size < 8) return false;
        uint64_t length = 0;
        for (int i = 0; i < 8; ++i) length |= uint64_t{bytes[i]} << 8 * i;
        return length > uint64_t{kMostHeaderBytes} || length <= size - 8;
    }
};

Arriving* arriving = nullptr;

}  // namespace

// Of the C++ runtime, whose own ones end the program.
void* operator new(size_t bytes) {
    void* const block = std::malloc(bytes == 0 ? 1 : bytes);
    if (block == nullptr) diffq_fast_throw_out_of_memory();
    return block;
}
void operator delete(void* block) noexcept {
    std::free(block);
}
void operator delete(void* block, size_t) noexcept {
    std::free(block);
}

namespace diffq_fast {

// There are no files to map.
bool MappedFile::map(const char*, Failure& failure) {
    return failure.fail(Status::cannot_open, "there are no files here");
}
MappedFile::~MappedFile() = default;

}  // namespace diffq_fast

extern "C" {

void* __cxa_allocate_exception(size_t bytes) noexcept {
    return operator new(bytes);
}
[[noreturn]] void __cxa_throw(void*, void*, void (*)(void*)) {
    diffq_fast_throw_out_of_memory();
}

// source: what messages call the file. To be called once.
diffq_fast_file* diffq_fast_wasm_open(const char* source) {
    arriving = new Arriving{{malloc_hooks(), source}, nullptr, 0, 0};
    return &arriving->file;
}

// Where the next `more` bytes are to be put; null: see the error.
uint8_t* diffq_fast_wasm_room(size_t more, diffq_fast_error* error) {
    const auto make = [&](Failure& failure) { return arriving->make_room(more, failure); };
    const bool made = guarded("room", arriving->source(), error, make) == DIFFQ_FAST_OK;
    return made ? arriving->bytes + arriving->size : nullptr;
}

// So many have been put there.
diffq_fast_status diffq_fast_wasm_take(size_t more, int ended, diffq_fast_error* error) {
    return guarded("take", arriving->source(), error,
                   [&](Failure& failure) { return arriving->take(more, ended != 0, failure); });
}

// Whether the header has arrived, and with it all names.
int diffq_fast_wasm_has_header() {
    return arriving->file.packed.has_value() ? 1 : 0;
}

// How long the file is, as its header has it.
double diffq_fast_wasm_length() {
    const Container& container = arriving->file.packed->container();
    return static_cast<double>(container.data_start + container.data_bytes);
}

// How much of the file has to be there before the entry can be read.
double diffq_fast_wasm_end_of(size_t index) {
    return static_cast<double>(arriving->file.packed->end_of(static_cast<int64_t>(index)));
}

// To be called once an entry has arrived, before anything else is asked of it.
diffq_fast_status diffq_fast_wasm_prepare(size_t index, diffq_fast_error* error) {
    return guarded("prepare", arriving->source(), error, [&](Failure& failure) {
        return arriving->file.packed->read_widths_of(static_cast<int64_t>(index), failure);
    });
}

// The number of the entry that another name is tied to; its own where it is not tied.
size_t diffq_fast_wasm_tied_to(size_t index) {
    const Layout& layout = arriving->file.packed->layout();
    const size_t stored = layout.weights.size() + layout.plain.size();
    return index < stored ? index : static_cast<size_t>(layout.ties[index - stored].entry);
}

// UTF-8, with a zero behind it: the metadata's version, or its quantizer, which is JSON.
const char* diffq_fast_wasm_version_of_file() {
    return arriving->file.packed->container().metadata.version.data();
}
const char* diffq_fast_wasm_quantizer() {
    return arriving->file.packed->container().metadata.quantizer.data();
}

// Gives back all that the file has; matrices stay.
void diffq_fast_wasm_close() {
    if (arriving == nullptr) return;
    std::free(arriving->bytes);
    delete arriving;
    arriving = nullptr;
}

}  // extern "C"
