#include "interface/mapped_file.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>

#include <vector>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#endif

namespace diffq_fast {

#ifdef _WIN32
namespace {

bool system_failure(Failure& failure) {
    return failure.fail(Status::cannot_open, "the system's error %lu",
                        static_cast<unsigned long>(GetLastError()));
}

// Closes a handle of Windows.
struct Handle {
    HANDLE value;
    ~Handle() {
        if (value != nullptr && value != INVALID_HANDLE_VALUE) CloseHandle(value);
    }
};

}  // namespace

bool MappedFile::map(const char* path, Failure& failure) {
    const int length = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, nullptr, 0);
    if (length == 0) return system_failure(failure);
    std::vector<wchar_t> wide(static_cast<size_t>(length));
    MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide.data(), length);
    const Handle file{CreateFileW(wide.data(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr,
                                  OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr)};
    if (file.value == INVALID_HANDLE_VALUE) return system_failure(failure);
    if (GetFileType(file.value) != FILE_TYPE_DISK)
        return failure.fail(Status::bad_file,
                            "file: it is not a regular file; copy what it gives into one first");
    LARGE_INTEGER size;
    if (!GetFileSizeEx(file.value, &size)) return system_failure(failure);
    if (size.QuadPart == 0) return true;
    const Handle mapping{CreateFileMappingW(file.value, nullptr, PAGE_READONLY, 0, 0, nullptr)};
    if (mapping.value == nullptr) return system_failure(failure);
    const void* const data = MapViewOfFile(mapping.value, FILE_MAP_READ, 0, 0, 0);
    if (data == nullptr) return system_failure(failure);
    bytes_ = {static_cast<const uint8_t*>(data), static_cast<int64_t>(size.QuadPart)};
    return true;
}

MappedFile::~MappedFile() {
    if (bytes_.data != nullptr) UnmapViewOfFile(bytes_.data);
}
#else
namespace {

bool system_failure(Failure& failure, int code) {
    // strerror() may share its memory with other threads.
    return failure.fail(Status::cannot_open, "%s", std::generic_category().message(code).c_str());
}

// Closes a file descriptor.
struct Descriptor {
    int value;
    ~Descriptor() {
        if (value >= 0) close(value);
    }
};

}  // namespace

bool MappedFile::map(const char* path, Failure& failure) {
    // Opening a pipe that nobody writes to would wait.
    const Descriptor file{open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
    if (file.value < 0) return system_failure(failure, errno);
    struct stat status;
    if (fstat(file.value, &status) != 0) return system_failure(failure, errno);
    if (!S_ISREG(status.st_mode))
        return failure.fail(Status::bad_file,
                            "file: it is not a regular file; copy what it gives into one first");
    if (status.st_size == 0) return true;
    void* const data =
        mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_PRIVATE, file.value, 0);
    if (data == MAP_FAILED) return system_failure(failure, errno);
    bytes_ = {static_cast<const uint8_t*>(data), static_cast<int64_t>(status.st_size)};
    return true;
}

MappedFile::~MappedFile() {
    if (bytes_.data != nullptr) munmap(const_cast<uint8_t*>(bytes_.data), static_cast<size_t>(bytes_.size));
}
#endif

}  // namespace diffq_fast
