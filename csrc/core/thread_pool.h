// A small thread pool of our own: a second OpenMP runtime beside torch's would fight with it for cores.
#pragma once

#include <cstdint>
#include <type_traits>

namespace diffq_fast {

using TaskFunction = void (*)(void* context, int64_t task);

// Calls function(context, task), which must not throw or call run_tasks, for every task in [0, tasks), on at
// most `threads` threads, the caller's among them. Tasks are handed out one by one in order; which thread
// runs which is not fixed, so a task must depend on nothing but its number. A call that finds the pool busy
// (from another Python thread) runs on its own thread. After fork() the child gets a new pool.
void run_tasks(int64_t tasks, int threads, TaskFunction function, void* context);

template <typename Body>
void parallel_for(int64_t tasks, int threads, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_tasks(
        tasks, threads, [](void* context, int64_t task) { (*static_cast<Plain*>(context))(task); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace diffq_fast
