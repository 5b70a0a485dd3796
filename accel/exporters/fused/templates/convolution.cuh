// A convolution as an implicit GEMM: rows are output pixels, columns output channels, K runs over taps × input channels in steps of 16.
//
// A CTA computes TILE_Y×TILE_X pixels × TILE_N channels. Its warps stand in WARPS_M × WARPS_N × WARPS_K; those along K add up through
// shared memory. `prepare` needs nothing of the layer before and runs ahead of the wait: each lane's weights go to registers, 16 bytes a
// load. `finish` fetches the tile's input pixels at once (a patch with its halo, zeros outside the image), multiplies, adds, stores.
//
// Columns of the patch are sorted by their remainder modulo the stride, so that neighbouring output pixels are neighbours in the patch;
// PIXEL_PITCH and ROW_PITCH are chosen so that the 8 rows that ldmatrix reads together lie in different banks.

template <class Layer>
struct Share;  // of partial_head.cuh

template <class L>
struct Convolution {
    using Constants = L;
    static constexpr int FRAGMENTS_M = L::TILE_Y * L::TILE_X / 16, FRAGMENTS_N = L::TILE_N / 8;
    static constexpr int MINE_M = FRAGMENTS_M / L::WARPS_M, MINE_N = FRAGMENTS_N / L::WARPS_N;
    static constexpr int LOADS = ceil_div(L::CHUNK_STEPS * MINE_N, 2);           // 16 bytes a lane: two B fragments
    static constexpr int PAIRS = L::TILE_Y * L::TILE_X * L::TILE_N / 2;          // of neighbouring channels: what a thread stores
    static constexpr bool HEADED = L::PARTIALS >= 0;                             // what the CTAs send is a share of the head
    static constexpr int MINE_PAIRS = HEADED ? ceil_div(PAIRS, 64 * WARPS) * 2 : ceil_div(PAIRS, THREADS);
    static constexpr bool ALL_MINE = MINE_PAIRS * THREADS == PAIRS;
    static constexpr int SETS = MINE_M * MINE_N >= 4 ? 1 : (MINE_M * MINE_N >= 2 ? 2 : 4);  // independent chains of multiplications
    static constexpr int PATCH_Y = (L::TILE_Y - 1) * L::STRIDE_Y + L::KERNEL_Y, PATCH_X = (L::TILE_X - 1) * L::STRIDE_X + L::KERNEL_X;
    static constexpr int TILES_X = ceil_div(L::OUT_WIDTH, L::TILE_X), TILES_Y = ceil_div(L::OUT_HEIGHT, L::TILE_Y);
    static constexpr int PIXEL_TILES = TILES_X * TILES_Y, CHANNEL_TILES = ceil_div(L::OUT_CHANNELS, L::TILE_N);
    static constexpr int COUNTERS = PIXEL_TILES, ARRIVALS = CHANNEL_TILES;       // of the grid
    static constexpr int TABLE_ROW = ceil_div(L::CHUNK_STEPS, 4) * 16;           // bytes of one warp's offsets of one chunk
    static_assert(L::WARPS_M * L::WARPS_N * L::WARPS_K == WARPS);
    static_assert(MINE_M * L::WARPS_M == FRAGMENTS_M && MINE_N * L::WARPS_N == FRAGMENTS_N);

    // Shared memory: offsets of the K steps, sums of the warps, the patch.
    static constexpr int TABLE = 0, SUMS = TABLE + L::WARPS_K * L::CHUNKS * TABLE_ROW;
    static constexpr int PATCH = SUMS + L::WARPS_K * PAIRS * 8;

    MEMBER int counter_of(int tile) { return tile % PIXEL_TILES; }

    struct Prepared {
        uint4 weights[LOADS];
        float2 bias[MINE_PAIRS];
        uint4 head;  // where HEADED: of the linear layer
    };

    // The patch, in copies of 16 bytes; of the image there are none.
    static constexpr int PIECES = larger(L::CHANNELS / 8, 1), COPIES = PATCH_Y * PATCH_X * PIECES, MINE = ceil_div(COPIES, THREADS);
    static constexpr int TOGETHER = POLLS ? smaller(MINE, 8) : MINE;  // looked at together, in 4 registers each

    // Some of a thread's copies: offsets in the arena; -1: outside the image, -2: no copy.
    struct Copies {
        Address to[TOGETHER];
        int from[TOGETHER];
        uint4 values[TOGETHER];
    };

    // The i-th pair of outputs of this thread. Where HEADED, those that mma would leave it: two of each fragment of its warp.
    MEMBER int pair_of(int i) {
        return HEADED ? (i / 2 * WARPS + warp()) * 64 + lane() * 2 + i % 2 : thread() + i * THREADS;
    }

