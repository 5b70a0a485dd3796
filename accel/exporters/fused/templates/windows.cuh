// Layers in which each channel stands alone: depthwise convolutions, and pooling. A thread computes 8 channels of one output pixel.

template <class L>
struct Windows {
    static constexpr int PIECES = L::CHANNELS / 8, ITEMS = L::OUT_HEIGHT * L::OUT_WIDTH * PIECES;

    static constexpr int COUNTERS = 1, ARRIVALS = ceil_div(ITEMS, THREADS);  // of the grid
    MEMBER int counter_of(int) { return 0; }

    struct Prepared {};

    MEMBER void fetch_ahead(const Run&, int) {}
    MEMBER void drop() {}

    template <bool AHEAD, bool LOOK_FIRST, class Then>
    MEMBER void compute(const Run& run, int tile, Then then) {
        Prepared ready;
        finish(run, tile, ready, then);
    }

    template <bool AHEAD>
    MEMBER void prepare(const Run&, int, Prepared&) {}

    template <class Then = Nothing>
    MEMBER void finish(const Run& run, int tile, Prepared&, Then then = {}) {
        then.looking(), then.early(), then.late();
        const int item = tile * THREADS + thread();
        if (item >= ITEMS) return;
        const int pixel = item / PIECES, piece = item % PIECES, out_y = pixel / L::OUT_WIDTH, out_x = pixel % L::OUT_WIDTH;
        float sums[8];
#pragma unroll
        for (int c = 0; c < 8; c++) sums[c] = L::start(run, piece * 8 + c);
        // Unrolled only where it is short: a global average over a large image is a loop.
#pragma unroll L::KERNEL_Y * L::KERNEL_X <= 16 ? L::KERNEL_Y * L::KERNEL_X : 4
        for (int tap = 0; tap < L::KERNEL_Y * L::KERNEL_X; tap++) {
            const int y = out_y * L::STRIDE_Y - L::PAD_Y + tap / L::KERNEL_X, x = out_x * L::STRIDE_X - L::PAD_X + tap % L::KERNEL_X;
            if (y < 0 || y >= L::HEIGHT || x < 0 || x >= L::WIDTH) continue;
            const uint4 values = read16(run, L::INPUT + ((y * L::WIDTH + x) * L::CHANNELS + piece * 8) * 2, L::NUMBER);
            take(run, sums, 0, values.x, tap, piece);
            take(run, sums, 2, values.y, tap, piece);
            take(run, sums, 4, values.z, tap, piece);
            take(run, sums, 6, values.w, tap, piece);
        }
        const int place = pixel * L::CHANNELS + piece * 8;
        if constexpr (L::RESIDUAL >= 0) {
            const uint4 more = read16(run, L::RESIDUAL + place * 2, L::NUMBER);
            add(sums, 0, more.x), add(sums, 2, more.y), add(sums, 4, more.z), add(sums, 6, more.w);
        }
#pragma unroll
        for (int c = 0; c < 8; c++) sums[c] = activated<L::ACTIVATION>(sums[c] * L::FACTOR);
        if constexpr (L::TO_LOGITS) {
#pragma unroll
            for (int c = 0; c < 8; c++)
                if (place + c < L::OUT_REAL) store_logit(run.logits + place + c, sums[c]);
        } else {
            write16(run, L::OUTPUT + place * 2,
                    make_uint4(pack(sums[0], sums[1]), pack(sums[2], sums[3]), pack(sums[4], sums[5]), pack(sums[6], sums[7])));
        }
    }

    MEMBER void add(float (&sums)[8], int at, Word pair) {
        const float2 more = unpack(pair);
        sums[at] += more.x, sums[at + 1] += more.y;
    }

    MEMBER void take(const Run& run, float (&sums)[8], int at, Word pair, int tap, int piece) {
        const float2 values = unpack(pair);
        sums[at] = L::step(run, sums[at], values.x, tap, piece * 8 + at);
        sums[at + 1] = L::step(run, sums[at + 1], values.y, tap, piece * 8 + at + 1);
    }
};

// What a window does with each of its values. FACTOR of the layer is 1, or one over the pixels of an average's window.
struct Largest {
    MEMBER float start(const Run&, int) { return -3.402823466e38f; }  // minus infinity, once it is FP16
    MEMBER float step(const Run&, float sum, float value, int, int) { return fmaxf(sum, value); }
};
struct Mean {
    MEMBER float start(const Run&, int) { return 0.0f; }
    MEMBER float step(const Run&, float sum, float value, int, int) { return sum + value; }
};
// FP32 weights, tap after tap, and biases.
template <int WEIGHTS, int BIAS, int CHANNELS>
struct Depthwise {
    MEMBER float start(const Run& run, int channel) { return load_constant4(run.weights + BIAS + channel * 4); }
    MEMBER float step(const Run& run, float sum, float value, int tap, int channel) {
        return sum + value * load_constant4(run.weights + WEIGHTS + (tap * CHANNELS + channel) * 4);
    }
};
