#include "pool.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace genserve {

namespace {

constexpr int MAX_THREADS = 256;
constexpr int SPINS = 1000;  // some tens of microseconds

std::atomic<Pool*> the_pool{nullptr};

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void wait_for_change(const std::atomic<uint32_t>& value, uint32_t seen) {
  for (int spin = 0; spin < SPINS; ++spin) {
    if (value.load(std::memory_order_acquire) != seen) return;
    relax();
  }
  value.wait(seen, std::memory_order_acquire);
}

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  return cores > 0 ? cores : 1;
}

}  // namespace

void Job::close_phase(uint32_t closed) {
  done.store(0, std::memory_order_relaxed);
  for (Cursor& cursor : cursors)
    cursor.value.store(static_cast<uint64_t>(closed + 1) << 32, std::memory_order_release);
  phase.store(closed + 1);  // before it looks for sleepers, who look the other way round
  phase.notify_all();
}

void Job::wait_for_close(uint32_t open) const { wait_for_change(phase, open); }

// The pool is never destroyed: its threads may be at work while the process ends. After a fork the child's copy
// has no threads, so it is abandoned.
Pool& Pool::instance() {
  Pool* pool = the_pool.load(std::memory_order_acquire);
  if (pool != nullptr) return *pool;
  static const int registered = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); });
  (void)registered;
  Pool* fresh = new Pool;
  if (the_pool.compare_exchange_strong(pool, fresh)) return *fresh;
  delete fresh;
  return *pool;
}

Pool::Pool() : size_(usable_cores()) {}

void Pool::resize(int size) {
  std::lock_guard lock(turn_);
  stop();
  size = size > 0 ? size : usable_cores();
  size_.store(size < MAX_THREADS ? size : MAX_THREADS);
}

void Pool::stop() {
  if (threads_.empty()) return;
  is_stopping_ = true;
  ticket_.fetch_add(1, std::memory_order_release);
  ticket_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  is_stopping_ = false;
}

void Pool::run(std::function<void(Worker&)> function) {
  const auto job = std::make_shared<Job>(size(), std::move(function));
  const uint32_t seen = ticket_.load(std::memory_order_relaxed);
  for (int id = static_cast<int>(threads_.size()) + 1; id < size(); ++id)
    threads_.emplace_back([this, id, seen] { work(id, seen); });
  {
    std::lock_guard lock(current_mutex_);
    current_ = job;
  }
  ticket_.store(seen + 1);
  ticket_.notify_all();
  Worker worker(*job, 0);
  job->function(worker);
  std::lock_guard lock(current_mutex_);
  current_ = nullptr;
}

void Pool::work(int id, uint32_t seen) {
  for (;;) {
    wait_for_change(ticket_, seen);
    std::shared_ptr<Job> job;
    {
      std::lock_guard lock(current_mutex_);
      seen = ticket_.load(std::memory_order_acquire);
      job = current_;
    }
    if (is_stopping_) return;  // asked only now: the number just read may be that of the stop
    if (job == nullptr) continue;  // too late: it is done
    Worker worker(*job, id);
    job->function(worker);
  }
}

}  // namespace genserve
