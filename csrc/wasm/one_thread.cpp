// The thread pool of a machine with one thread, and its memory, of which nothing is kept.
#include <new>

#include "core/runtime/block_pool.h"
#include "core/runtime/thread_pool.h"

namespace diffq_fast {

void run_tasks(int64_t tasks, int, TaskFunction function, void* context) {
    for (int64_t task = 0; task < tasks; ++task) function(context, task);
}

void* take_block(int64_t bytes) {
    return ::operator new(static_cast<size_t>(bytes));
}

void give_block(void* block, int64_t) {
    ::operator delete(block);
}

}  // namespace diffq_fast
