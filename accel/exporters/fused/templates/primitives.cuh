// What the templates need of the machine, one small function each. A CPU emulator has functions of the same names in their place
// (FUSED_EMULATED): nothing else in the source touches PTX, thread indices or memory of other CTAs.

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

#ifndef FUSED_EMULATED

#define INLINE __device__ __forceinline__
#define MEMBER static INLINE

using Word = unsigned int;  // 32 bits: two halves, or an address in shared memory
using Address = unsigned int;

// Said to be in range, so that divisions of them take a shift and no more.
INLINE int thread() {
    const int t = threadIdx.x;
    __builtin_assume(t >= 0 && t < THREADS);
    return t;
}
INLINE int lane() { return threadIdx.x % 32; }
INLINE int warp() { return thread() / 32; }
INLINE int cta() {
    const int t = blockIdx.x;
    __builtin_assume(t >= 0);
    return t;
}

// Constants: weights and the image, which nobody writes while a kernel runs. Volatile, so that they are issued where they are written.
INLINE uint4 load_constant16(const void* from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
}
INLINE float2 load_constant8(const void* from) {
    float2 v;
    asm volatile("ld.global.nc.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(from));
    return v;
}
INLINE Word load_constant_pair(const void* from) {
    Word v;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(from));
    return v;
}
INLINE float load_constant4(const void* from) {
    float v;
    asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(v) : "l"(from));
    return v;
}
INLINE unsigned short load_constant2(const void* from) {
    unsigned short v;
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(from));
    return v;
}
INLINE unsigned char load_constant1(const void* from) {
    unsigned short v;
    asm volatile("ld.global.nc.u8 %0, [%1];" : "=h"(v) : "l"(from));
    return static_cast<unsigned char>(v);
}

// Activations: other SMs have written them, perhaps in this kernel, so they are read past the L1 cache.
INLINE uint4 load_activation16(const void* from) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
    return v;
}
INLINE Word load_activation4(const void* from) {
    Word v;
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}
INLINE void store_activation16(void* to, uint4 v) {
    asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
INLINE void store_activation4(void* to, Word v) { asm volatile("st.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory"); }
INLINE void store_logit(float* to, float v) { asm volatile("st.global.f32 [%0], %1;" ::"l"(to), "f"(v) : "memory"); }

// Shared memory, by address.
INLINE Address shared_memory() {
    extern __shared__ __align__(128) unsigned char memory[];
    return static_cast<Address>(__cvta_generic_to_shared(memory));
}
INLINE void store_shared16(Address to, float4 v) {
    asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}
INLINE void store_shared16(Address to, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
INLINE void store_shared4(Address to, Word v) { asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(v) : "memory"); }
INLINE void store_shared4(Address to, float v) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(v) : "memory"); }
INLINE void store_shared2(Address to, unsigned short v) { asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(v) : "memory"); }
INLINE uint4 load_shared16(Address from) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from) : "memory");
    return v;
}
INLINE float4 load_shared16f(Address from) {
    float4 v;
    asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(from) : "memory");
    return v;
}
INLINE unsigned short load_shared2(Address from) {
    unsigned short v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(from) : "memory");
    return v;
}
INLINE float2 load_shared8(Address from) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(from) : "memory");
    return v;
}
INLINE float load_shared4(Address from) {
    float v;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(from) : "memory");
    return v;
}

