#include "core/train/weight_sizes.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/runtime/dispatch.h"
#include "core/runtime/memory.h"
#include "core/runtime/tasks.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {
namespace {

// How the groups of all weights are cut into tasks.
class Work {
  public:
    explicit Work(const LearnedBits& learned) {
        for (const int64_t count : learned.counts) {
            const int64_t groups = group_count(count, learned.group_size);
            cuts_.emplace_back(groups, 1);
            table_.append(cuts_.back().size());
            groups_ += groups;
        }
        threads_ = threads_for(groups_, learned.threads);
    }

    // Calls body(weight, chunk of its groups, number of the task), in parallel.
    template <typename Body>
    void run(Body&& body) const {
        parallel_for(table_.tasks(), threads_, [&](int64_t task) {
            const auto place = table_.place_of(task);
            body(place.weight, cuts_[place.weight].at(place.piece), static_cast<size_t>(task));
        });
    }

    int64_t groups() const { return groups_; }
    size_t tasks() const { return static_cast<size_t>(table_.tasks()); }
    size_t start(size_t weight) const { return static_cast<size_t>(table_.start(weight)); }

  private:
    std::vector<Chunks> cuts_;
    TaskTable table_;
    int64_t groups_ = 0;
    int threads_;
};

// The bits of some groups.
struct Part {
    double sum = 0;
    float lo = std::numeric_limits<float>::infinity(), hi = -std::numeric_limits<float>::infinity();
    bool nan = false;

    void add(double other_sum, Range range) {
        sum += other_sum;
        lo = std::min(lo, range.lo);
        hi = std::max(hi, range.hi);
        nan = nan || range.nan;
    }
};

// The groups of a weight: all but the last one have `size` elements, that one has `last`.
struct Groups {
    int64_t count, size, last;

    Groups(int64_t elements, int64_t group_size)
        : count(group_count(elements, group_size)),
          size(group_size == 0 ? elements : group_size),
          last(elements - (count - 1) * size) {}
};

float round_to_even(float value) {
    return std::nearbyint(value);
}

// Bits of one entry of the table of widths of a weight whose groups use from `lo` to `hi` bits.
double table_bits(const LearnedBits& learned, float lo, float hi) {
    float lowest = learned.rule.min_bits;
    if (learned.extra_bits < 0) lowest = std::min(round_to_even(lo), lowest);
    return std::ceil(std::log2(std::max(1 + round_to_even(hi) - lowest, 1.0f)));
}

float size_of(const LearnedBits& learned, size_t weight, const Part& part) {
    const int64_t elements = learned.counts[weight];
    const Groups groups(elements, learned.group_size);
    if (groups.count == 0) return 0;
    if (part.nan) return std::numeric_limits<float>::quiet_NaN();
    const double last = kernels().sum_bits(learned.logits[weight] + groups.count - 1, 1, learned.rule).sum;
    const double levels = static_cast<double>(groups.size) * (part.sum - last) +
                          static_cast<double>(groups.last) * last +
                          static_cast<double>(elements) * static_cast<double>(learned.extra_bits);
    const double table = table_bits(learned, learned.extra_bits + part.lo, learned.extra_bits + part.hi);
    return static_cast<float>(levels + static_cast<double>(groups.count) * table);
}

}  // namespace

void weight_sizes(const LearnedBits& learned, float* sizes) {
    const Work work(learned);
    std::vector<Part> parts(work.tasks());
    work.run([&](size_t weight, const Chunk& chunk, size_t task) {
        const BitSums bits =
            kernels().sum_bits(learned.logits[weight] + chunk.begin, chunk.end - chunk.begin, learned.rule);
        parts[task].add(bits.sum, bits.range);
    });
    for (size_t i = 0; i < learned.counts.size(); ++i) {
        Part total;
        const size_t end = i + 1 < learned.counts.size() ? work.start(i + 1) : work.tasks();
        for (size_t task = work.start(i); task < end; ++task) {
            const Part& part = parts[task];
            total.add(part.sum, {part.lo, part.hi, part.nan});
        }
        sizes[i] = size_of(learned, i, total);
    }
}

void weight_sizes_backward(const LearnedBits& learned, const float* grads,
                           const std::vector<float*>& grad_logits) {
    const Work work(learned);
    const bool past_cache = goes_past_cache(work.groups());
    work.run([&](size_t weight, const Chunk& chunk, size_t) {
        const Groups groups(learned.counts[weight], learned.group_size);
        const float grad = grads[weight], each = grad * static_cast<float>(groups.size);
        float* const made = grad_logits[weight];
        kernels().make_bit_gradients(learned.logits[weight] + chunk.begin, chunk.end - chunk.begin,
                                     learned.rule, each, past_cache, made + chunk.begin);
        kernels().finish_writes();
        if (chunk.end == groups.count) {
            kernels().make_bit_gradients(learned.logits[weight] + groups.count - 1, 1, learned.rule,
                                         grad * static_cast<float>(groups.last), false,
                                         made + groups.count - 1);
        }
    });
}

}  // namespace diffq_fast
