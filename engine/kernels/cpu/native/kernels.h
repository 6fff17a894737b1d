// The table of innermost loops, one for each instruction set, and the plain records they take.
//
// The promise of exactness lives here: every function gives an output element by one order of operations, which
// depends on that element's own row alone, never on how many rows stand beside it, on tiles, or on threads.
#pragma once
#include <cstddef>
#include <cstdint>

namespace genserve {

constexpr int BLOCK = 32;     // outputs of a packed matrix that lie together, one a lane
constexpr int UNIT = 32;      // columns of a block in one run of words
constexpr int SEGMENT = 128;  // columns summed before they join the total: shorter chains round less
constexpr int LINE = 64;      // bytes that come near together
constexpr int SPLIT = 256;    // keys of one softmax partial, counted from position 0
constexpr int AHEAD = 32;     // keys between one that is worked on and one that is asked for

enum class Format : uint8_t { float32, float16, bfloat16, int8, quantized };

// A packed matrix of (rows, columns); `packed.h` tells the layout.
struct Matrix {
  const uint8_t* data = nullptr;
  int rows = 0, columns = 0;
  size_t block_bytes = 0;
  Format format = Format::float32;
  Format scales = Format::float32;
  int bits = 0, group = 0;
  int num_blocks() const { return (rows + BLOCK - 1) / BLOCK; }
  int run() const { return group > UNIT ? group : UNIT; }  // columns that can be read by themselves
};

// How the rows of a batch are cut: `count` tiles of `height` rows, the last of what is left, each stored (column, row).
// A tile is as many rows wide as it has, but for the last, whose width may leave places empty.
struct Tiles {
  int rows, count, height, last_width;
  size_t begin(int tile, int columns) const { return static_cast<size_t>(tile) * columns * height; }
  float* at(float* base, int row, int columns) const {
    const int tile = row / height;
    return base + begin(tile, columns) + (row - tile * height);
  }
  size_t size(int columns) const { return begin(count - 1, columns) + static_cast<size_t>(columns) * last_width; }
  int width_of(int tile) const { return tile + 1 == count ? last_width : height; }
  int height_of(int tile) const { return rows - tile * height < height ? rows - tile * height : height; }
};

// One module's adapters: `low` receives each row's own (x @ a.T) * scale.
struct LowRank {
  const float *a, *b, *scale;  // (ranks, columns), (blocks, ranks, BLOCK), (ranks,)
  const int32_t* starts;       // adapter i owns rank rows [starts[i], starts[i + 1])
  int ranks;
  const int32_t* adapter_of;  // by row, negative for none
  float* low;                 // (rows, ranks)
  const int32_t* present;     // those of the batch, each once
  int num_present;
};

// What the phase after a product reads first: `a` of some modules, for every adapter present. A product computes and
// leaves the memory idle, so each of its blocks brings a share of this near.
struct Ahead {
  LowRank modules[3];
  int count, columns;
  int num_blocks;  // that share it
};

struct Linear {
  Matrix weight;
  const float* bias = nullptr;
  const LowRank* lora = nullptr;
  const Ahead* ahead = nullptr;
  int first_block = 0;  // its place among the blocks that share `ahead`
};

// What becomes of a product: y (rows, stride) = residual + bias + x @ w.T + adapters.
struct Target {
  float* y;
  size_t stride;
  const float* residual;  // laid out as y, or null
};

struct Cache {
  uint8_t *keys, *values;            // (slots, heads, head_dim)
  float *key_scales, *value_scales;  // (slots, heads), int8 only
  Format format;
  int heads, head_dim, slots;

  size_t bytes() const {
    const size_t each = format == Format::float32 ? 4 : format == Format::float16 ? 2 : 1;
    return each * slots * heads * head_dim;
  }
};

// Turning one row of q, k and v into attention's form.
struct HeadRow {
  float *q, *k;  // (num_heads, head_dim), (kv_heads, head_dim): changed in place
  const float* v;
  int num_heads, head_dim;
  const float *q_norm, *k_norm;  // or null
  float eps, magnitude, query_scale;
  const float *cosines, *sines;  // (head_dim / 2,)
  int slot;
};

// Queries of all key heads or of one, as many for each, against one split of the keys of their sequence.
struct Queries {
  const float* q[64];  // each (padded head_dim)
  int first[64];       // of the split's keys, those in [first, last) are seen
  int last[64];
  int count;
};

constexpr int MAX_QUERIES = 64;

// A softmax that is not yet whole: `out` is weighted by exp(score - largest), `sum` the sum of those weights.
struct Partial {
  float largest, sum;
};

constexpr int DRAW_RUN = 64;  // tokens of the vocabulary that are looked at together

constexpr size_t draw_size(int vocabulary) { return static_cast<size_t>(3) * vocabulary + vocabulary / DRAW_RUN + 1; }

constexpr size_t spare_size(int padded_head) { return static_cast<size_t>(2 * SPLIT) * padded_head; }

struct Kernels {
  const char* name;
  int lanes;
  Tiles (*cut)(int rows);
  void (*product)(const Linear&, int block, const Tiles&, const float* x, const Target&);
  void (*gated)(const Linear& gate, const Linear& up, int block, const Tiles&, const float* x, float* activated);
  void (*product_back)(const Matrix&, int run, const Tiles&, const float* dy, float* dx);
  void (*embed)(const Matrix&, int row, float* out);
  void (*normalize)(const float* x, const float* weight, float eps, int size, float* out);
  void (*low_rank)(const LowRank&, int row, int columns, const float* x);
  void (*heads)(const HeadRow&, const Cache&);
  // For all of the cache's heads or one. slots: SPLIT + AHEAD, of which num_slots are those of the split's keys and of
  // the next ones, and the others repeat the last; scores (count, SPLIT) and spare (spare_size floats): scratch; out:
  // (count, padded head_dim)
  void (*attend)(
      const Queries&, const Cache&, int head, int num_heads, const int32_t* slots, int num_slots, float* scores,
      float* spare, Partial*, float* out);
  void (*join)(
      Partial& into, float* out, const Partial* others, const float* other_outs, int count, int stride, int size);
  // scratch: draw_size floats
  int (*draw)(const float* logits, int size, const float* knobs, float* scratch);
  int (*argmax)(const float* logits, int size, float* scratch);
};

// The fastest table that this machine can run, or the one of a name; null for one it cannot run.
const Kernels* find_kernels(const char* name);

}  // namespace genserve
