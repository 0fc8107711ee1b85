// A small pool of threads of its own: the caller works too, and tasks are taken one by one, so a slow core takes fewer.
#pragma once

#include <cstddef>

namespace chatglm3 {

// Runs task(0) ... task(count - 1) on the calling thread and up to `threads` - 1 others; returns when all have ended.
// Safe to call from several threads: one job runs at a time. After a job the other threads look out for the next one
// for a moment before they sleep, short enough not to fight with another pool (torch's OpenMP) over the cores.
void run(unsigned threads, size_t count, void (*task)(const void* context, size_t index), const void* context);

template <class Task>
void parallel_for(unsigned threads, size_t count, const Task& task) {
  run(threads, count, [](const void* context, size_t index) { (*static_cast<const Task*>(context))(index); }, &task);
}

}  // namespace chatglm3
