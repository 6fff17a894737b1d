// Work on single rows: norms, exponentials, adapters, heads.
#pragma once
#include "kernels.h"

namespace genserve::ISA {

// exp to about one unit in the last place; exactly 0 below the smallest normal number's logarithm.
INLINE Vec exp(Vec x) {
  const Vec lowest = broadcast(-87.3365f);
  Vec clamped = min(max(x, lowest), broadcast(88.72f));
  Vec n = round_even(mul(clamped, broadcast(1.44269504088896341f)));
  Vec r = fma(n, broadcast(-0.693359375f), clamped);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = add(fma(mul(r, r), p, r), broadcast(1.0f));
  Vec half = mul(n, broadcast(0.5f));  // in two steps, as 2^128 is no float
  Vec whole = round_even(half);
  p = times_power_of_two(times_power_of_two(p, whole), sub(n, whole));
  return where_less(x, lowest, zero(), p);
}

// gate * sigmoid(gate) * up
INLINE Vec gated(Vec gate, Vec up) {
  Vec one = broadcast(1.0f);
  return mul(mul(gate, div(one, add(one, exp(sub(zero(), gate))))), up);
}

// out[n] = x . a[n] for rows of a (N, size), all at once.
template <int N>
INLINE void dots(const float* x, const float* a, int size, float* out) {
  Vec even[N], odd[N];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) even[n] = odd[n] = zero();
  int i = 0;
  for (; i + 2 * LANES <= size; i += 2 * LANES) {
    const Vec first = load(x + i), second = load(x + i + LANES);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const float* row = a + static_cast<size_t>(n) * size + i;
      even[n] = fma(first, load(row), even[n]);
      odd[n] = fma(second, load(row + LANES), odd[n]);
    }
  }
  for (; i < size; i += LANES) {
    const int count = size - i < LANES ? size - i : LANES;
    const Vec rest = load_first(x + i, count);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) even[n] = fma(rest, load_first(a + static_cast<size_t>(n) * size + i, count), even[n]);
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) out[n] = sum(add(even[n], odd[n]));
}

// x / root mean square(x) * weight
void normalize(const float* x, const float* weight, float eps, int size, float* out) {
  float squares;
  dots<1>(x, x, size, &squares);
  const float mean = squares / static_cast<float>(size) + eps;
  Vec inverse = div(broadcast(1.0f), broadcast(__builtin_sqrtf(mean)));
  int i = 0;
  for (; i + LANES <= size; i += LANES) store(out + i, mul(mul(load(x + i), inverse), load(weight + i)));
  if (i < size) {
    Vec tail = mul(mul(load_first(x + i, size - i), inverse), load_first(weight + i, size - i));
    store_first(out + i, size - i, tail);
  }
}

// One row's low-rank activations for its own adapter's ranks; the others' places are left alone.
void low_rank(const LowRank& lora, int row, int columns, const float* x) {
  int adapter = lora.adapter_of[row];
  if (adapter < 0) return;
  float* low = lora.low + static_cast<size_t>(row) * lora.ranks;
  const int last = lora.starts[adapter + 1];
  for (int r = lora.starts[adapter]; r < last;) {
    const float* a = lora.a + static_cast<size_t>(r) * columns;
    const int count = r + 4 <= last ? 4 : 1;
    if (count == 4)
      dots<4>(x, a, columns, low + r);
    else
      dots<1>(x, a, columns, low + r);
    for (const int end = r + count; r < end; ++r) low[r] *= lora.scale[r];
  }
}

// What `lora` adds to a block of outputs, by rank: rows of BLOCK.
INLINE const float* block_of(const LowRank& lora, int block) {
  return lora.b + static_cast<size_t>(block) * lora.ranks * BLOCK;
}

// Asks for what `lora` will add to a block of outputs: of those adapters present that are the step's share.
INLINE void bring_near(const LowRank& lora, int block, int step, int steps) {
  const auto part = [&](int64_t i) { return static_cast<int>(lora.num_present * i / steps); };
  for (int i = part(step); i < part(step + 1); ++i) {
    const int adapter = lora.present[i];
    const float* end = block_of(lora, block) + static_cast<size_t>(lora.starts[adapter + 1]) * BLOCK;
    for (const float* p = block_of(lora, block) + static_cast<size_t>(lora.starts[adapter]) * BLOCK; p < end;
         p += LINE / sizeof(float))
      prefetch_far(p);
  }
}

// Asks for the share of `ahead` that is a step's of a block, in pieces of an adapter.
INLINE void bring_near(const Ahead& ahead, int block, int step, int steps) {
  constexpr int PIECES = 16, STRIDE = LINE / sizeof(float);
  const int present = ahead.modules[0].num_present;
  const int64_t pieces = static_cast<int64_t>(ahead.count) * present * PIECES;
  const int64_t at = static_cast<int64_t>(block) * steps + step, all = static_cast<int64_t>(ahead.num_blocks) * steps;
  for (int64_t piece = pieces * at / all; piece < pieces * (at + 1) / all; ++piece) {
    const int whole = static_cast<int>(piece / PIECES), part = static_cast<int>(piece % PIECES);
    const LowRank& lora = ahead.modules[whole / present];
    const int adapter = lora.present[whole % present];
    const size_t columns = ahead.columns, size = (lora.starts[adapter + 1] - lora.starts[adapter]) * columns;
    const float* a = lora.a + lora.starts[adapter] * columns;
    for (size_t i = size * part / PIECES; i < size * (part + 1) / PIECES; i += STRIDE) prefetch_far(a + i);
  }
}

