// A GPU on one CPU thread, for the sources that accel.exporters.fused generates: it stands in place of templates/primitives.cuh.
//
// Each thread of a CTA is a coroutine that runs up to the next barrier or warp instruction, in order of its number or backwards, so that a
// run is deterministic. What a kernel must not do ends the run with a message: reading shared memory that nobody wrote, or that another
// thread wrote since the last barrier; reading the arena before griddepcontrol.wait, or what another CTA wrote and
// no counter was waited for; an address outside its buffer or badly aligned; a warp instruction that not all lanes execute alike; a deadlock.
// Of a cluster: reading what was pushed or copied there without having waited for all of it; pushing over what may still be read or written,
// without a cluster barrier between; pushing to a CTA that may not have begun or may have ended; more bytes than a barrier expects.
#pragma once

#include <algorithm>
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <ucontext.h>

#define FUSED_EMULATED
#define HAS_BLOCKS true
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define INLINE inline
#define MEMBER static inline

struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using Word = unsigned;
using Address = unsigned;

namespace emulator {

constexpr int THREADS = 256;
constexpr size_t STACK = 48 * 1024;

struct Buffer {
    const char* name;
    unsigned char* data;
    size_t size;
    bool holds(const void* at, size_t bytes) const {
        const auto* p = static_cast<const unsigned char*>(at);
        return p >= data && p + bytes <= data + size;
    }
};

// Of two bytes of shared memory: who wrote and read them last (a thread, counted through all CTAs; or NOBODY, SEVERAL, or COUNTED by a
// barrier), the CTA's generation then, and at how many cluster barriers that thread had arrived: what it did lies in front of the next.
constexpr int NOBODY = -1, SEVERAL = -2, COUNTED = -3;
struct Shadow { int writer = NOBODY, written = -1, reader = NOBODY, read = -1; long write_arrivals = 0, read_arrivals = -1; Address barrier = 0; };
struct Count { long expected = -1, come = 0, done = 0; };  // bytes, of a barrier that counts them
struct Owner { int cta = -1; long time = 0; };                             // of two bytes of the arena, written in this launch

struct Cta;
struct Fiber {
    Cta* cta;
    int thread;
    bool started = false, finished = false, waited = false;
    const long* word = nullptr;  // blocked while *word == value
    long value = 0;
    long operations = 0;         // of the warp
    long arrivals = 0, passed = 0;        // cluster barriers arrived at, and waited for
    std::set<Address> barriers;           // that it has waited for and that count bytes
    jmp_buf place;
    ucontext_t context;
    struct Copy { Address to; const unsigned char* from; bool inside; };
    std::vector<Copy> copies;             // of no group yet
    std::vector<std::vector<Copy>> groups;
};

struct Slot { int kind; Word words[6]; };
struct Warp { Slot slots[2][32]; int arrived[2] = {0, 0}; long done = 0; };

struct Cta {
    int index;
    std::vector<unsigned char> shared;
    std::vector<Shadow> shadow;
    std::vector<Fiber> fibers;
    Warp warps[THREADS / 32];
    int arrived = 0;
    long generation = 0;
    bool any[2] = {false, false};
    std::map<Address, Count> counts;
    std::set<Address> waited;        // barriers of these that some thread has waited for
    std::vector<long> seen;  // vector clock: up to which time of each CTA its writes are visible here
};

using Function = void (*)(const unsigned char*, const unsigned char*, unsigned char*, float*, void*);

struct Machine {
    Function function;
    Buffer image, weights, arena, logits, state;
    bool dependent;
    std::vector<Owner> owners;
    std::map<const void*, std::vector<long>> released;  // what an acquiring read of a counter makes visible
    int grid = 0;
    Fiber* current = nullptr;
    jmp_buf scheduler;
    std::string error;
    unsigned long long clock = 0;
    std::vector<Cta>* ctas = nullptr;  // of this launch, or of what runs of it
    long cluster_arrived = 0, cluster_generation = 0;
};
inline Machine machine;

[[noreturn]] inline void fail(const std::string& what) {
    Fiber* f = machine.current;
    machine.error = what + " (CTA " + std::to_string(f->cta->index) + ", thread " + std::to_string(f->thread) + ")";
    _longjmp(machine.scheduler, 1);
}

inline void yield() {
    if (_setjmp(machine.current->place) == 0) _longjmp(machine.scheduler, 1);
}
inline void block_while(const long& word, long value) {
    Fiber* f = machine.current;
    f->word = &word, f->value = value;
    while (word == value) yield();
    f->word = nullptr;
}

inline void enter() {
    machine.function(machine.image.data, machine.weights.data, machine.arena.data, reinterpret_cast<float*>(machine.logits.data), machine.state.data);
    Fiber* f = machine.current;
    if (!f->copies.empty()) fail("the thread ends with copies under way");
    for (const auto& group : f->groups)
        if (!group.empty()) fail("the thread ends with copies under way");
    f->finished = true;
    _longjmp(machine.scheduler, 1);
}

inline unsigned char* stack(size_t number) {
    static std::vector<unsigned char*> all;
    while (all.size() <= number)
        all.push_back(static_cast<unsigned char*>(mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)));
    return all[number];
}

