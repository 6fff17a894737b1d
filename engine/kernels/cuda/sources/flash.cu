// One warp's 16 query rows against 16 keys of one block at a time. A tile of keys and values comes to shared memory by 32
// bulk copies, one a lane. The products' inner index may be permuted, so a lane's 16-byte chunk of a key is its part of
// two products, and values are paired by key with byte permutes. Rows of the fragments: g and g + 8, with g = lane / 4.
template <int D>
struct Tile {
  static constexpr int HALVES = D / 64, REST = D % 64, CHUNKS = D / 32;
  static constexpr int PITCH = D * 2 + 16, BYTES = 32 * PITCH;
  // Where a lane's c-th chunk of a key or query is: turned by the lane, so that banks do not collide.
  static __device__ __forceinline__ int chunk(int c, int t) { return t * CHUNKS + (c + (D == 128 ? 2 * (t >> 1) : 0)) % CHUNKS; }
};

template <int D, bool ONCE>  // whether nobody else is about to read it
__device__ __forceinline__ void fetch_tile(u32 to, u32 barrier, const char* keys, const char* values, size_t stride, int lane) {
  if (lane == 0) arm(barrier, 64 * D);
  const char* line = (lane < 16 ? keys : values) + (lane & 15) * stride;
  if constexpr (ONCE) copy_bulk_once(to + lane * Tile<D>::PITCH, line, D * 2, barrier);
  else copy_bulk(to + lane * Tile<D>::PITCH, line, D * 2, barrier);
}

template <int D>
struct Flash {
  float o[D / 8][4];
  float m[2], l[2];
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < D / 8; i++) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.f;
    m[0] = m[1] = -INF;
    l[0] = l[1] = 0.f;
  }
};

template <int D>
__device__ __forceinline__ void attend(Flash<D>& f, const u32 (&qa)[D / 32][4], const u32 (&qb)[D / 32][4],
                                       const char* tile, int first_key, int from0, int to0, int from1, int to1,
                                       int lane) {
  constexpr int HALVES = D / 64, REST = D % 64, PITCH = Tile<D>::PITCH;
  const int g = lane >> 2, t = lane & 3;
  float s[2][4] = {};
#pragma unroll
  for (int j = 0; j < 2; j++)
#pragma unroll
    for (int c = 0; c < D / 32; c++) {
      const uint4 k = *(const uint4*)(tile + (8 * j + g) * PITCH + Tile<D>::chunk(c, t) * 16);
      mma(s[j], qa[c][0], qb[c][0], qa[c][1], qb[c][1], k.x, k.y);
      mma(s[j], qa[c][2], qb[c][2], qa[c][3], qb[c][3], k.z, k.w);
    }
  float top0 = f.m[0], top1 = f.m[1];
#pragma unroll
  for (int j = 0; j < 2; j++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int key = first_key + 8 * j + 2 * t + e;
      s[j][e] = key <= to0 && key >= from0 ? s[j][e] : -INF;
      s[j][2 + e] = key <= to1 && key >= from1 ? s[j][2 + e] : -INF;
      top0 = fmaxf(top0, s[j][e]);
      top1 = fmaxf(top1, s[j][2 + e]);
    }
#pragma unroll
  for (int d = 1; d < 4; d <<= 1) {
    top0 = fmaxf(top0, __shfl_xor_sync(~0u, top0, d));
    top1 = fmaxf(top1, __shfl_xor_sync(~0u, top1, d));
  }
  const float safe0 = top0 == -INF ? 0.f : top0, safe1 = top1 == -INF ? 0.f : top1;
  const float keep0 = power(f.m[0] - safe0), keep1 = power(f.m[1] - safe1);
  f.m[0] = top0, f.m[1] = top1;
  f.l[0] *= keep0, f.l[1] *= keep1;
#pragma unroll
  for (int j = 0; j < 2; j++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      s[j][e] = power(s[j][e] - safe0);
      s[j][2 + e] = power(s[j][2 + e] - safe1);
      f.l[0] += s[j][e];
      f.l[1] += s[j][2 + e];
    }
#pragma unroll
  for (int i = 0; i < D / 8; i++) f.o[i][0] *= keep0, f.o[i][1] *= keep0, f.o[i][2] *= keep1, f.o[i][3] *= keep1;
  const u32 p0 = pack(s[0][0], s[0][1]), p1 = pack(s[0][2], s[0][3]);
  const u32 p2 = pack(s[1][0], s[1][1]), p3 = pack(s[1][2], s[1][3]);
  auto column = [&](int i, u32 a, u32 b, u32 c, u32 d) {
    mma(f.o[i], p0, p1, p2, p3, __byte_perm(a, b, 0x5410), __byte_perm(c, d, 0x5410));
    mma(f.o[i + 1], p0, p1, p2, p3, __byte_perm(a, b, 0x7632), __byte_perm(c, d, 0x7632));
  };
#pragma unroll
  for (int h = 0; h < HALVES; h++) {
    uint4 v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = *(const uint4*)(tile + (16 + 2 * t + (i & 1) + (i >> 1) * 8) * PITCH + h * 128 + g * 16);
    column(h * 8, v[0].x, v[1].x, v[2].x, v[3].x);
    column(h * 8 + 2, v[0].y, v[1].y, v[2].y, v[3].y);
    column(h * 8 + 4, v[0].z, v[1].z, v[2].z, v[3].z);
    column(h * 8 + 6, v[0].w, v[1].w, v[2].w, v[3].w);
  }
  if constexpr (REST) {
    uint2 v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = *(const uint2*)(tile + (16 + 2 * t + (i & 1) + (i >> 1) * 8) * PITCH + HALVES * 128 + g * 8);
    column(HALVES * 8, v[0].x, v[1].x, v[2].x, v[3].x);
    column(HALVES * 8 + 2, v[0].y, v[1].y, v[2].y, v[3].y);
  }
}

