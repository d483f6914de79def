#include <cmath>

#include "core/runtime/float_blocks.h"
#include "core/runtime/memory.h"
#include "core/runtime/thread_pool.h"
#include "core/train/add_noise.h"

namespace diffq_fast {
namespace {

// The sums of small groups of which the block holds whole ones; false for other sizes.
bool sum_small_groups(const float* products, int64_t count, int64_t group_size, float* sums) {
    if (group_size <= 0 || count % group_size != 0) return false;
    if (group_size > 16 || (group_size & (group_size - 1)) != 0) return false;
    kernels().sum_groups(products, count / group_size, group_size, sums);
    return true;
}

// What a weight's tasks share.
struct Weight {
    const NoiseArguments& arguments;
    Floats weight;
    const float* logits;
    const float* range;  // one row, or one per group
    uint32_t stream;
    Floats grad;
    void* grad_weight;
    float* grad_logits;
    double* group_shares;  // per group: A * step
    bool past_cache;

    float length(int64_t group) const {
        const float* row = range + (arguments.per_group ? 2 * group : 0);
        return row[1] - row[0];
    }
};

// What one task leaves for the serial end.
struct Part {
    double sum = 0;  // of A * step; of G z alone where the chunk is a piece of a group
    int64_t nonfinite = 0;
};

// Logit gradients of `groups` groups from their sums A; returns the sum of A * step.
double finish_groups(const Weight& weight, int64_t first_group, int64_t groups, const float* sums,
                     int64_t* nonfinite) {
    float steps[kNoiseBlock], lengths[kNoiseBlock];
    const bool per_group = weight.arguments.per_group;
    if (per_group) {
        for (int64_t g = 0; g < groups; ++g) lengths[g] = weight.length(first_group + g);
    }
    *nonfinite += kernels().make_logit_gradients(
        weight.logits + first_group, sums, per_group ? lengths : nullptr, weight.length(0), groups,
        weight.arguments.rule, steps, weight.grad_logits + first_group);
    if (per_group) {
        for (int64_t g = 0; g < groups; ++g) {
            weight.group_shares[first_group + g] = static_cast<double>(sums[g]) * steps[g];
        }
    }
    return kernels().dot(sums, steps, groups);
}

// Copies a block of the gradient and multiplies it with its noise.
void multiply_block(const Weight& weight, int64_t begin, int64_t size, float* products) {
    const NoiseRun run{weight.arguments.key, weight.stream, begin, size, weight.arguments.kind};
    const DType dtype = weight.weight.dtype;
    float buffer[kNoiseBlock], copies[kNoiseBlock];
    const float* values = load_floats(weight.grad.data, weight.grad.dtype, begin, size, buffer);
    if (dtype == DType::float32) {
        kernels().multiply_noise(run, values, weight.past_cache,
                                 static_cast<float*>(weight.grad_weight) + begin, products);
        return;
    }
    kernels().multiply_noise(run, values, false, copies, products);
    if (dtype == weight.grad.dtype) {
        std::memcpy(static_cast<uint16_t*>(weight.grad_weight) + begin,
                    static_cast<const uint16_t*>(weight.grad.data) + begin, static_cast<size_t>(size) * 2);
    } else {
        store_floats(copies, weight.grad_weight, dtype, begin, size);
    }
}

// A chunk of whole groups.
Part back_through_groups(const Weight& weight, const Chunk& chunk) {
    const int64_t group_size = weight.arguments.group_size;
    float products[kNoiseBlock], sums[kNoiseBlock];
    Part part;
    double open_sum = 0;  // of a group that goes on in the next block
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kNoiseBlock) {
        const int64_t size = std::min(kNoiseBlock, chunk.end - begin);
        multiply_block(weight, begin, size, products);
        const int64_t first_group = group_of(begin, group_size);
        int64_t closed = groups_touched(begin, size, group_size);
        if (!sum_small_groups(products, size, group_size, sums)) {
            for_each_segment(begin, size, group_size, [&](int64_t group, int64_t first, int64_t last) {
                open_sum += kernels().sum(products + first, last - first);
                sums[group] = static_cast<float>(open_sum);
                const bool goes_on = group + 1 == closed && begin + size < chunk.end &&
                                     group_of(begin + size, group_size) == first_group + group;
                if (goes_on) {
                    --closed;
                } else {
                    open_sum = 0;
                }
            });
        }
        part.sum += finish_groups(weight, first_group, closed, sums, &part.nonfinite);
    }
    return part;
}

// A chunk that is a piece of one group: only the sum of G z.
Part back_through_piece(const Weight& weight, const Chunk& chunk) {
    float products[kNoiseBlock];
    Part part;
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kNoiseBlock) {
        const int64_t size = std::min(kNoiseBlock, chunk.end - begin);
        multiply_block(weight, begin, size, products);
        part.sum += kernels().sum(products, size);
    }
    return part;
}