// 16 bytes of activations to shared memory, or zeros; `from` must be an address of the arena even then. Done after copies_arrived().
INLINE void copy16(Address to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
// The same of weights, in groups: at most LEFT of this thread's last groups are still under way after copies_left.
INLINE void copy_weights16(Address to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
INLINE void copies_committed() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
INLINE void copies_left() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }
INLINE void copies_arrived() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// `v` is computed here, not where it is used, which may be behind a wait.
INLINE void computed(Word& v) { asm volatile("" : "+r"(v)); }
INLINE void computed(unsigned char*& v) { asm volatile("" : "+l"(v)); }

#if __CUDA_ARCH__ >= 900
#define HAS_BLOCKS true  // copy_block, and what counts its bytes
#else
#define HAS_BLOCKS false
#endif

INLINE void sync() { __syncthreads(); }
INLINE bool any_of_cta(bool mine) { return __syncthreads_or(mine); }
INLINE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
INLINE Word shuffle_xor(Word v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

// Tensor cores: a 16×16 tile of A, whose rows the lanes name (row lane % 16, columns 8 · (lane / 16)), and D += A · B of 16×8.
INLINE uint4 load_fragment(Address row) {
    uint4 a;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a.x), "=r"(a.y), "=r"(a.z), "=r"(a.w) : "r"(row) : "memory");
    return a;
}
INLINE void multiply(float4& d, uint4 a, Word b0, Word b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w) : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// Numbers. pack saturates nothing: what is too large for FP16 becomes infinite.
INLINE float2 unpack(Word v) {
    float2 f;
    asm("{.reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(f.x), "=f"(f.y) : "r"(v));
    return f;
}
INLINE Word pack(float low, float high) {
    Word v;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}
INLINE unsigned short half_bits(float f) { return static_cast<unsigned short>(pack(f, 0.0f)); }
INLINE Word minimum(Word a, Word b) { return min(a, b); }
INLINE Word bits_of(float f) { return __float_as_uint(f); }
INLINE float float_of(Word bits) { return __uint_as_float(bits); }
INLINE float exponential(float x) { return __expf(x); }
INLINE float divide(float a, float b) { return __fdividef(a, b); }
INLINE float scaled(float x, float scale, float offset) { return __fsub_rn(__fmul_rn(x, scale), offset); }  // rounded twice, as numpy does

// Programmatic dependent launch: the kernel behind may start; everything in front has ended and is visible.
INLINE void dependents_may_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// A loop that is run once: the assembler lets loads of constants, and whatever else touches no memory that is written, sink behind a mere
// griddepcontrol.wait, and then nothing of it overlaps the kernel in front; it does not take them across a loop. There is no CTA of 0 threads.
INLINE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred again; .reg .u32 n; mov.u32 n, %ntid.x; setp.eq.u32 again, n, 0; WAIT: griddepcontrol.wait; @again bra WAIT; }" ::: "memory");
#endif
}

// Between CTAs of one kernel.
INLINE void add_release(Word* counter, Word v) { asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(v) : "memory"); }
INLINE Word load_acquire(const Word* counter) {
    Word v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(counter) : "memory");
    return v;
}
INLINE Word load_relaxed(const Word* word) {
    Word v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(word) : "memory");
    return v;
}
INLINE void store_relaxed(Word* word, Word v) { asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(v) : "memory"); }
// Words that carry their own arrival: whoever reads them looks again until they are there.
INLINE uint4 peek16(const void* from) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
    return v;
}
INLINE Word peek4(const void* from) {
    Word v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}
INLINE void hand_on16(void* to, uint4 v) {
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
INLINE void hand_on4(void* to, Word v) { asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory"); }
INLINE Word cycles() {  // of this SM, for measurements
    Word t;
    asm volatile("mov.u32 %0, %clock;" : "=r"(t)::"memory");
    return t;
}
INLINE void pause(Word length) {  // in cycles
    const Word start = cycles();
    while (cycles() - start < length) {}
}
INLINE unsigned long long nanoseconds() {
    unsigned long long t;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
    return t;
}

// Between CTAs of one cluster (compute capability 9.0): an address in the shared memory of another, by its rank.
INLINE Address remote(Address at, int rank) {
    Address there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    return there;
}
// All threads of the cluster have arrived when a wait is over. Relaxed: it says that what a thread had read and written before was done
// with, not that others see it; a release waits for every store of the thread, those to global memory too (MEMBAR.ALL.GPU).
INLINE void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
INLINE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// Bytes that come to this CTA's shared memory by themselves, counted by a barrier (mbarrier, 8 bytes), which serves once: one thread makes it
// and says how many bytes it counts; whoever has waited for it sees them. Other threads know it after sync().
INLINE void make_barrier(Address barrier) { asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory"); }
INLINE void barriers_are_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
INLINE void expect(Address barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
INLINE void arrived(Address barrier) {
    Word done;
    do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0; selp.u32 %0, 1, 0, p;}"
                     : "=r"(done) : "r"(barrier) : "memory");
    } while (!done);
}
// A block of weights, a multiple of 16 bytes. What was read and written in its place before lies before a sync() and before_blocks().
INLINE void before_blocks() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
INLINE void copy_block(Address to, const void* from, int bytes, Address barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}
// The same to all CTAs of the cluster whose bit is in `ranks`, each counting the bytes at its own barrier; read from the L2 once.
INLINE void copy_block_to(Address to, const void* from, int bytes, Address barrier, int ranks) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;"
                 ::"r"(to), "l"(from), "r"(bytes), "r"(barrier), "h"(static_cast<unsigned short>(ranks)) : "memory");
}
// To the CTA of `rank`, places and barrier as this CTA names its own.
INLINE void push16(int rank, Address to, uint4 v, Address barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1,%2,%3,%4}, [%5];"
                 ::"r"(remote(to, rank)), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(remote(barrier, rank)) : "memory");
}
INLINE void push4(int rank, Address to, float v, Address barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];"
                 ::"r"(remote(to, rank)), "f"(v), "r"(remote(barrier, rank)) : "memory");
}

#endif  // FUSED_EMULATED
