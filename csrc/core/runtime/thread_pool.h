// The threads that the core works on: those of the OpenMP runtime that the process has already, where the
// caller names one, else a small pool of our own. OpenMP's threads go on spinning for milliseconds behind
// each of torch's operators, and other threads would fight with them for the cores.
#pragma once

#include <cstdint>
#include <type_traits>

namespace diffq_fast {

using TaskFunction = void (*)(void* context, int64_t task);

// The GOMP_parallel of an OpenMP runtime: calls body(data) on `threads` threads, the caller's among them.
using Team = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// From now on tasks run on that runtime's threads; null: on our own.
void use_team(Team team);

// Calls function(context, task), which must not throw or call run_tasks, for every task in [0, tasks), on at
// most `threads` threads, the caller's among them. Tasks are handed out one by one in order; which thread
// runs which is not fixed, so a task must depend on nothing but its number. A call that finds our own pool
// busy (from another Python thread) runs on its own thread. After fork() the child gets a new pool of our
// own: OpenMP runtimes do not survive a fork.
void run_tasks(int64_t tasks, int threads, TaskFunction function, void* context);

template <typename Body>
void parallel_for(int64_t tasks, int threads, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_tasks(
        tasks, threads, [](void* context, int64_t task) { (*static_cast<Plain*>(context))(task); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace diffq_fast
