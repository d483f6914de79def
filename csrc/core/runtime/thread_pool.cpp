#include "core/runtime/thread_pool.h"

#include <algorithm>
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
    bool try_run(int64_t tasks, int most, TaskFunction function, void* context) {
        std::unique_lock<std::mutex> user(in_use_, std::try_to_lock);
        if (!user.owns_lock()) return false;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            grow(most);
            function_ = function;
            context_ = context;
            tasks_ = tasks;
            next_.store(0, std::memory_order_relaxed);
            wanted_ = std::min(most, static_cast<int>(workers_.size()));
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
    void grow(int most) {
        try {
            while (static_cast<int>(workers_.size()) < most) {
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
std::atomic<Team> team{nullptr};

#ifndef _WIN32
void forget_threads() {
    pool.store(new Pool);
    team.store(nullptr);
}
#endif

// The first call makes the pool; from then on a forked child gets a new one.
void prepare_threads() {
    static const bool once = [] {
        pool.store(new Pool);
#ifndef _WIN32
        pthread_atfork(nullptr, nullptr, forget_threads);
#endif
        return true;
    }();
    (void)once;
}

// Tasks that the threads of a team take from a common counter.
struct TeamTasks {
    std::atomic<int64_t> next;
    int64_t tasks;
    TaskFunction function;
    void* context;

    static void work(void* data) {
        auto& self = *static_cast<TeamTasks*>(data);
        for (int64_t task = self.next.fetch_add(1); task < self.tasks; task = self.next.fetch_add(1))
            self.function(self.context, task);
    }
};

}  // namespace

void use_team(Team wanted) {
    prepare_threads();
    team.store(wanted);
}

void run_tasks(int64_t tasks, int threads, TaskFunction function, void* context) {
    if (threads > 1 && tasks > 1) {
        prepare_threads();
        if (const Team chosen = team.load()) {
            // All threads, even for few tasks: OpenMP ends those that one of its calls leaves out.
            TeamTasks shared{{0}, tasks, function, context};
            return chosen(TeamTasks::work, &shared, static_cast<unsigned>(threads), 0);
        }
        const int64_t workers = std::min({int64_t{threads}, tasks, int64_t{kMaxWorkers} + 1}) - 1;
        if (pool.load()->try_run(tasks, static_cast<int>(workers), function, context)) return;
    }
    for (int64_t task = 0; task < tasks; ++task) function(context, task);
}

}  // namespace diffq_fast