inline void resume(Fiber& f, size_t number) {
    machine.current = &f;
    if (_setjmp(machine.scheduler) != 0) return;
    if (f.started) _longjmp(f.place, 1);
    f.started = true;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stack(number);
    f.context.uc_stack.ss_size = STACK;
    f.context.uc_link = nullptr;
    makecontext(&f.context, enter, 0);
    setcontext(&f.context);
}

// CTAs [first, first + count) until all have ended.
inline void run_together(int first, int count, size_t shared, bool backwards) {
    std::vector<Cta> ctas(count);
    machine.ctas = &ctas;
    machine.cluster_arrived = machine.cluster_generation = 0;
    for (int c = 0; c < count; c++) {
        ctas[c].index = first + c;
        ctas[c].shared.assign(shared, 0xff);
        ctas[c].shadow.resize((shared + 1) / 2);
        ctas[c].fibers.resize(THREADS);
        ctas[c].seen.assign(machine.grid, 0);
        ctas[c].seen[first + c] = 1;
        for (int t = 0; t < THREADS; t++) ctas[c].fibers[t].cta = &ctas[c], ctas[c].fibers[t].thread = t;
    }
    size_t left = static_cast<size_t>(count) * THREADS;
    while (left > 0) {
        bool moved = false;
        machine.clock += 500000;
        for (int i = 0; i < count; i++)
            for (int j = 0; j < THREADS; j++) {
                const int c = backwards ? count - 1 - i : i, t = backwards ? THREADS - 1 - j : j;
                Fiber& f = ctas[c].fibers[t];
                if (f.finished || (f.word && *f.word == f.value)) continue;
                moved = true;
                resume(f, static_cast<size_t>(c) * THREADS + t);
                if (!machine.error.empty()) return;
                if (f.finished) left--;
            }
        if (!moved) {
            machine.error = "deadlock: " + std::to_string(left) + " threads wait for what nobody does";
            return;
        }
    }
}

inline void join(std::vector<long>& mine, const std::vector<long>& other) {
    mine.resize(machine.grid, 0);
    for (size_t i = 0; i < other.size(); i++) mine[i] = std::max(mine[i], other[i]);
}