// Adds up a weight's parts, in order; groups that were cut into pieces get their logit gradients here.
Part finish_weight(const Weight& weight, const ChunkGrid& grid, const Part* parts) {
    Part total;
    if (grid.pieces() == 0) {
        for (int64_t chunk = 0; chunk < grid.chunks(); ++chunk) {
            total.sum += parts[chunk].sum;
            total.nonfinite += parts[chunk].nonfinite;
        }
        return total;
    }
    for (int64_t chunk = 0; chunk < grid.chunks(); chunk += grid.pieces()) {
        double sum = 0;
        const int64_t end = std::min(chunk + grid.pieces(), grid.chunks());
        for (int64_t piece = chunk; piece < end; ++piece) sum += parts[piece].sum;
        const float group_sum = static_cast<float>(sum);
        total.sum += finish_groups(weight, chunk / grid.pieces(), 1, &group_sum, &total.nonfinite);
    }
    return total;
}

void add_to_element(const Weight& weight, int64_t index, double addend) {
    float value;
    float grad = *load_floats(weight.grad.data, weight.grad.dtype, index, 1, &value);
    value = static_cast<float>(grad + addend);
    store_floats(&value, weight.grad_weight, weight.weight.dtype, index, 1);
}

// The range's gradient on elements [begin, end), by comparing each with the two ends.
void share_among(const Weight& weight, int64_t begin, int64_t end, float lo, float hi, double at_lo,
                 double at_hi) {
    float buffer[kNoiseBlock];
    for (; begin < end; begin += kNoiseBlock) {
        const int64_t size = std::min(kNoiseBlock, end - begin);
        const float* values = load_floats(weight.weight.data, weight.weight.dtype, begin, size, buffer);
        const Bounds bounds = kernels().find_bounds(values, size);
        if (bounds.lo > lo && bounds.hi < hi) continue;  // most blocks hold neither end
        for (int64_t i = 0; i < size; ++i) {
            if (values[i] != lo && values[i] != hi) continue;
            add_to_element(weight, begin + i, (values[i] == hi ? at_hi : 0) - (values[i] == lo ? at_lo : 0));
        }
    }
}

int64_t count_equal(const Weight& weight, int64_t begin, int64_t end, float bound) {
    float buffer[kNoiseBlock];
    int64_t found = 0;
    for (; begin < end; begin += kNoiseBlock) {
        const int64_t size = std::min(kNoiseBlock, end - begin);
        const float* values = load_floats(weight.weight.data, weight.weight.dtype, begin, size, buffer);
        for (int64_t i = 0; i < size; ++i) found += values[i] == bound ? 1 : 0;
    }
    return found;
}

void share_in_group(const Weight& weight, int64_t group) {
    const int64_t size = weight.arguments.group_size == 0 ? weight.weight.count : weight.arguments.group_size;
    const int64_t begin = group * size, end = std::min(weight.weight.count, begin + size);
    const float lo = weight.range[2 * group], hi = weight.range[2 * group + 1];
    const int64_t at_lo = count_equal(weight, begin, end, lo), at_hi = count_equal(weight, begin, end, hi);
    if (at_lo == 0 && at_hi == 0) return;  // a NaN range
    const double share = weight.group_shares[group];
    share_among(weight, begin, end, lo, hi, share / static_cast<double>(std::max<int64_t>(at_lo, 1)),
                share / static_cast<double>(std::max<int64_t>(at_hi, 1)));
}

// One element at each end, at known places: no need to read the weight again. Both places differ, as lo < hi.
bool share_between_two(const Weight& weight, const int64_t* extremes, double sum) {
    const bool single = extremes[2] == 1 && extremes[3] == 1 && extremes[0] != extremes[1];
    const int64_t count = weight.weight.count;
    if (!single || extremes[0] < 0 || extremes[0] >= count || extremes[1] < 0 || extremes[1] >= count)
        return false;
    add_to_element(weight, extremes[0], -sum);
    add_to_element(weight, extremes[1], sum);
    return true;
}

