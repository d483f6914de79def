// A packed file in memory: read and verified, docs/packed_format.md section 7. What is read of it does not
// change it, so that several threads may read at once.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "core/file/container.h"
#include "core/file/layout.h"

namespace diffq_fast {

// An entry of the state dict: either is null. Tied names lead to what they are tied to.
struct Entry {
    const Weight* weight;
    const Plain* plain;
};

class PackedFile {
  public:
    // `hooks` outlive it. header: as find_header() gives it.
    PackedFile(Bytes file, std::string_view header, const MemoryHooks& hooks)
        : file_(file), header_(header), hooks_(hooks), container_(hooks, header.size()) {}
    PackedFile(const PackedFile&) = delete;
    PackedFile& operator=(const PackedFile&) = delete;

    // Reads header, layout and widths; to be called once, before anything else. Of the levels, ranges and
    // plain tensors only the sizes are looked at.
    bool read(Failure& failure);

    // The header alone. whole: the file's length is that of all. Else its bytes arrive one after the other:
    // the length and the widths of each weight are then still to be looked at, before anything is asked of
    // that weight; a tensor that has not arrived is refused.
    bool read_header(bool whole, Failure& failure);
    bool read_widths_of(int64_t number, Failure& failure);
    // More of the file has arrived, all of which lies here now.
    void move_to(Bytes file) { file_ = file; }
    // Where the file's bytes end that an entry is made of.
    int64_t end_of(int64_t number) const;

    // Verifies what else there is of a weight or a plain tensor, unless that was done before.
    bool verify(const Weight& weight, Failure& failure) const;
    bool verify(const Plain& plain, Failure& failure) const;
    bool verify_all(Failure& failure) const;

    const MemoryHooks& hooks() const { return hooks_; }
    const Container& container() const { return container_; }
    const Layout& layout() const { return *layout_; }
    const TensorEntry& tensor(int64_t number) const {
        return container_.tensors[static_cast<size_t>(number)];
    }
    Bytes data(int64_t number) const {
        const TensorEntry& entry = tensor(number);
        return {file_.data + container_.data_start + entry.begin, entry.bytes()};
    }

    // Weights first, then plain tensors, then tied names.
    Entry entry(int64_t number) const;
    std::string_view name(int64_t number) const;

  private:
    bool read_widths(Weight& weight, Failure& failure) const;
    bool verify_tensor(int64_t number, Failure& failure) const;
    bool verify_values(const Weight& weight, Failure& failure) const;
    std::atomic<bool>& verified(int64_t entry) const { return (*verified_)[entry]; }

    Bytes file_;
    std::string_view header_;
    const MemoryHooks& hooks_;
    Container container_;
    std::optional<Layout> layout_;
    mutable std::optional<Scratch<std::atomic<bool>>> verified_;  // of weights and plain tensors
};

}  // namespace diffq_fast