// Shared memory of this CTA, or of another of the cluster, to which bytes are sent. COUNTED bytes came by themselves.
inline std::string name_of(int writer) { return "thread " + std::to_string(writer % THREADS) + " of CTA " + std::to_string(writer / THREADS); }
inline unsigned char* shared_at(Cta& cta, Address at, unsigned bytes, bool writes, long barrier = -1) {
    Fiber* f = machine.current;
    const bool own = &cta == f->cta;
    const int me = f->cta->index * THREADS + f->thread, now = static_cast<int>(cta.generation);
    if (at % (bytes > 16 ? 16 : bytes)) fail("shared memory address " + std::to_string(at) + " is not aligned to " + std::to_string(bytes));
    if (at + bytes > cta.shared.size()) fail("shared memory address " + std::to_string(at) + " is outside its " + std::to_string(cta.shared.size()) + " bytes");
    for (Address half = at / 2; half < (at + bytes + 1) / 2; half++) {
        Shadow& s = cta.shadow[half];
        if (!writes && s.writer == NOBODY) fail("reads shared memory that nobody wrote, at " + std::to_string(at));
        if (s.writer == COUNTED) {
            if (!writes && !f->barriers.count(s.barrier)) fail("reads shared memory at " + std::to_string(at) + " without having waited for what comes there");
            if (writes && !cta.waited.count(s.barrier)) fail("writes to shared memory at " + std::to_string(at) + ", where something comes");
        } else if (s.writer >= 0 && s.writer != me && !(own && s.written != now) && !(writes && f->passed > s.write_arrivals)) {
            fail("a race in shared memory at " + std::to_string(at) + ": " + name_of(s.writer) + " wrote it since the last barrier");
        }
        if (writes) {
            if (s.read >= 0 && s.reader != me && !(own && s.read != now) && f->passed <= s.read_arrivals)
                fail("a race in shared memory at " + std::to_string(at) + ": another thread has read it since the last barrier");
            s.writer = barrier >= 0 ? COUNTED : me, s.written = now, s.write_arrivals = f->arrivals, s.barrier = static_cast<Address>(barrier);
        } else {
            s.reader = s.read == now && s.reader != me ? SEVERAL : me;
            s.read = now;
            s.read_arrivals = std::max(s.read_arrivals, f->arrivals);
        }
    }
    return cta.shared.data() + at;
}
template <class T>
T shared_load(Address at) {
    T v;
    std::memcpy(&v, shared_at(*machine.current->cta, at, sizeof(T), false), sizeof(T));
    return v;
}
template <class T>
void shared_store(Address at, T v) {
    std::memcpy(shared_at(*machine.current->cta, at, sizeof(T), true), &v, sizeof(T));
}

// Global memory.
inline void aligned(const void* at, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(at) % bytes) fail("an address is not aligned to " + std::to_string(bytes));
}
template <class T>
T constant(const void* at) {
    aligned(at, sizeof(T));
    if (!machine.weights.holds(at, sizeof(T)) && !machine.image.holds(at, sizeof(T))) fail("reads a constant outside weights and image");
    T v;
    std::memcpy(&v, at, sizeof(T));
    return v;
}
inline void check_arena(const void* at, size_t bytes, bool writes) {
    aligned(at, bytes);
    if (!machine.arena.holds(at, bytes)) fail("an address outside the arena");
    Fiber* f = machine.current;
    if (machine.dependent && !f->waited) fail("touches the arena before it has waited for the layer in front");
    const size_t first = (static_cast<const unsigned char*>(at) - machine.arena.data) / 2;
    for (size_t half = first; half < first + bytes / 2; half++) {
        Owner& owner = machine.owners[half];
        Cta& cta = *f->cta;
        if (writes) owner = {cta.index, cta.seen[cta.index]};
        else if (owner.cta >= 0 && owner.time > cta.seen[owner.cta]) fail("reads what CTA " + std::to_string(owner.cta) + " wrote, without having waited for it");
    }
}
template <class T>
T activation(const void* at) {
    check_arena(at, sizeof(T), false);
    T v;
    std::memcpy(&v, at, sizeof(T));
    return v;
}
template <class T>
void store_arena(void* at, T v) {
    check_arena(at, sizeof(T), true);
    std::memcpy(at, &v, sizeof(T));
}

