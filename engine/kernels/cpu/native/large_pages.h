// Keys and values on pages of 2 MB, once long contexts are read.
//
// Of a long context every page is read for each token, and to find pages of 4 KB takes as long as to read them. Large
// ones from the beginning would be 120 MB for SmolLM2, of which short contexts need little.
#pragma once
#include <cstdint>
#include <unordered_set>
#include <vector>

#include "kernels.h"

namespace genserve {

struct Batch;

class LargePages {
 public:
  // Moves those caches to large pages, once each, of which this batch reads so much that little of these is wasted.
  void serve(const Batch&, int block_size, const std::vector<Cache>&);

 private:
  std::unordered_set<const uint8_t*> served_;  // keys
};

}  // namespace genserve