// sums[0..BLOCK) += bias + the row's adapter, for a block of outputs
INLINE void add_bias_and_adapter(float* sums, const Linear& linear, int row, int block) {
  const int column = block * BLOCK, outputs = linear.weight.rows;
  const int size = outputs - column < BLOCK ? outputs - column : BLOCK;
  const LowRank* lora = linear.lora;
  const int adapter = lora == nullptr ? -1 : lora->adapter_of[row];
  for (int i = 0; i < size; i += LANES) {
    const int n = size - i < LANES ? size - i : LANES;
    Vec y = load(sums + i);
    if (linear.bias != nullptr) y = add(y, load_first(linear.bias + column + i, n));
    if (adapter >= 0) {
      const float* low = lora->low + static_cast<size_t>(row) * lora->ranks;
      Vec change = zero();
      for (int r = lora->starts[adapter]; r < lora->starts[adapter + 1]; ++r)
        change = fma(broadcast(low[r]), load(block_of(*lora, block) + static_cast<size_t>(r) * BLOCK + i), change);
      y = add(y, change);
    }
    store(sums + i, y);
  }
}

INLINE void rotate(float* x, int head_dim, const float* cosines, const float* sines, float magnitude) {
  const int half = head_dim / 2;
  Vec each = broadcast(magnitude);
  for (int i = 0; i < half; i += LANES) {
    const int n = half - i < LANES ? half - i : LANES;
    Vec a = mul(load_first(x + i, n), each), b = mul(load_first(x + half + i, n), each);
    Vec c = load_first(cosines + i, n), s = load_first(sines + i, n);
    store_first(x + i, n, sub(mul(a, c), mul(b, s)));
    store_first(x + half + i, n, fma(a, s, mul(b, c)));
  }
}

// A vector of a head into its slot, in the cache's form.
INLINE void write_slot(uint8_t* cache, float* scales, Format format, size_t index, const float* x, int size) {
  if (format == Format::float32) {
    float* out = reinterpret_cast<float*>(cache) + index * size;
    for (int i = 0; i < size; i += LANES) {
      const int n = size - i < LANES ? size - i : LANES;
      store_first(out + i, n, load_first(x + i, n));
    }
    return;
  }
  alignas(64) uint16_t halves[LANES];
  Vec inverse = zero();
  if (format == Format::int8) {
    Vec biggest = broadcast(1e-20f);
    for (int i = 0; i < size; i += LANES)
      biggest = max(biggest, abs(load_first(x + i, size - i < LANES ? size - i : LANES)));
    scales[index] = largest(biggest) / 127.0f;
    inverse = broadcast(scales[index]);
  }
  for (int i = 0; i < size; i += LANES) {
    const int n = size - i < LANES ? size - i : LANES;
    Vec each = load_first(x + i, n);
    if (format == Format::float16) {
      store(halves, each);
      __builtin_memcpy(cache + (index * size + i) * 2, halves, n * 2);
    } else {
      alignas(64) float rounded[LANES];
      store(rounded, round_even(div(each, inverse)));
      int8_t* out = reinterpret_cast<int8_t*>(cache) + index * size + i;
      for (int j = 0; j < n; ++j) out[j] = static_cast<int8_t>(rounded[j]);
    }
  }
}

void heads(const HeadRow& row, const Cache& cache) {
  const int size = row.head_dim;
  for (int head = 0; head < row.num_heads; ++head) {
    float* q = row.q + static_cast<size_t>(head) * size;
    if (row.q_norm != nullptr) normalize(q, row.q_norm, row.eps, size, q);
    rotate(q, size, row.cosines, row.sines, row.magnitude);
    for (int i = 0; i < size; i += LANES) {
      const int n = size - i < LANES ? size - i : LANES;
      store_first(q + i, n, mul(load_first(q + i, n), broadcast(row.query_scale)));
    }
  }
  for (int head = 0; head < cache.heads; ++head) {
    float* k = row.k + static_cast<size_t>(head) * size;
    if (row.k_norm != nullptr) normalize(k, row.k_norm, row.eps, size, k);
    rotate(k, size, row.cosines, row.sines, row.magnitude);
    const size_t index = static_cast<size_t>(row.slot) * cache.heads + head;
    write_slot(cache.keys, cache.key_scales, cache.format, index, k, size);
    write_slot(
        cache.values, cache.value_scales, cache.format, index, row.v + static_cast<size_t>(head) * size, size);
  }
}

}  // namespace genserve::ISA
