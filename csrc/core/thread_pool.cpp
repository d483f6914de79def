#include "core/thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace diffq_fast {
namespace {

constexpr int kMaxWorkers = 255;

class Pool {
  public:
    // Returns false, having done nothing, when another call is using the pool.
    bool try_run(int64_t tasks, int helpers, TaskFunction function, void* context) {
        std::unique_lock<std::mutex> user(in_use_, std::try_to_lock);
        if (!user.owns_lock()) return false;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            grow(helpers);
            function_ = function;
            context_ = context;
            tasks_ = tasks;
            next_.store(0, std::memory_order_relaxed);
            wanted_ =
                helpers < static_cast<int>(workers_.size()) ? helpers : static_cast<int>(workers_.size());
            running_ = wanted_;
            ++generation_;
        }
        if (wanted_ > 0) start_.notify_all();
        work();
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
        return true;
    }

  private:
    void grow(int helpers) {
        try {
            while (static_cast<int>(workers_.size()) < helpers) {
                const int index = static_cast<int>(workers_.size());
                workers_.emplace_back([this, index, seen = generation_] { serve(index, seen); });
            }
        } catch (const std::system_error&) {
            // No more threads to be had: the ones there are, or the caller alone, do the work.
        }
    }

    void serve(int index, uint64_t seen) {
        for (;;) {
            std::unique_lock<std::mutex> lock(mutex_);
            start_.wait(lock, [&] { return generation_ != seen; });
            seen = generation_;
            if (index >= wanted_) continue;
            lock.unlock();
            work();
            lock.lock();
            if (--running_ == 0) done_.notify_one();
        }
    }

    void work() {
        for (int64_t task = next_.fetch_add(1); task < tasks_; task = next_.fetch_add(1))
            function_(context_, task);
    }

    std::mutex in_use_, mutex_;
    std::condition_variable start_, done_;
    std::vector<std::thread> workers_;
    TaskFunction function_ = nullptr;
    void* context_ = nullptr;
    int64_t tasks_ = 0;
    std::atomic<int64_t> next_{0};
    int wanted_ = 0, running_ = 0;
    uint64_t generation_ = 0;
};

// Never destroyed: workers may still wait in it while the process ends, and after fork() its threads are
// gone.
std::atomic<Pool*> pool{nullptr};

void forget_pool() {
    pool.store(new Pool);
}

Pool& current_pool() {
    static const bool created = [] {
        pool.store(new Pool);
#ifndef _WIN32
        pthread_atfork(nullptr, nullptr, forget_pool);
#endif
        return true;
    }();
    (void)created;
    return *pool.load();
}

}  // namespace

void run_tasks(int64_t tasks, int threads, TaskFunction function, void* context) {
    int64_t helpers = (threads < tasks ? threads : tasks) - 1;
    if (helpers > kMaxWorkers) helpers = kMaxWorkers;
    if (helpers > 0 && current_pool().try_run(tasks, static_cast<int>(helpers), function, context)) return;
    for (int64_t task = 0; task < tasks; ++task) function(context, task);
}

}  // namespace diffq_fast
