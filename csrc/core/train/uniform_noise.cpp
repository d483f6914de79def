#include "core/train/uniform_noise.h"

#include <cstring>

#include "core/runtime/float_blocks.h"
#include "core/runtime/memory.h"
#include "core/runtime/tasks.h"
#include "core/runtime/thread_pool.h"
#include "core/train/group_sums.h"
#include "core/train/scaled_noise.h"

namespace diffq_fast {
namespace {

// Cuts all weights into chunks, and calls body(weight, cut, chunk number, task number) for each, in parallel.
class Work {
  public:
    Work(const UniformNoise& noise, const std::vector<Floats>& weights)
        : total_(total_count(weights)), threads_(threads_for(total_, noise.threads)) {
        for (size_t i = 0; i < weights.size(); ++i) {
            cuts_.emplace_back(weights[i].count, noise.group_sizes[i]);
            table_.append(cuts_.back().size());
        }
    }

    template <typename Body>
    void run(Body&& body) const {
        parallel_for(table_.tasks(), threads_, [&](int64_t task) {
            const auto place = table_.place_of(task);
            body(place.weight, cuts_[place.weight], place.piece, static_cast<size_t>(task));
        });
    }

    const Chunks& cut(size_t weight) const { return cuts_[weight]; }
    size_t start(size_t weight) const { return static_cast<size_t>(table_.start(weight)); }
    size_t tasks() const { return static_cast<size_t>(table_.tasks()); }
    int64_t total() const { return total_; }

  private:
    const int64_t total_;
    const int threads_;
    std::vector<Chunks> cuts_;
    TaskTable table_;
};

NoiseSource source_of(const UniformNoise& noise, size_t weight) {
    return {noise.key, noise.streams[weight], NoiseKind::uniform};
}

void multiply_block(const NoiseSource& source, const Floats& grad, Span span, float* products) {
    float buffer[kBlock], copies[kBlock];
    kernels().multiply_noise({source, span}, load_floats(grad, span, buffer), false, copies, products);
}

void sum_whole_groups(const NoiseSource& source, const Floats& grad, const Chunk& chunk, int64_t group_size,
                      float* grad_steps) {
    float products[kBlock], sums[kBlock];
    GroupSummer summer(chunk, group_size);
    for_each_block_of(chunk, [&](Span span) {
        multiply_block(source, grad, span, products);
        const int64_t ended = summer.sum_block(span, products, sums);
        std::memcpy(grad_steps + group_of(span.begin, group_size), sums,
                    static_cast<size_t>(ended) * sizeof(float));
    });
}

double sum_piece(const NoiseSource& source, const Floats& grad, const Chunk& chunk) {
    float products[kBlock];
    double sum = 0;
    for_each_block_of(chunk, [&](Span span) {
        multiply_block(source, grad, span, products);
        sum += kernels().sum(products, span.count);
    });
    return sum;
}

}  // namespace

void add_uniform_noise(const UniformNoise& noise, const std::vector<Floats>& weights,
                       const std::vector<const float*>& steps, const std::vector<Floats>& noisy) {
    const Work work(noise, weights);
    const bool past_cache = goes_past_cache(work.total());
    for (const Floats& each : noisy) expect_writes(each.data, each.bytes());
    work.run([&](size_t weight, const Chunks& cut, int64_t piece, size_t) {
        const int64_t group_size = noise.group_sizes[weight];
        const Floats& to = noisy[weight];
        const bool direct = to.dtype == DType::float32;
        float amplitudes[kBlock + kReadBehind], buffer[kBlock], result[kBlock];
        for_each_block_of(cut.at(piece), [&](Span span) {
            const int64_t groups = groups_touched(span, group_size);
            std::memcpy(amplitudes, steps[weight] + group_of(span.begin, group_size),
                        static_cast<size_t>(groups) * sizeof(float));
            const float* values = load_floats(weights[weight], span, buffer);
            add_scaled_noise({source_of(noise, weight), span}, values, amplitudes, group_size,
                             direct && past_cache, place_for_floats(to, span, result));
            if (!direct) store_floats(result, to, span);
        });
        kernels().finish_writes();
    });
}

void add_uniform_noise_backward(const UniformNoise& noise, const std::vector<Floats>& grads,
                                const std::vector<float*>& grad_steps) {
    const Work work(noise, grads);
    std::vector<double> parts(work.tasks());  // of groups that are cut into pieces
    work.run([&](size_t weight, const Chunks& cut, int64_t piece, size_t task) {
        const NoiseSource source = source_of(noise, weight);
        if (cut.pieces() == 0) {
            sum_whole_groups(source, grads[weight], cut.at(piece), noise.group_sizes[weight],
                             grad_steps[weight]);
        } else {
            parts[task] = sum_piece(source, grads[weight], cut.at(piece));
        }
    });
    for (size_t i = 0; i < grads.size(); ++i) {
        const Chunks& cut = work.cut(i);
        for (int64_t chunk = 0; cut.pieces() > 0 && chunk < cut.size(); chunk += cut.pieces()) {
            double sum = 0;
            const int64_t end = std::min(chunk + cut.pieces(), cut.size());
            for (int64_t piece = chunk; piece < end; ++piece)
                sum += parts[work.start(i) + static_cast<size_t>(piece)];
            grad_steps[i][chunk / cut.pieces()] = static_cast<float>(sum);
        }
    }
}

}  // namespace diffq_fast