    // Where a pair of outputs lies in the tile: the order in which the accumulators of mma lie.
    MEMBER int pixel_of(int pair) { return pair / 64 / FRAGMENTS_N * 16 + pair % 2 * 8 + pair % 64 / 8; }
    MEMBER int channel_of(int pair) { return pair / 64 % FRAGMENTS_N * 8 + pair / 2 % 4 * 2; }

    // Bytes from a pixel's row in the patch to what K step `step` reads.
    MEMBER int offset_of(int step) {
        if constexpr (L::SOURCE != ARENA) {
            return step * 32;
        } else {
            constexpr int PER_TAP = L::CHANNELS / 16;
            const int tap = step / PER_TAP, y = tap / L::KERNEL_X, x = tap % L::KERNEL_X;
            return y * L::ROW_PITCH + column_of(x) * L::PIXEL_PITCH + step % PER_TAP * 32;
        }
    }
    MEMBER int column_of(int x) { return x % L::STRIDE_X * ceil_div(PATCH_X, L::STRIDE_X) + x / L::STRIDE_X; }

    MEMBER const unsigned char* weights_of(const Run& run, int tile, int chunk) {
        const int along_n = warp() / L::WARPS_K % L::WARPS_N, along_k = warp() % L::WARPS_K;
        const int block = ((tile / PIXEL_TILES * L::WARPS_N + along_n) * L::WARPS_K + along_k) * L::CHUNKS + chunk;
        return run.weights + L::WEIGHTS + (block * LOADS * 32 + lane()) * 16;
    }

    MEMBER void load_weights(const Run& run, int tile, int chunk, uint4 (&weights)[LOADS]) {
        const unsigned char* from = weights_of(run, tile, chunk);
#pragma unroll
        for (int i = 0; i < LOADS; i++) weights[i] = load_constant16(from + i * 512);
    }

    // Weights of a tile on their way to shared memory, where each thread finds its own.
    MEMBER void fetch_ahead(const Run& run, int tile) {
        if constexpr (L::SLOT < 0) return;
        const unsigned char* from = weights_of(run, tile, 0);
#pragma unroll
        for (int i = 0; i < LOADS; i++) copy_weights16(shared_memory() + L::SLOT + (i * THREADS + thread()) * 16, from + i * 512);
    }

    // AHEAD: the weights are in shared memory, by fetch_ahead.
    template <bool AHEAD>
    MEMBER void prepare(const Run& run, int tile, Prepared& ready) {
        if constexpr (AHEAD && L::SLOT >= 0) {
#pragma unroll
            for (int i = 0; i < LOADS; i++) ready.weights[i] = load_shared16(shared_memory() + L::SLOT + (i * THREADS + thread()) * 16);
        } else {
            load_weights(run, tile, 0, ready.weights);
        }
#pragma unroll
        for (int i = 0; i < MINE_PAIRS; i++) {
            const int pair = pair_of(i), channel = tile / PIXEL_TILES * L::TILE_N + channel_of(pair);
            if (ALL_MINE || pair < PAIRS) ready.bias[i] = load_constant8(run.weights + L::BIAS + channel * 4);
        }
        if constexpr (HEADED) ready.head = Share<Convolution>::weights(run, tile);
        // A step beyond the last has weights of zero; it reads what step 0 reads, which is there and belongs to the same output.
        constexpr int ROW = TABLE_ROW / 4;
        for (int i = thread(); i < L::WARPS_K * L::CHUNKS * ROW; i += THREADS) {
            const int step = i / ROW * L::CHUNK_STEPS + i % ROW;
            const bool real = i % ROW < L::CHUNK_STEPS && step < L::STEPS;
            store_shared4(shared_memory() + TABLE + i * 4, static_cast<Word>(offset_of(real ? step : 0)));
        }
    }

    // `then` has work for when the input is there, and nothing is waited for any more, and for the end.
    template <class Then = Nothing>
    MEMBER void finish(const Run& run, int tile, Prepared& ready, Then then = {}) {
        Copies copies;
        finish_asked<false>(run, tile, ready, copies, then);
    }

    // A step of a grid that POLLS.
    template <bool AHEAD, bool LOOK_FIRST, class Then>
    MEMBER void compute(const Run& run, int tile, Then then) {
        stamp<L>(run, tile, WEIGHTS);
        Copies copies;
        Prepared ready;
        if constexpr (LOOK_FIRST) ask(run, tile, copies);
        stamp<L>(run, tile, LOOKED);
        prepare<AHEAD>(run, tile, ready);
        stamp<L>(run, tile, PREPARED);
        finish_asked<LOOK_FIRST>(run, tile, ready, copies, then);
    }