inline float to_float(unsigned short bits) {
    static const std::vector<float> table = [] {
        std::vector<float> all(65536);
        for (unsigned i = 0; i < 65536; i++) {
            const unsigned short b = static_cast<unsigned short>(i);
            _Float16 h;
            std::memcpy(&h, &b, 2);
            all[i] = static_cast<float>(h);
        }
        return all;
    }();
    return table[bits];
}
inline unsigned short to_half(float f) {
    if (f != f) return 0x7fff;  // the only NaN that cvt.rn.f16.f32 gives
    const _Float16 h = static_cast<_Float16>(f);
    unsigned short bits;
    std::memcpy(&bits, &h, 2);
    return bits;
}

// Every lane hands in `given`; returns what all lanes of the warp handed in.
enum Kind { FRAGMENT, MULTIPLY, SHUFFLE };
inline const Slot* together(Kind kind, const Slot& given) {
    Fiber* f = machine.current;
    Warp& warp = f->cta->warps[f->thread / 32];
    const long number = ++f->operations;
    const int slot = number % 2;
    warp.slots[slot][f->thread % 32] = given;
    warp.slots[slot][f->thread % 32].kind = kind;
    if (++warp.arrived[slot] == 32) {
        for (const Slot& other : warp.slots[slot])
            if (other.kind != kind) fail("lanes of a warp execute different instructions");
        warp.arrived[slot] = 0;
        warp.done = number;
    } else {
        block_while(warp.done, number - 1);
    }
    return warp.slots[slot];
}

inline void barrier() {
    Cta& cta = *machine.current->cta;
    const long generation = cta.generation;
    if (++cta.arrived == THREADS) {
        cta.arrived = 0;
        cta.generation++;
    } else {
        block_while(cta.generation, generation);
    }
}

}  // namespace emulator

inline int thread() { return emulator::machine.current->thread; }
inline int lane() { return thread() % 32; }
inline int warp() { return thread() / 32; }
inline int cta() { return emulator::machine.current->cta->index; }

inline uint4 load_constant16(const void* from) { return emulator::constant<uint4>(from); }
inline float2 load_constant8(const void* from) { return emulator::constant<float2>(from); }
inline Word load_constant_pair(const void* from) { return emulator::constant<Word>(from); }
inline float load_constant4(const void* from) { return emulator::constant<float>(from); }
inline unsigned short load_constant2(const void* from) { return emulator::constant<unsigned short>(from); }
inline unsigned char load_constant1(const void* from) { return emulator::constant<unsigned char>(from); }

inline uint4 load_activation16(const void* from) { return emulator::activation<uint4>(from); }
inline Word load_activation4(const void* from) { return emulator::activation<Word>(from); }
inline void store_activation16(void* to, uint4 v) { emulator::store_arena(to, v); }
inline void store_activation4(void* to, Word v) { emulator::store_arena(to, v); }
inline void store_logit(float* to, float v) {
    if (!emulator::machine.logits.holds(to, 4)) emulator::fail("a logit outside the answer");
    *to = v;
}

inline Address shared_memory() { return 0; }
inline void store_shared16(Address to, float4 v) { emulator::shared_store(to, v); }
inline void store_shared16(Address to, uint4 v) { emulator::shared_store(to, v); }
inline void store_shared4(Address to, Word v) { emulator::shared_store(to, v); }
inline void store_shared4(Address to, float v) { emulator::shared_store(to, v); }
inline void store_shared2(Address to, unsigned short v) { emulator::shared_store(to, v); }
inline unsigned short load_shared2(Address from) { return emulator::shared_load<unsigned short>(from); }
inline uint4 load_shared16(Address from) { return emulator::shared_load<uint4>(from); }
inline float4 load_shared16f(Address from) { return emulator::shared_load<float4>(from); }
inline float2 load_shared8(Address from) { return emulator::shared_load<float2>(from); }
inline float load_shared4(Address from) { return emulator::shared_load<float>(from); }