// Where element e (0 or 1) of output tile i stands in a head, for the lane's t.
template <int D>
__device__ __forceinline__ int dimension(int i, int e, int t) {
  return i < D / 64 * 8 ? (i >> 3) * 64 + 8 * (2 * t + e) + (i & 7) : D / 64 * 64 + 4 * (2 * t + e) + (i - D / 64 * 8);
}

// One head's vector on its way to be normed, if asked for, and turned; a lane holds pairs e and e + D / 2.
template <int D, bool NORMED>
struct Vector {
  static constexpr int N = (D / 2 + 31) / 32;
  float a[N], b[N];
  float2 by[N];
  __device__ __forceinline__ void load(const unsigned short* from, const float2* turns, int lane) {
#pragma unroll
    for (int i = 0; i < N; i++) {
      const int e = lane + 32 * i;
      const bool is_there = D % 64 == 0 || e < D / 2;
      a[i] = is_there ? wide(from[e]) : 0.f;
      b[i] = is_there ? wide(from[e + D / 2]) : 0.f;
      by[i] = is_there ? turns[e] : make_float2(0.f, 0.f);
    }
  }
  __device__ __forceinline__ void store(unsigned short* to, const unsigned short* norm, float eps, float scale, int lane) {
    float factor = scale;
    if constexpr (NORMED) {
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < N; i++) sum += a[i] * a[i] + b[i] * b[i];
#pragma unroll
      for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
      factor *= rsqrtf(sum / D + eps);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
      const int e = lane + 32 * i;
      if (D % 64 == 0 || e < D / 2) {
        float p = a[i] * factor, q = b[i] * factor;
        if constexpr (NORMED) p *= wide(norm[e]), q *= wide(norm[e + D / 2]);
        to[e] = narrow(p * by[i].x - q * by[i].y);
        to[e + D / 2] = narrow(q * by[i].x + p * by[i].y);
      }
    }
  }
};