    template <bool ASKED, class Then>
    MEMBER void finish_asked(const Run& run, int tile, Prepared& ready, Copies& copies, Then then) {
        const Address shared = shared_memory();
        const int pixel_tile = tile % PIXEL_TILES, first_channel = tile / PIXEL_TILES * L::TILE_N;
        const int out_y = pixel_tile / TILES_X * L::TILE_Y, out_x = pixel_tile % TILES_X * L::TILE_X;
        int places[MINE_PAIRS];  // of outputs, in halves from the layer's place in the arena; -1: none
        Word residual[MINE_PAIRS];
#pragma unroll
        for (int i = 0; i < MINE_PAIRS; i++) {
            const int pair = pair_of(i), pixel = pixel_of(pair), channel = first_channel + channel_of(pair);
            const int y = out_y + pixel / L::TILE_X, x = out_x + pixel % L::TILE_X;
            const bool inside = (ALL_MINE || pair < PAIRS) && y < L::OUT_HEIGHT && x < L::OUT_WIDTH && channel < L::OUT_CHANNELS;
            places[i] = inside ? (y * L::OUT_WIDTH + x) * L::OUT_CHANNELS + channel : -1;
            residual[i] = 0;
            if (L::RESIDUAL >= 0 && inside) residual[i] = POLLS ? peek4(run.exchange + L::RESIDUAL + places[i] * 2)
                                                                : load_activation4(run.arena + L::RESIDUAL + places[i] * 2);
        }
        if constexpr (L::SOURCE != ARENA) gather_image<L>(run, shared + PATCH, out_y, out_x);
        else fetch_patch<ASKED>(run, tile, copies);
        if constexpr (L::RESIDUAL >= 0 && POLLS) {
#pragma unroll
            for (int i = 0; i < MINE_PAIRS; i++) {
                for (Patience patience; places[i] >= 0 && residual[i] == 0 && !patience.over(run, L::NUMBER);)
                    residual[i] = peek4(run.exchange + L::RESIDUAL + places[i] * 2);
                residual[i] = ~residual[i];
            }
        }
        stamp<L>(run, tile, THERE);
        sync();
        stamp<L>(run, tile, SYNCED);
        then.early();
        stamp<L>(run, tile, SENT);

        float4 sums[MINE_M][MINE_N];
        multiply_all(run, tile, shared, ready, sums);
        stamp<L>(run, tile, MULTIPLIED);

        const int along_k = warp() % L::WARPS_K, along_n = warp() / L::WARPS_K % L::WARPS_N, along_m = warp() / L::WARPS_K / L::WARPS_N;
#pragma unroll
        for (int m = 0; m < MINE_M; m++)
#pragma unroll
            for (int n = 0; n < MINE_N; n++) {
                const int fragment = (along_m * MINE_M + m) * FRAGMENTS_N + along_n * MINE_N + n;
                store_shared16(shared + SUMS + along_k * PAIRS * 8 + (fragment * 32 + lane()) * 16, sums[m][n]);
            }
        sync();
        stamp<L>(run, tile, SUMMED);
        if constexpr (HEADED) Share<Convolution>::send(run, tile, ready, places, residual);
        else store(run, shared, ready, places, residual);
        stamp<L>(run, tile, STORED);
        then.late();
    }

    MEMBER void store(const Run& run, Address shared, const Prepared& ready, const int (&places)[MINE_PAIRS],
                      const Word (&residual)[MINE_PAIRS]) {
#pragma unroll
        for (int i = 0; i < MINE_PAIRS; i++) {
            const int pair = thread() + i * THREADS;
            if (places[i] < 0) continue;
            float2 sum = ready.bias[i];
            float2 parts[L::WARPS_K];
#pragma unroll
            for (int k = 0; k < L::WARPS_K; k++) parts[k] = load_shared8(shared + SUMS + k * PAIRS * 8 + pair * 8);
#pragma unroll
            for (int k = 0; k < L::WARPS_K; k++) sum.x += parts[k].x, sum.y += parts[k].y;
            if constexpr (L::RESIDUAL >= 0) {
                const float2 more = unpack(residual[i]);
                sum.x += more.x, sum.y += more.y;
            }
            const float low = activated<L::ACTIVATION>(sum.x), high = activated<L::ACTIVATION>(sum.y);
            if constexpr (L::TO_LOGITS) {
                const int place = places[i];
                if (place < L::OUT_REAL) store_logit(run.logits + place, low);
                if (place + 1 < L::OUT_REAL) store_logit(run.logits + place + 1, high);
            } else {
                write4(run, L::OUTPUT + places[i] * 2, pack(low, high));
            }
        }
    }

