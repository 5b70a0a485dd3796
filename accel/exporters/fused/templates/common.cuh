// What every kernel is given, and the arithmetic that ends every layer.

struct Run {
    const unsigned char* image;
    const unsigned char* weights;
    unsigned char* arena;
    float* logits;
    Word* state;  // first the error word: 0, or what happened and, from bit 8, the number of the step
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
INLINE constexpr int smaller(int a, int b) { return a < b ? a : b; }
INLINE constexpr int larger(int a, int b) { return a > b ? a : b; }
