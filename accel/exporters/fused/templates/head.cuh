// A linear layer, and the global average in front of it where there is one. A CTA computes TILE_N outputs, a warp TILE_N / 8 of them.

template <class L>
struct Head {
    static constexpr int PIECES = L::CHANNELS / 8;                                            // of 8 channels
    static constexpr int GROUPS = PIECES >= THREADS ? 1 : (THREADS / PIECES < L::PIXELS ? THREADS / PIECES : L::PIXELS);
    static constexpr int OUTPUTS = L::TILE_N / WARPS, ROUNDS = ceil_div(PIECES, 32);          // a warp's; 256 channels a round
    static constexpr int HELD = ROUNDS <= 4 ? ROUNDS : 0;                                     // rounds whose weights are fetched early
    static constexpr int TOGETHER = smaller(ceil_div(L::PIXELS, GROUPS), 8);                  // pixels that a thread reads at once
    static constexpr int SUMS = 0, MEANS = GROUPS * L::CHANNELS * 4;                          // shared memory

    static constexpr int COUNTERS = 1, ARRIVALS = ceil_div(L::OUT_REAL, L::TILE_N);           // of the grid
    MEMBER int counter_of(int) { return 0; }

    struct Prepared {
        uint4 weights[OUTPUTS][HELD ? HELD : 1];
        float bias[OUTPUTS];
    };

    MEMBER int output_of(int tile, int i) { return tile * L::TILE_N + warp() * OUTPUTS + i; }
    MEMBER uint4 weights_of(const Run& run, int output, int piece) {
        return load_constant16(run.weights + L::WEIGHTS + (output * L::CHANNELS + piece * 8) * 2);
    }

    MEMBER void fetch_ahead(const Run&, int) {}
    MEMBER void drop() {}

    template <bool AHEAD, bool LOOK_FIRST, class Then>
    MEMBER void compute(const Run& run, int tile, Then then) {
        stamp<L>(run, tile, WEIGHTS);
        Prepared ready;
        prepare<AHEAD>(run, tile, ready);
        stamp<L>(run, tile, PREPARED);
        finish(run, tile, ready, then);
    }

    template <bool AHEAD>
    MEMBER void prepare(const Run& run, int tile, Prepared& ready) {
#pragma unroll
        for (int i = 0; i < OUTPUTS; i++) {
            ready.bias[i] = load_constant4(run.weights + L::BIAS + output_of(tile, i) * 4);
#pragma unroll
            for (int round = 0; round < HELD; round++) {
                const int piece = round * 32 + lane();
                ready.weights[i][round] = make_uint4(0, 0, 0, 0);
                if (piece < PIECES) ready.weights[i][round] = weights_of(run, output_of(tile, i), piece);
            }
        }
    }

    template <class Then = Nothing>
    MEMBER void finish(const Run& run, int tile, Prepared& ready, Then then = {}) {
        then.looking(), then.early(), then.late();
        const Address shared = shared_memory();
        for (int item = thread(); item < GROUPS * PIECES; item += THREADS) {
            const int piece = item % PIECES, group = item / PIECES;
            float sums[8] = {0, 0, 0, 0, 0, 0, 0, 0};
#pragma unroll 1
            for (int first = group; first < L::PIXELS; first += TOGETHER * GROUPS) {
                int from[TOGETHER];
                uint4 values[TOGETHER];
#pragma unroll
                for (int i = 0; i < TOGETHER; i++) {
                    const int pixel = first + i * GROUPS;
                    from[i] = pixel < L::PIXELS ? (pixel * L::CHANNELS + piece * 8) * 2 : -1;
                }
                const unsigned char* input = (POLLS ? run.exchange : run.arena) + L::INPUT;
                look(input, from, values);
                look_again(run, input, from, values, L::NUMBER);
#pragma unroll
                for (int i = 0; i < TOGETHER; i++)
                    add(sums, 0, values[i].x), add(sums, 2, values[i].y), add(sums, 4, values[i].z), add(sums, 6, values[i].w);
            }
            const Address to = shared + SUMS + (group * L::CHANNELS + piece * 8) * 4;
            store_shared16(to, make_float4(sums[0], sums[1], sums[2], sums[3]));
            store_shared16(to + 16, make_float4(sums[4], sums[5], sums[6], sums[7]));
        }
        stamp<L>(run, tile, THERE);
        sync();
        stamp<L>(run, tile, SYNCED);
        for (int channel = thread(); channel < L::CHANNELS; channel += THREADS) {
            float sum = 0;
#pragma unroll
            for (int group = 0; group < GROUPS; group++) sum += load_shared4(shared + SUMS + (group * L::CHANNELS + channel) * 4);
            store_shared4(shared + MEANS + channel * 4, sum * (1.0f / L::PIXELS));
        }
        sync();
        stamp<L>(run, tile, SUMMED);
        float results[OUTPUTS];
#pragma unroll
        for (int i = 0; i < OUTPUTS; i++) {
            float sum = 0;
            if constexpr (HELD > 0) {
#pragma unroll
                for (int round = 0; round < HELD; round++) sum += product(shared, ready.weights[i][round], round * 32 + lane());
            } else {
#pragma unroll 4
                for (int piece = lane(); piece < PIECES; piece += 32) sum += product(shared, weights_of(run, output_of(tile, i), piece), piece);
            }
#pragma unroll
            for (int distance = 16; distance > 0; distance /= 2) sum += shuffle_xor(sum, distance);
            results[i] = activated<L::ACTIVATION>(sum + ready.bias[i]);
        }
        stamp<L>(run, tile, MULTIPLIED);
        if (lane() != 0) return;
        const int output = output_of(tile, 0);
        if constexpr (L::TO_LOGITS) {
#pragma unroll
            for (int i = 0; i < OUTPUTS; i++)
                if (output + i < L::OUT_REAL) store_logit(run.logits + output + i, results[i]);
        } else {
#pragma unroll
            for (int i = 0; i < OUTPUTS; i += 2)
                if (output + i < L::OUT_CHANNELS) write4(run, L::OUTPUT + (output + i) * 2, pack(results[i], results[i + 1]));
        }
        stamp<L>(run, tile, STORED);
    }

    MEMBER void add(float (&sums)[8], int at, Word pair) {
        const float2 more = unpack(pair);
        sums[at] += more.x, sums[at + 1] += more.y;
    }

    // 8 channels' means times weights; the means behind the last channel are not there.
    MEMBER float product(Address shared, uint4 weights, int piece) {
        if (piece >= PIECES) return 0;
        const float4 low = load_shared16f(shared + MEANS + piece * 32), high = load_shared16f(shared + MEANS + piece * 32 + 16);
        const float2 a = unpack(weights.x), b = unpack(weights.y), c = unpack(weights.z), d = unpack(weights.w);
        return a.x * low.x + a.y * low.y + b.x * low.z + b.y * low.w + c.x * high.x + c.y * high.y + d.x * high.z + d.y * high.w;
    }
};