class Backward {
  public:
    Backward(const NoiseArguments& arguments, const std::vector<Floats>& grads,
             const std::vector<void*>& grad_weights, const std::vector<float*>& grad_logits)
        : per_group_(arguments.per_group),
          group_size_(arguments.group_size),
          threads_(threads_for(total_count(arguments.weights), arguments.threads)) {
        const bool past_cache = goes_past_cache(total_count(arguments.weights));
        int64_t groups = 0;
        for (const Floats& weight : arguments.weights) groups += group_count(weight.count, group_size_);
        if (per_group_) group_shares_.resize(static_cast<size_t>(groups));
        groups = 0;
        for (size_t i = 0; i < arguments.weights.size(); ++i) {
            const Floats& weight = arguments.weights[i];
            expect_writes(grad_weights[i], weight.count * item_size(weight.dtype));
            const float* range = arguments.range + 2 * (per_group_ ? groups : static_cast<int64_t>(i));
            weights_.push_back({arguments, weight, arguments.logits[i], range, arguments.streams[i], grads[i],
                                grad_weights[i], grad_logits[i],
                                per_group_ ? group_shares_.data() + groups : nullptr, past_cache});
            grids_.emplace_back(weight.count, group_size_);
            table_.append(grids_.back().chunks());
            groups += group_count(weight.count, group_size_);
        }
    }

    void run(const int64_t* extremes, float* nonfinite) {
        std::vector<Part> parts(static_cast<size_t>(table_.tasks()));
        parallel_for(table_.tasks(), threads_, [&](int64_t task) {
            const auto place = table_.find(task);
            const ChunkGrid& grid = grids_[place.list];
            const Chunk chunk = grid.at(place.piece);
            parts[static_cast<size_t>(task)] = grid.pieces() == 0
                                                   ? back_through_groups(weights_[place.list], chunk)
                                                   : back_through_piece(weights_[place.list], chunk);
            kernels().finish_writes();
        });
        std::vector<double> sums(weights_.size());
        for (size_t i = 0; i < weights_.size(); ++i) {
            const Part total = finish_weight(weights_[i], grids_[i], parts.data() + table_.start(i));
            nonfinite[i] = static_cast<float>(total.nonfinite);
            sums[i] = total.sum;
        }
        if (per_group_) {
            share_in_groups();
        } else {
            share_in_weights(extremes, sums);
        }
    }

  private:
    void share_in_groups() {
        TaskTable table;  // a task: the groups of a chunk, or one large group
        for (const ChunkGrid& grid : grids_) {
            const int64_t pieces = std::max<int64_t>(grid.pieces(), 1);
            table.append((grid.chunks() + pieces - 1) / pieces);
        }
        parallel_for(table.tasks(), threads_, [&](int64_t task) {
            const auto place = table.find(task);
            const Weight& weight = weights_[place.list];
            const ChunkGrid& grid = grids_[place.list];
            const Chunk chunk = grid.at(place.piece * std::max<int64_t>(grid.pieces(), 1));
            const int64_t groups = groups_touched(chunk.begin, chunk.end - chunk.begin, group_size_);
            for (int64_t g = 0; g < groups; ++g) share_in_group(weight, chunk.first_group + g);
        });
    }

    void share_in_weights(const int64_t* extremes, const std::vector<double>& sums) {
        TaskTable table;  // chunks of the weights with ties
        for (size_t i = 0; i < weights_.size(); ++i) {
            const int64_t* row = extremes + 4 * i;
            const bool none = row[2] == 0 || row[3] == 0;  // empty, or a NaN range
            table.append(none || share_between_two(weights_[i], row, sums[i]) ? 0 : grids_[i].chunks());
        }
        parallel_for(table.tasks(), threads_, [&](int64_t task) {
            const auto place = table.find(task);
            const Weight& weight = weights_[place.list];
            const Chunk chunk = grids_[place.list].at(place.piece);
            const int64_t* row = extremes + 4 * place.list;
            const double sum = sums[place.list];
            share_among(weight, chunk.begin, chunk.end, weight.range[0], weight.range[1],
                        sum / static_cast<double>(row[2]), sum / static_cast<double>(row[3]));
        });
    }

    bool per_group_;
    int64_t group_size_;
    int threads_;
    std::vector<double> group_shares_;
    std::vector<Weight> weights_;
    std::vector<ChunkGrid> grids_;
    TaskTable table_;
};

}  // namespace

void add_noise_backward(const NoiseArguments& arguments, const int64_t* extremes,
                        const std::vector<Floats>& grads, const std::vector<void*>& grad_weights,
                        const std::vector<float*>& grad_logits, float* nonfinite) {
    Backward(arguments, grads, grad_weights, grad_logits).run(extremes, nonfinite);
}

}  // namespace diffq_fast
