// The threads of this process that compute, and their working memory. One job at a time.
//
// All threads run a job's function, which is a row of phases; a phase is some items that any thread may take, and the
// next one begins when all items are done. It is not a barrier of threads: one that was put to sleep by the system
// without an item in hand delays nobody and skips, when it wakes, what the others have done. So the machine may be
// busy with other programs. A thread that waits spins a little, for phases are shorter than a system call, and then
// sleeps. Each thread has a run of items of its own, which keeps memory sequential, and takes from the others' later.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "memory.h"

namespace genserve {

class Worker;

// A job outlives its caller's interest in it: a thread that comes late may still look at it. So its function holds
// by value all that it reads outside of items.
struct Job {
  Job(int size, std::function<void(Worker&)> function) : size(size), function(std::move(function)), cursors(size) {}

  struct alignas(64) Cursor {
    std::atomic<uint64_t> value{0};  // phase, items taken
  };
  const int size;
  const std::function<void(Worker&)> function;
  std::vector<Cursor> cursors;
  alignas(64) std::atomic<uint32_t> phase{0};
  alignas(64) std::atomic<int> done{0};

  void close_phase(uint32_t phase);
  void wait_for_close(uint32_t phase) const;
};

// One thread's view of a job.
class Worker {
 public:
  Worker(Job& job, int id) : id(id), job_(job) {}
  const int id;

  // Calls body(item) once for each of `count` items, on whichever thread is free; returns when all are done.
  template <class Body>
  void share(int count, const Body& body) {
    if (count <= 0) return;
    const uint32_t phase = phase_++;
    int completed = 0;
    for (int turn = 0; turn < job_.size; ++turn) {
      const int run = (id + turn) % job_.size;
      const auto first = static_cast<int>(static_cast<int64_t>(count) * run / job_.size);
      const auto last = static_cast<int>(static_cast<int64_t>(count) * (run + 1) / job_.size);
      std::atomic<uint64_t>& cursor = job_.cursors[run].value;
      uint64_t seen = cursor.load(std::memory_order_acquire);
      while (seen >> 32 == phase && static_cast<int>(seen & 0xffffffffu) < last - first) {
        if (!cursor.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
        body(first + static_cast<int>(seen & 0xffffffffu));
        ++completed;
        seen = cursor.load(std::memory_order_acquire);
      }
    }
    if (completed > 0 && job_.done.fetch_add(completed, std::memory_order_acq_rel) + completed == count)
      job_.close_phase(phase);
    else
      job_.wait_for_close(phase);
  }

 private:
  Job& job_;
  uint32_t phase_ = 0;
};

class Pool {
 public:
  // The process's pool; a forked child gets its own.
  static Pool& instance();

  int size() const { return size_.load(std::memory_order_relaxed); }
  void resize(int size);  // 0 for as many as this process may use cores

  // The right to the pool's threads and memory, held while a job is prepared and run.
  class Turn {
   public:
    explicit Turn(Pool& pool) : pool_(pool), lock_(pool.turn_) {}
    int size() const { return pool_.size(); }
    Workspace& space() { return pool_.space_; }
    void run(std::function<void(Worker&)> function) { pool_.run(std::move(function)); }

   private:
    Pool& pool_;
    std::lock_guard<std::mutex> lock_;
  };
  Turn turn() { return Turn(*this); }

 private:
  Pool();
  void run(std::function<void(Worker&)> function);
  void work(int id, uint32_t seen);
  void stop();

  std::mutex turn_;
  std::atomic<int> size_;
  Workspace space_;
  std::vector<std::thread> threads_;
  std::mutex current_mutex_;
  std::shared_ptr<Job> current_;  // null between jobs
  std::atomic<bool> is_stopping_{false};
  alignas(64) std::atomic<uint32_t> ticket_{0};  // a new number is a new job
};

}  // namespace genserve