inline void copy16(Address to, const void* from, bool inside) {
    if (inside) emulator::check_arena(from, 16, false);
    emulator::machine.current->copies.push_back({to, static_cast<const unsigned char*>(from), inside});
}
namespace emulator {
inline void carry_out(std::vector<Fiber::Copy>& copies) {
    for (const auto& copy : copies) {
        uint4 v = {0, 0, 0, 0};
        if (copy.inside) std::memcpy(&v, copy.from, 16);
        shared_store(copy.to, v);
    }
    copies.clear();
}
}  // namespace emulator
inline void copy_weights16(Address to, const void* from) {
    emulator::aligned(from, 16);
    if (!emulator::machine.weights.holds(from, 16)) emulator::fail("copies weights from outside them");
    emulator::machine.current->copies.push_back({to, static_cast<const unsigned char*>(from), true});
}
inline void copies_committed() {
    auto* f = emulator::machine.current;
    f->groups.push_back(std::move(f->copies));
    f->copies.clear();
}
template <int LEFT>
void copies_left() {
    auto& groups = emulator::machine.current->groups;
    for (size_t i = 0; i + LEFT < groups.size(); i++) emulator::carry_out(groups[i]);
}
inline void copies_arrived() {
    for (auto& group : emulator::machine.current->groups) emulator::carry_out(group);
    emulator::carry_out(emulator::machine.current->copies);
}

inline void sync() { emulator::barrier(); }
inline bool any_of_cta(bool mine) {
    emulator::Cta& cta = *emulator::machine.current->cta;
    bool& any = cta.any[cta.generation % 2];
    any = any || mine;
    emulator::barrier();
    const bool result = any;
    cta.any[cta.generation % 2] = false;
    return result;
}
inline float shuffle_xor(float v, int mask) {
    emulator::Slot slot{};
    std::memcpy(slot.words, &v, 4);
    const emulator::Slot* all = emulator::together(emulator::SHUFFLE, slot);
    std::memcpy(&v, all[lane() ^ mask].words, 4);
    return v;
}

inline Word shuffle_xor(Word v, int mask) {
    emulator::Slot slot{};
    slot.words[0] = v;
    return emulator::together(emulator::SHUFFLE, slot)[lane() ^ mask].words[0];
}

inline uint4 load_fragment(Address row) {
    emulator::Slot slot{};
    slot.words[0] = row;
    const emulator::Slot* all = emulator::together(emulator::FRAGMENT, slot);
    if (row % 16) emulator::fail("ldmatrix reads a row that is not aligned");
    Word v[4];
    for (int matrix = 0; matrix < 4; matrix++) v[matrix] = emulator::shared_load<Word>(all[matrix * 8 + lane() / 4].words[0] + lane() % 4 * 4);
    return {v[0], v[1], v[2], v[3]};
}
inline void multiply(float4& d, uint4 a, Word b0, Word b1) {
    const emulator::Slot* all = emulator::together(emulator::MULTIPLY, {0, {a.x, a.y, a.z, a.w, b0, b1}});
    float* sums[4] = {&d.x, &d.y, &d.z, &d.w};
    for (int i = 0; i < 4; i++) {
        const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            const Word left = all[row % 8 * 4 + k % 8 / 2].words[row / 8 + k / 8 * 2], right = all[column * 4 + k % 8 / 2].words[4 + k / 8];
            *sums[i] += emulator::to_float(left >> k % 2 * 16 & 0xffff) * emulator::to_float(right >> k % 2 * 16 & 0xffff);
        }
    }
}