    MEMBER void aim(Copies& copies, int tile, int first) {
        const int pixel_tile = tile % PIXEL_TILES, out_y = pixel_tile / TILES_X * L::TILE_Y, out_x = pixel_tile % TILES_X * L::TILE_X;
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            const int copy = thread() + (first + i) * THREADS, pixel = copy / PIECES, piece = copy % PIECES;
            const int y = pixel / PATCH_X, x = pixel % PATCH_X;
            const int from_y = out_y * L::STRIDE_Y - L::PAD_Y + y, from_x = out_x * L::STRIDE_X - L::PAD_X + x;
            const bool inside = from_y >= 0 && from_y < L::HEIGHT && from_x >= 0 && from_x < L::WIDTH;
            copies.to[i] = shared_memory() + PATCH + y * L::ROW_PITCH + column_of(x) * L::PIXEL_PITCH + piece * 16;
            copies.from[i] = copy >= COPIES ? -2 : inside ? L::INPUT + ((from_y * L::WIDTH + from_x) * L::CHANNELS + piece * 8) * 2 : -1;
        }
    }

    // Where POLLS: a first look at the input before `prepare`, which then costs no time of its own.
    MEMBER void ask(const Run& run, int tile, Copies& copies) {
        if constexpr (L::SOURCE == ARENA) {
            aim(copies, tile, 0);
            look(run, copies.from, copies.values);
        }
    }

    // The patch in shared memory; behind the next barrier everybody's is there.
    template <bool ASKED>
    MEMBER void fetch_patch(const Run& run, int tile, Copies& copies) {
#pragma unroll
        for (int first = 0; first < MINE; first += TOGETHER) {
            if (!ASKED || first > 0) aim(copies, tile, first);
            if constexpr (POLLS) {
                if (!ASKED || first > 0) look(run, copies.from, copies.values);
                look_again(run, copies.from, copies.values, L::NUMBER);
#pragma unroll
                for (int i = 0; i < TOGETHER; i++)
                    if (copies.from[i] != -2) store_shared16(copies.to[i], copies.values[i]);
            } else {
#pragma unroll
                for (int i = 0; i < TOGETHER; i++)
                    if (copies.from[i] != -2) copy16(copies.to[i], run.arena + larger(copies.from[i], 0), copies.from[i] >= 0);
            }
        }
        if constexpr (!POLLS) copies_arrived();
    }

    MEMBER void multiply_all(const Run& run, int tile, Address shared, Prepared& ready, float4 (&total)[MINE_M][MINE_N]) {
        const int along_k = warp() % L::WARPS_K, along_m = warp() / L::WARPS_K / L::WARPS_N;
        Address rows[MINE_M];
#pragma unroll
        for (int m = 0; m < MINE_M; m++) {
            const int pixel = (along_m * MINE_M + m) * 16 + lane() % 16, y = pixel / L::TILE_X, x = pixel % L::TILE_X;
            const int row = L::SOURCE == ARENA ? y * L::STRIDE_Y * L::ROW_PITCH + x * L::PIXEL_PITCH : pixel * L::PIXEL_PITCH;
            rows[m] = shared + PATCH + row + lane() / 16 * 16;
        }
        float4 sums[SETS][MINE_M][MINE_N];
#pragma unroll
        for (int i = 0; i < SETS * MINE_M * MINE_N; i++) sums[i / (MINE_M * MINE_N)][i / MINE_N % MINE_M][i % MINE_N] = make_float4(0, 0, 0, 0);

#pragma unroll 1
        for (int chunk = 0; chunk < L::CHUNKS; chunk++) {
            if (L::CHUNKS > 1 && chunk > 0) load_weights(run, tile, chunk, ready.weights);
            const Address table = shared + TABLE + (along_k * L::CHUNKS + chunk) * TABLE_ROW;
            uint4 offsets = make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int step = 0; step < L::CHUNK_STEPS; step++) {
                if (step % 4 == 0) offsets = load_shared16(table + step * 4);
                const Word offset = step % 4 == 0 ? offsets.x : step % 4 == 1 ? offsets.y : step % 4 == 2 ? offsets.z : offsets.w;
#pragma unroll
                for (int m = 0; m < MINE_M; m++) {
                    const uint4 a = load_fragment(rows[m] + offset);
#pragma unroll
                    for (int n = 0; n < MINE_N; n++) {
                        const int fragment = step * MINE_N + n;
                        const uint4 b = ready.weights[fragment / 2];
                        multiply(sums[step % SETS][m][n], a, fragment % 2 ? b.z : b.x, fragment % 2 ? b.w : b.y);
                    }
                }
            }
        }
#pragma unroll
        for (int m = 0; m < MINE_M; m++)
#pragma unroll
            for (int n = 0; n < MINE_N; n++) {
                float4 sum = sums[0][m][n];
#pragma unroll
                for (int set = 1; set < SETS; set++) {
                    const float4 more = sums[set][m][n];
                    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
                }
                total[m][n] = sum;
            }
    }
};
