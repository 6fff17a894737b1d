// Keys and values on pages of 2 MB, once long contexts are read.
//
// Of a long context every page is read for each token, and to find pages of 4 KB takes as long as to read them. Large
// ones from the beginning would be 120 MB for SmolLM2, of which short contexts need little.
#pragma once
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "kernels.h"

namespace genserve {

struct Batch;

// Used by who has the pool's turn.
class LargePages {
 public:
  // If this batch reads so much of its caches that little of large pages is wasted, moves there what it reads and is not
  // there yet: one page of every array, as moving takes a millisecond for three.
  void serve(const Batch&, int block_size, const std::vector<Cache>&);
  // Other keys may lie there from now on.
  void forget(const uint8_t* keys) { moved_.erase(keys); }

 private:
  std::unordered_map<const uint8_t*, std::vector<bool>> moved_;  // the first cache's keys: by large page
};

}  // namespace genserve
