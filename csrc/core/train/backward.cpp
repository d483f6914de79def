#include <cmath>

#include "core/runtime/float_blocks.h"
#include "core/runtime/memory.h"
#include "core/runtime/tasks.h"
#include "core/runtime/thread_pool.h"
#include "core/train/add_noise.h"
#include "core/train/group_sums.h"
#include "core/train/range_gradient.h"

namespace diffq_fast {
namespace {

// What a weight's tasks share.
struct Weight {
    const NoiseOptions& options;
    RangeGradient gradient;  // the weight with its gradients
    const float* logits;
    const float* ranges;
    NoiseSource source;
    float* grad_logits;
    double* group_shares;  // per group: A * step
    bool past_cache;

    float length(int64_t group) const {
        const float* range = options.grouping.range_of(ranges, group);
        return range[1] - range[0];
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
    float steps[kBlock], lengths[kBlock];
    const bool per_group = weight.options.grouping.per_group;
    if (per_group) {
        for (int64_t g = 0; g < groups; ++g) lengths[g] = weight.length(first_group + g);
    }
    const GroupSums group_sums{weight.logits + first_group, sums, per_group ? lengths : nullptr,
                               weight.length(0), groups};
    *nonfinite += kernels().make_logit_gradients(group_sums, weight.options.rule, steps,
                                                 weight.grad_logits + first_group);
    if (per_group) {
        for (int64_t g = 0; g < groups; ++g) {
            weight.group_shares[first_group + g] = static_cast<double>(sums[g]) * steps[g];
        }
    }
    return kernels().dot(sums, steps, groups);
}

// Copies a block of the gradient and multiplies it with its noise.
void multiply_block(const Weight& weight, Span span, float* products) {
    const NoiseRun run{weight.source, span};
    const Floats &grad = weight.gradient.grad, &to = weight.gradient.grad_weight;
    float buffer[kBlock], copies[kBlock];
    const float* values = load_floats(grad, span, buffer);
    if (to.dtype == DType::float32) {
        kernels().multiply_noise(run, values, weight.past_cache, static_cast<float*>(to.data) + span.begin,
                                 products);
        return;
    }
    kernels().multiply_noise(run, values, false, copies, products);
    if (to.dtype == grad.dtype) {
        std::memcpy(static_cast<uint16_t*>(to.data) + span.begin,
                    static_cast<const uint16_t*>(grad.data) + span.begin,
                    static_cast<size_t>(span.count) * sizeof(uint16_t));
    } else {
        store_floats(copies, to, span);
    }
}

// A chunk of whole groups.
Part back_through_groups(const Weight& weight, const Chunk& chunk) {
    const int64_t group_size = weight.options.grouping.group_size;
    float products[kBlock], sums[kBlock];
    Part part;
    GroupSummer summer(chunk, group_size);
    for_each_block_of(chunk, [&](Span span) {
        multiply_block(weight, span, products);
        const int64_t ended = summer.sum_block(span, products, sums);
        part.sum += finish_groups(weight, group_of(span.begin, group_size), ended, sums, &part.nonfinite);
    });
    return part;
}

// A chunk that is a piece of one group: only the sum of G z.
Part back_through_piece(const Weight& weight, const Chunk& chunk) {
    float products[kBlock];
    Part part;
    for_each_block_of(chunk, [&](Span span) {
        multiply_block(weight, span, products);
        part.sum += kernels().sum(products, span.count);
    });
    return part;
}

// Adds up a weight's parts, in order; groups that were cut into pieces get their logit gradients here.
Part finish_weight(const Weight& weight, const Chunks& cut, const Part* parts) {
    Part total;
    if (cut.pieces() == 0) {
        for (int64_t chunk = 0; chunk < cut.size(); ++chunk) {
            total.sum += parts[chunk].sum;
            total.nonfinite += parts[chunk].nonfinite;
        }
        return total;
    }
    for (int64_t chunk = 0; chunk < cut.size(); chunk += cut.pieces()) {
        double sum = 0;
        const int64_t end = std::min(chunk + cut.pieces(), cut.size());
        for (int64_t piece = chunk; piece < end; ++piece) sum += parts[piece].sum;
        const float group_sum = static_cast<float>(sum);
        total.sum += finish_groups(weight, chunk / cut.pieces(), 1, &group_sum, &total.nonfinite);
    }
    return total;
}

class Backward {
  public:
    Backward(const NoiseArguments& arguments, const std::vector<Floats>& grads,
             const NoiseGradients& gradients)
        : grouping_(arguments.options.grouping),
          threads_(threads_for(total_count(arguments.weights), arguments.threads)) {
        int64_t groups = 0;
        for (const Floats& weight : arguments.weights)
            groups += group_count(weight.count, grouping_.group_size);
        if (grouping_.per_group) group_shares_.resize(static_cast<size_t>(groups));
        const bool past_cache = goes_past_cache(total_count(arguments.weights));
        const float* ranges = arguments.ranges;
        double* shares = group_shares_.data();
        for (size_t i = 0; i < arguments.weights.size(); ++i) {
            const Floats& weight = arguments.weights[i];
            expect_writes(gradients.weights[i].data, gradients.weights[i].bytes());
            weights_.push_back({arguments.options,
                                {weight, grads[i], gradients.weights[i]},
                                arguments.logits[i],
                                ranges,
                                {arguments.key, arguments.streams[i], arguments.options.noise_kind},
                                gradients.logits[i],
                                shares,
                                past_cache});
            cuts_.emplace_back(weight.count, grouping_.group_size);
            table_.append(cuts_.back().size());
            ranges += 2 * grouping_.range_count(weight.count);
            if (grouping_.per_group) shares += group_count(weight.count, grouping_.group_size);
        }
    }

