// Items that begin with a line of the cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace diffq_fast {

// `count` zeros. A load of 64 bytes that crosses a line takes two: rows of whole lines have none.
template <typename Item>
class Lines {
  public:
    explicit Lines(int64_t count = 0) : room_(static_cast<size_t>(count) + kLine / sizeof(Item), Item{}) {}
    Lines(Lines&&) = default;  // a copy may begin elsewhere in its line
    Lines& operator=(Lines&&) = default;

    Item* data() { return room_.data() + before(); }
    const Item* data() const { return room_.data() + before(); }

  private:
    static constexpr size_t kLine = 64;

    size_t before() const {
        const size_t behind = reinterpret_cast<uintptr_t>(room_.data()) % kLine;
        return (kLine - behind) % kLine / sizeof(Item);
    }

    std::vector<Item> room_;
};

}  // namespace diffq_fast