inline float2 unpack(Word v) { return {emulator::to_float(v & 0xffff), emulator::to_float(v >> 16)}; }
inline Word pack(float low, float high) { return emulator::to_half(low) | static_cast<Word>(emulator::to_half(high)) << 16; }
inline unsigned short half_bits(float f) { return emulator::to_half(f); }
inline Word minimum(Word a, Word b) { return std::min(a, b); }
inline Word bits_of(float f) {
    Word bits;
    std::memcpy(&bits, &f, 4);
    return bits;
}
inline float float_of(Word bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline float exponential(float x) { return std::exp(x); }
inline float divide(float a, float b) { return a / b; }
inline float scaled(float x, float scale, float offset) {
    volatile float product = x * scale;
    return product - offset;
}

inline void computed(Word&) {}
inline void computed(unsigned char*&) {}
inline void dependents_may_start() {}
inline void wait_for_previous() { emulator::machine.current->waited = true; }

inline void add_release(Word* counter, Word v) {
    emulator::Cta& cta = *emulator::machine.current->cta;
    emulator::join(emulator::machine.released[counter], cta.seen);
    cta.seen[cta.index]++;
    *counter += v;
}
// A spin lets the others run; the clock moves by 0.5 ms whenever all have.
inline Word load_acquire(const Word* counter) {
    emulator::yield();
    emulator::join(emulator::machine.current->cta->seen, emulator::machine.released[counter]);
    return *counter;
}
// A look lets the others run, too. The exchange lies in State.
namespace emulator {
inline void check_state(const void* at, size_t bytes) {
    aligned(at, bytes);
    if (!machine.state.holds(at, bytes)) fail("an address outside State");
}
}  // namespace emulator
inline uint4 peek16(const void* from) {
    emulator::check_state(from, 16);
    emulator::yield();
    uint4 v;
    std::memcpy(&v, from, 16);
    return v;
}
inline Word peek4(const void* from) {
    emulator::check_state(from, 4);
    emulator::yield();
    Word v;
    std::memcpy(&v, from, 4);
    return v;
}
inline void hand_on16(void* to, uint4 v) {
    emulator::check_state(to, 16);
    std::memcpy(to, &v, 16);
}
inline void hand_on4(void* to, Word v) {
    emulator::check_state(to, 4);
    std::memcpy(to, &v, 4);
}
inline Word load_relaxed(const Word* word) { return *word; }
inline void store_relaxed(Word* word, Word v) { *word = v; }
inline Word cycles() { return static_cast<Word>(emulator::machine.clock / 500000); }
inline void pause(Word) {}
inline unsigned long long nanoseconds() { return emulator::machine.clock; }

// Clusters: all CTAs of the launch are one.
inline void cluster_arrive() {
    emulator::Machine& m = emulator::machine;
    if (m.current->arrivals != m.current->passed) emulator::fail("arrives at a cluster barrier without having waited for the last");
    m.current->arrivals++;
    if (++m.cluster_arrived == static_cast<long>(m.ctas->size()) * emulator::THREADS) m.cluster_arrived = 0, m.cluster_generation++;
}
inline void cluster_wait() {
    emulator::Fiber* f = emulator::machine.current;
    if (f->passed == f->arrivals) emulator::fail("waits for a cluster barrier at which it has not arrived");
    emulator::block_while(emulator::machine.cluster_generation, f->arrivals - 1);
    f->passed = f->arrivals;
}
inline void make_barrier(Address barrier) {
    emulator::shared_store(barrier, static_cast<unsigned long long>(1));
    emulator::machine.current->cta->counts[barrier] = {};
}
inline void barriers_are_made() {}
inline void before_blocks() {}
namespace emulator {
inline Count& count_of(Cta& cta, Address barrier) {
    if (!cta.counts.count(barrier)) fail("a barrier that was not made, at " + std::to_string(barrier));
    return cta.counts[barrier];
}
inline void settle(Count& count) {
    if (count.expected >= 0 && count.come > count.expected) fail("more bytes come than were expected");
    count.done = count.come == count.expected;
}
// Bytes to the shared memory of a CTA, counted there.
inline void come(Cta& cta, Address to, const void* from, int bytes, Address barrier) {
    Count& count = count_of(cta, barrier);
    std::memcpy(shared_at(cta, to, bytes, true, barrier), from, bytes);
    count.come += bytes;
    settle(count);
}
// Not before it is known that the other has begun, nor when it may have ended.
inline Cta& peer(int rank) {
    if (machine.current->passed == 0) fail("pushes to another CTA before it has waited for all to begin");
    if (rank < 0 || rank >= static_cast<int>(machine.ctas->size())) fail("pushes to CTA " + std::to_string(rank) + ", which is none");
    Cta& there = (*machine.ctas)[rank];
    for (const Fiber& other : there.fibers)
        if (other.finished) fail("pushes to CTA " + std::to_string(rank) + ", which may have ended");
    return there;
}
}  // namespace emulator
inline void expect(Address barrier, int bytes) {
    emulator::Cta& cta = *emulator::machine.current->cta;
    emulator::shared_at(cta, barrier, 8, false);
    emulator::Count& count = emulator::count_of(cta, barrier);
    if (count.expected >= 0) emulator::fail("a barrier serves twice");
    count.expected = bytes;
    emulator::settle(count);
}
inline void copy_block(Address to, const void* from, int bytes, Address barrier) {
    emulator::Cta& cta = *emulator::machine.current->cta;
    emulator::shared_at(cta, barrier, 8, false);
    if (bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16) emulator::fail("a block that is not aligned to 16 bytes");
    if (!emulator::machine.weights.holds(from, bytes)) emulator::fail("copies weights from outside them");
    for (int i = 0; i < bytes; i += 16) emulator::come(cta, to + i, static_cast<const unsigned char*>(from) + i, 16, barrier);
}
inline void copy_block_to(Address to, const void* from, int bytes, Address barrier, int ranks) {
    if (bytes % 16 || reinterpret_cast<uintptr_t>(from) % 16) emulator::fail("a block that is not aligned to 16 bytes");
    if (!emulator::machine.weights.holds(from, bytes)) emulator::fail("copies weights from outside them");
    for (int rank = 0; ranks >> rank; rank++) {
        if (!(ranks >> rank & 1)) continue;
        emulator::Cta& there = emulator::peer(rank);
        for (int i = 0; i < bytes; i += 16) emulator::come(there, to + i, static_cast<const unsigned char*>(from) + i, 16, barrier);
    }
}
inline void arrived(Address barrier) {
    emulator::Fiber* f = emulator::machine.current;
    emulator::shared_at(*f->cta, barrier, 8, false);
    emulator::block_while(emulator::count_of(*f->cta, barrier).done, 0);
    f->barriers.insert(barrier), f->cta->waited.insert(barrier);
}
inline void push16(int rank, Address to, uint4 v, Address barrier) { emulator::come(emulator::peer(rank), to, &v, 16, barrier); }
inline void push4(int rank, Address to, float v, Address barrier) { emulator::come(emulator::peer(rank), to, &v, 4, barrier); }

// Runs one launch; `ctas` of the grid at once, or one after another where they do not wait for one another. Returns 0, or 1 with a message.
extern "C" int emulate(emulator::Function function, int grid, size_t shared, int together, int dependent, int backwards, void* const* buffers,
                       const size_t* sizes, char* message, size_t room) {
    auto& m = emulator::machine;
    const char* names[] = {"image", "weights", "arena", "logits", "state"};
    emulator::Buffer* all[] = {&m.image, &m.weights, &m.arena, &m.logits, &m.state};
    for (int i = 0; i < 5; i++) *all[i] = {names[i], static_cast<unsigned char*>(buffers[i]), sizes[i]};
    m.function = function;
    m.dependent = dependent != 0;
    m.owners.assign(m.arena.size / 2, {});
    m.released.clear();
    m.grid = grid;
    m.error.clear();
    if (together) emulator::run_together(0, grid, shared, backwards);
    else
        for (int i = 0; i < grid && m.error.empty(); i++) emulator::run_together(backwards ? grid - 1 - i : i, 1, shared, backwards);
    std::snprintf(message, room, "%s", m.error.c_str());
    return m.error.empty() ? 0 : 1;
}
