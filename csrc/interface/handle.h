// What a diffq_fast_file is, and how an exception or a failure becomes a status.
#pragma once

#include <cstdio>
#include <cstring>
#include <new>
#include <optional>

#include "core/file/packed_file.h"
#include "diffq_fast.h"
#include "interface/mapped_file.h"

struct diffq_fast_file {
    diffq_fast_file(const diffq_fast::MemoryHooks& given, const char* path)
        : hooks(given),
          source(path, path + std::strlen(path) + 1, diffq_fast::HookedAllocator<char>(hooks)) {}

    diffq_fast::MemoryHooks hooks;
    diffq_fast::Vector<char> source;  // what messages call it
    diffq_fast::MappedFile mapped;
    std::optional<diffq_fast::PackedFile> packed;
};

namespace diffq_fast {

inline diffq_fast_status report(const Failure& failure, const char* who, const char* source,
                                diffq_fast_error* error) {
    const auto status = static_cast<diffq_fast_status>(failure.status);
    if (error == nullptr) return status;
    error->status = status;
    if (source == nullptr) {
        std::snprintf(error->message, sizeof error->message, "%s: %s", who, failure.message);
    } else {
        // The end of a long path says more than its beginning.
        const size_t length = std::strlen(source), most = 400;
        std::snprintf(error->message, sizeof error->message, "%s: %s%s: %s", who, length > most ? "..." : "",
                      source + (length > most ? length - most : 0), failure.message);
    }
    return status;
}

// Calls body(failure), which is false where something failed. source: what is read, or null.
template <typename Body>
diffq_fast_status guarded(const char* who, const char* source, diffq_fast_error* error, Body&& body) {
    Failure failure;
    try {
        if (!body(failure) && failure.status == Status::ok)
            failure.fail(Status::internal, "failed without a reason");
    } catch (const std::bad_alloc&) {
        failure.fail(Status::out_of_memory, "out of memory");
    } catch (...) {
        failure.fail(Status::internal, "an exception that nobody expected");
    }
    if (failure.status != Status::ok) return report(failure, who, source, error);
    if (error != nullptr) *error = diffq_fast_error{};
    return DIFFQ_FAST_OK;
}

}  // namespace diffq_fast
