// Shared by all kernels: bf16 pairs, the 16x8x16 matrix product, and weights of 4 or 8 bits as its left operand.
typedef unsigned int u32;
typedef unsigned short bf16;
typedef unsigned long long u64;
#define INF __int_as_float(0x7f800000)

__device__ __forceinline__ float low(u32 v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float high(u32 v) { return __uint_as_float(v & 0xffff0000u); }
__device__ __forceinline__ float wide(unsigned short v) { return __uint_as_float((u32)v << 16); }
__device__ __forceinline__ u32 pack(float a, float b) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a));
  return r;
}
__device__ __forceinline__ unsigned short narrow(float a) { return (unsigned short)(pack(a, 0.f) & 0xffffu); }
__device__ __forceinline__ u32 mul2(u32 a, u32 b) {
  u32 r;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
__device__ __forceinline__ u32 sub2(u32 a, u32 b) {
  u32 r;
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
__device__ __forceinline__ u32 fma2(u32 a, u32 b, u32 c) {
  u32 r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
__device__ __forceinline__ void mma(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint4 stream16(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
__device__ __forceinline__ uint4 load16(const void* p) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
__device__ __forceinline__ void turn(uint4& a, uint4& b, uint4& c, uint4& d) {  // rows become columns
  const uint4 e = a, f = b, g = c, h = d;
  a = make_uint4(e.x, f.x, g.x, h.x), b = make_uint4(e.y, f.y, g.y, h.y);
  c = make_uint4(e.z, f.z, g.z, h.z), d = make_uint4(e.w, f.w, g.w, h.w);
}
template <int BYTES>
__device__ __forceinline__ void copy_async(u32 to, const void* from, bool wanted = true) {
  if constexpr (BYTES == 16)
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(wanted ? 16 : 0));
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES), "r"(wanted ? BYTES : 0));
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;"); }
template <int LEFT>
__device__ __forceinline__ void await_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT)); }

__device__ __forceinline__ void arm(u32 barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_bulk(u32 to, const void* from, int bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void copy_bulk_once(u32 to, const void* from, int bytes, u32 barrier) {  // first to leave L2
  u64 policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void await_bulk(u32 barrier, int phase) {
  u32 done;
  do {
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(done) : "r"(barrier), "r"(phase) : "memory");
  } while (!done);
}
__device__ __forceinline__ void make_barriers(u32 at, int count) {
  for (int i = 0; i < count; i++) asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(at + i * 8));
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Launches of a graph overlap: until here a kernel may read what no launch writes; now those before it have ended, and the
// next one may get ready.
__device__ __forceinline__ void follow() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Until so many others have added themselves, each after its writes.
__device__ __forceinline__ void await_count(const int* counter, int wanted) {
  int seen;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  } while (seen < wanted);
}

__device__ __forceinline__ float power(float x) {  // of two
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Where an activation stands: ORDER 0 is row by row; 4 and 8 are the image in shared memory that the tiled product of
// 4- or 8-bit weights reads, TOKENS rows and 128 columns at a time, so that one bulk copy brings it.
template <int ORDER, int TOKENS>
__device__ __forceinline__ size_t place(int row, int column, int width) {
  if constexpr (ORDER == 0) return (size_t)row * width + column;
  const int k = column & 127;
  int p;
  if constexpr (ORDER == 4) p = 32 * (k >> 3 & 3) + 16 * (k >> 1 & 1) + 8 * (k & 1) + 2 * (k >> 5) + (k >> 2 & 1);
  else p = 64 * (k >> 6) + 32 * (k >> 3 & 1) + 16 * (k >> 2 & 1) + 8 * (k >> 1 & 1) + 2 * (k >> 4 & 3) + (k & 1);
  return ((size_t)(row / TOKENS) * (width >> 7) + (column >> 7)) * (TOKENS * 128) + (p >> 6) * (TOKENS * 64) +
         row % TOKENS * 64 + (((p >> 3 & 7) ^ (row & 7)) * 8) + (p & 7);
}
