// What every kernel is given, and the arithmetic that ends every layer.

struct Run {
    const unsigned char* image;
    const unsigned char* weights;
    unsigned char* arena;
    float* logits;
    Word* state;              // first the error word: 0, or what happened and, from bit 8, the number of the step
    unsigned char* exchange;  // POLLS: the activations once more, with a bit pattern for "not there yet"
};

constexpr Word TIMED_OUT = 1;
constexpr unsigned long long SPIN_NANOSECONDS = 1000000000ull;

// The bound of a wait: over after SPIN_NANOSECONDS, which it writes to the error word, or when somebody else's was over.
struct Patience {
    int turn = 0;
    unsigned long long start = 0;

    INLINE bool over(const Run& run, Word number) {
        if (++turn % 256) return false;
        if (start == 0) start = nanoseconds();
        if (load_relaxed(run.state) != 0) return true;
        if (nanoseconds() - start < SPIN_NANOSECONDS) return false;
        store_relaxed(run.state, TIMED_OUT | number << 8);
        return true;
    }
};

// Activations, by their offset in the arena. Where POLLS, they go from step to step through `exchange`, every bit inverted: it is zero
// before, and no value is: packing gives the NaN 0x7fff only, never 0xffff. So a word that is not zero has arrived, and needs no counter.
// Tested by minima, without a branch: many lanes' words come in the same moment.
INLINE Word least(uint4 v) { return minimum(minimum(v.x, v.y), minimum(v.z, v.w)); }
INLINE bool arrived(uint4 v) { return least(v) != 0; }
INLINE uint4 inverted(uint4 v) { return make_uint4(~v.x, ~v.y, ~v.z, ~v.w); }

INLINE uint4 read16(const Run& run, int offset, Word number) {
    if constexpr (!POLLS) return load_activation16(run.arena + offset);
    uint4 v = peek16(run.exchange + offset);
    for (Patience patience; !arrived(v) && !patience.over(run, number);) v = peek16(run.exchange + offset);
    return inverted(v);
}

// Several at once, so that a round costs the latency of one read; an offset from `input` below zero gives zeros. `look` asks, `look_again` waits for all.
template <int N>
INLINE void look(const unsigned char* input, const int (&from)[N], uint4 (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        values[i] = POLLS ? make_uint4(~0u, ~0u, ~0u, ~0u) : make_uint4(0, 0, 0, 0);
        if (from[i] >= 0) values[i] = POLLS ? peek16(input + Word(from[i])) : load_activation16(input + Word(from[i]));
    }
}
template <int N>
INLINE void look_again(const Run& run, const unsigned char* input, const int (&from)[N], uint4 (&values)[N], Word number) {
    if constexpr (POLLS) {
        for (Patience patience;;) {
            Word all = ~0u;
#pragma unroll
            for (int i = 0; i < N; i++) all = minimum(all, least(values[i]));
            if (all != 0 || patience.over(run, number)) break;
#pragma unroll
            for (int i = 0; i < N; i++)
                if (!arrived(values[i])) values[i] = peek16(input + Word(from[i]));
        }
#pragma unroll
        for (int i = 0; i < N; i++) values[i] = inverted(values[i]);
    }
}

INLINE void write16(const Run& run, int offset, uint4 v) {
    if constexpr (POLLS) hand_on16(run.exchange + offset, inverted(v));
    store_activation16(run.arena + offset, v);
}
INLINE void write4(const Run& run, int offset, Word v) {
    if constexpr (POLLS) hand_on4(run.exchange + offset, ~v);
    store_activation4(run.arena + offset, v);
}

// What a step does beside its own work: `looking` while it waits for its input, `early` when that is there, `late` when its results are
// stored.
struct Nothing {
    INLINE void looking() const {}
    INLINE void early() const {}
    INLINE void late() const {}
};
template <class Looking, class Early, class Late>
struct Beside {
    Looking looking;
    Early early;
    Late late;
};
template <class Looking, class Early, class Late>
INLINE Beside<Looking, Early, Late> beside(Looking looking, Early early, Late late) { return {looking, early, late}; }

enum Activation { NONE, RELU, HARDSWISH, SILU };
enum Source { ARENA, IMAGE_HALF, IMAGE_BYTES };

template <Activation F>
INLINE float activated(float x) {
    if constexpr (F == RELU) return fmaxf(x, 0.0f);
    if constexpr (F == HARDSWISH) return x * fminf(fmaxf(x + 3.0f, 0.0f), 6.0f) * (1.0f / 6.0f);
    if constexpr (F == SILU) return divide(x, 1.0f + exponential(-x));
    return x;
}

INLINE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
INLINE constexpr int smaller(int a, int b) { return a < b ? a : b; }
INLINE constexpr int larger(int a, int b) { return a > b ? a : b; }