    void run(const int64_t* extremes, float* nonfinite) {
        std::vector<Part> parts(static_cast<size_t>(table_.tasks()));
        parallel_for(table_.tasks(), threads_, [&](int64_t task) {
            const auto place = table_.place_of(task);
            const Chunks& cut = cuts_[place.weight];
            const auto back = cut.pieces() == 0 ? back_through_groups : back_through_piece;
            parts[static_cast<size_t>(task)] = back(weights_[place.weight], cut.at(place.piece));
            kernels().finish_writes();
        });
        std::vector<double> sums(weights_.size());
        for (size_t i = 0; i < weights_.size(); ++i) {
            const Part total = finish_weight(weights_[i], cuts_[i], parts.data() + table_.start(i));
            nonfinite[i] = static_cast<float>(total.nonfinite);
            sums[i] = total.sum;
        }
        if (grouping_.per_group) {
            share_in_groups();
        } else {
            share_in_weights(extremes, sums);
        }
    }

  private:
    void share_in_groups() {
        TaskTable table;  // a task: the groups of a chunk, or one large group
        for (const Chunks& cut : cuts_) {
            const int64_t pieces = std::max<int64_t>(cut.pieces(), 1);
            table.append((cut.size() + pieces - 1) / pieces);
        }
        parallel_for(table.tasks(), threads_, [&](int64_t task) {
            const auto place = table.place_of(task);
            const Chunks& cut = cuts_[place.weight];
            const Chunk chunk = cut.at(place.piece * std::max<int64_t>(cut.pieces(), 1));
            const Span span{chunk.begin, chunk.end - chunk.begin};
            const int64_t groups = groups_touched(span, grouping_.group_size);
            for (int64_t g = 0; g < groups; ++g)
                share_in_group(weights_[place.weight], chunk.first_group + g);
        });
    }

    void share_in_group(const Weight& weight, int64_t group) const {
        const int64_t count = weight.gradient.weight.count;
        const int64_t size = grouping_.group_size == 0 ? count : grouping_.group_size;
        const int64_t begin = group * size;
        weight.gradient.share_in_group({begin, std::min(count, begin + size), group},
                                       grouping_.range_of(weight.ranges, group), weight.group_shares[group]);
    }

    void share_in_weights(const int64_t* extremes, const std::vector<double>& sums) {
        TaskTable table;  // chunks of the weights with ties
        for (size_t i = 0; i < weights_.size(); ++i) {
            const int64_t* of_weight = extremes + 4 * i;
            const bool none = of_weight[2] == 0 || of_weight[3] == 0;  // empty, or a NaN range
            const bool shared = none || weights_[i].gradient.share_between_two(of_weight, sums[i]);
            table.append(shared ? 0 : cuts_[i].size());
        }
        parallel_for(table.tasks(), threads_, [&](int64_t task) {
            const auto place = table.place_of(task);
            const Weight& weight = weights_[place.weight];
            const int64_t* of_weight = extremes + 4 * place.weight;
            const double sum = sums[place.weight];
            weight.gradient.share_among(cuts_[place.weight].at(place.piece), weight.ranges,
                                        sum / static_cast<double>(of_weight[2]),
                                        sum / static_cast<double>(of_weight[3]));
        });
    }

    const Grouping grouping_;
    const int threads_;
    std::vector<double> group_shares_;
    std::vector<Weight> weights_;
    std::vector<Chunks> cuts_;
    TaskTable table_;
};

}  // namespace

void add_noise_backward(const NoiseArguments& arguments, const int64_t* extremes,
                        const std::vector<Floats>& grads, const NoiseGradients& gradients) {
    Backward(arguments, grads, gradients).run(extremes, gradients.nonfinite);
}

}  // namespace diffq_fast
