#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace chatglm3 {
namespace {

constexpr auto kLookout = std::chrono::microseconds(300);
constexpr unsigned kPausesPerLook = 32;
constexpr unsigned kClosed = 1u << 31;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  void run(unsigned threads, size_t count, void (*task)(const void*, size_t), const void* context) {
    std::lock_guard<std::mutex> one_at_a_time(submit_);
    while (workers_ + 1 < threads) {
      std::thread(&Pool::work, this, ++workers_).detach();
    }
    task_ = task;
    context_ = context;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    open(threads);
    take_tasks();
    joined_.fetch_or(kClosed, std::memory_order_acq_rel);
    for (unsigned looks = 1; joined_.load(std::memory_order_acquire) != kClosed; ++looks) {
      looks % 1024 ? pause() : std::this_thread::yield();
    }
  }

 private:
  // Only `helpers` of the workers may join; those that wake up late find the job closed again.
  void open(unsigned threads) {
    helpers_.store(threads - 1, std::memory_order_relaxed);
    unsigned none = kClosed;
    while (!joined_.compare_exchange_weak(none, 0, std::memory_order_acq_rel)) none = kClosed;
    std::lock_guard<std::mutex> lock(sleep_);
    job_.fetch_add(1, std::memory_order_release);
    if (sleeping_) wake_.notify_all();
  }

  void take_tasks() {
    for (size_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) task_(context_, i);
  }

  void work(unsigned number) {
    for (unsigned long seen = 0;;) {
      seen = next_job(seen);
      if (!(joined_.fetch_add(1, std::memory_order_acq_rel) & kClosed) &&
          number <= helpers_.load(std::memory_order_relaxed)) {
        take_tasks();
      }
      joined_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  unsigned long next_job(unsigned long seen) {
    const auto until = std::chrono::steady_clock::now() + kLookout;
    do {
      for (unsigned i = 0; i < kPausesPerLook; ++i) {
        if (job_.load(std::memory_order_acquire) != seen) return job_.load(std::memory_order_acquire);
        pause();
      }
    } while (std::chrono::steady_clock::now() < until);
    std::unique_lock<std::mutex> lock(sleep_);
    ++sleeping_;
    wake_.wait(lock, [&] { return job_.load(std::memory_order_acquire) != seen; });
    --sleeping_;
    return job_.load(std::memory_order_acquire);
  }

  std::mutex submit_, sleep_;
  std::condition_variable wake_;
  unsigned workers_ = 0, sleeping_ = 0;
  std::atomic<unsigned> helpers_{0}, joined_{kClosed};
  std::atomic<unsigned long> job_{0};
  std::atomic<size_t> next_{0};
  void (*task_)(const void*, size_t) = nullptr;
  const void* context_ = nullptr;
  size_t count_ = 0;
};

// Never freed: its threads live as long as the process. A forked child, which has no threads, starts a new one.
std::atomic<Pool*> pool{new Pool};
const int at_fork = pthread_atfork(nullptr, nullptr, [] { pool.store(new Pool); });

}  // namespace

void run(unsigned threads, size_t count, void (*task)(const void*, size_t), const void* context) {
  if (threads < 2 || count < 2) {
    for (size_t i = 0; i < count; ++i) task(context, i);
  } else {
    pool.load()->run(threads, count, task, context);
  }
}

}  // namespace chatglm3
