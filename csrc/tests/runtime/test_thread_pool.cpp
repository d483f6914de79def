#include <atomic>
#include <thread>

#include "core/runtime/thread_pool.h"
#include "tests/check.h"

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

using namespace diffq_fast;

namespace {

bool runs_each_task_once(int64_t tasks, int threads) {
    std::vector<std::atomic<int>> calls(static_cast<size_t>(tasks));
    parallel_for(tasks, threads, [&](int64_t task) { ++calls[static_cast<size_t>(task)]; });
    for (const auto& count : calls) {
        if (count != 1) return false;
    }
    return true;
}

void every_task_runs_once() {
    for (const int64_t tasks : {0, 1, 2, 3, 100, 1000}) {
        for (const int threads : {0, 1, 2, 3, 8, 2}) CHECK(runs_each_task_once(tasks, threads));
    }
}

void callers_may_come_together() {
    std::atomic<int> right{0};
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i) {
        callers.emplace_back([&] {
            for (int round = 0; round < 200; ++round) right += runs_each_task_once(50, 3);
        });
    }
    for (std::thread& caller : callers) caller.join();
    CHECK(right == 800);
}

void a_forked_child_gets_its_own_threads() {
#ifndef _WIN32
    CHECK(runs_each_task_once(100, 3));
    const pid_t child = fork();
    if (child == 0) _exit(runs_each_task_once(100, 3) ? 0 : 1);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(runs_each_task_once(100, 3));
#endif
}

// Stands in for an OpenMP runtime, with new threads for each call.
void team_of_new_threads(void (*body)(void*), void* data, unsigned threads, unsigned) {
    std::vector<std::thread> team;
    for (unsigned i = 1; i < threads; ++i) team.emplace_back(body, data);
    body(data);
    for (std::thread& thread : team) thread.join();
}

std::atomic<int> team_calls{0};

void a_team_does_the_work_until_a_fork() {
    const Team counting = [](void (*body)(void*), void* data, unsigned threads, unsigned flags) {
        ++team_calls;
        team_of_new_threads(body, data, threads, flags);
    };
    use_team(counting);
    every_task_runs_once();
    CHECK(team_calls > 0);
#ifndef _WIN32
    const int before = team_calls;
    const pid_t child = fork();
    if (child == 0) _exit(runs_each_task_once(100, 3) && team_calls == before ? 0 : 1);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
#endif
    use_team(nullptr);
    const int after = team_calls;
    every_task_runs_once();
    CHECK(team_calls == after);
}

}  // namespace

RUN_TESTS(every_task_runs_once, callers_may_come_together, a_forked_child_gets_its_own_threads,
          a_team_does_the_work_until_a_fork)
