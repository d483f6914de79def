// A file's bytes, mapped into memory. What reads them does not know of files.
#pragma once

#include "core/file/container.h"
#include "core/file/failure.h"

namespace diffq_fast {

class MappedFile {
  public:
    MappedFile() = default;
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    // To be called once. A pipe or a device is refused: one would wait, the other has no end.
    bool map(const char* path, Failure& failure);

    Bytes bytes() const { return bytes_; }

  private:
    Bytes bytes_{nullptr, 0};
};

}  // namespace diffq_fast
