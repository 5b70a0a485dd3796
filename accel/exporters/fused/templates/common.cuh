// What every kernel is given, and the arithmetic that ends every layer.

struct State {
    Word error;     // 0: none; 1: a wait took too long
    Word launches;  // finished ones of a persistent kernel
    Word padding[30];
    Word arrived;   // at barriers, over all launches; a cache line of its own
    Word rest[31];
};

struct Run {
    const unsigned char* image;
    const unsigned char* weights;
    unsigned char* arena;
    float* logits;
    State* state;
};

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
