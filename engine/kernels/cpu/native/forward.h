// The phases of the two halves of a layer, as every thread of the pool runs them.
#pragma once
#include <initializer_list>
#include <vector>

#include "memory.h"
#include "plan.h"
#include "pool.h"

namespace genserve {

// Where a pass keeps what lies between its phases.
struct Memory {
  float *tiles, *activated, *queries, *keys, *values, *attended, *partial_out, *low[3];
  Partial* partials;
  struct Thread {
    float *row, *scores, *spare, *out;
  };
  std::vector<Thread> threads;
};

// Half-layers of one batch. Immutable while it runs, and all that it reads outside of items it owns.
struct Pass {
  std::shared_ptr<const Decoder> decoder;
  std::shared_ptr<const Adapters> adapters;  // or null
  Batch batch;
  std::vector<Cache> caches;
  std::vector<const float*> rotations;  // by row
  std::vector<int32_t> present;         // the adapters of the rows, each once
  float* x;
  Tiles tiles;
  AttentionPlan plan;
  int padded_head;
  Memory memory;

  void attention(Worker& worker, int layer, const Cache& cache) const;
  void feed_forward(Worker& worker, int layer) const;

 private:
  LowRank low_rank(int layer, Module module, float* low) const;
  int num_blocks(int layer, Module module) const;
  Ahead ahead(int layer, std::initializer_list<Module> modules, int columns, int num_blocks) const;
  Linear linear(int layer, Module module, const LowRank& adapted, const Ahead& ahead, int first_block = 0) const;
  void attend(int worker, const AttentionTask& task, const Cache& cache) const;
  void collect(int row) const;
};

// Row `row` of some tiles: a scatter, with zeros beside the last row of a tile.
void put_row(const Tiles& tiles, float* base, int row, int columns, const float* values);
void get_row(const Tiles& tiles, const float* base, int row, int columns, float* values);

}  // namespace genserve
