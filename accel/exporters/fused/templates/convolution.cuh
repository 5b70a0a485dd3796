// A convolution as an implicit GEMM: rows are output pixels, columns output channels, K runs over taps × input channels in steps of 16.
//
// A CTA computes TILE_Y×TILE_X pixels × TILE_N channels. Its warps stand in WARPS_M × WARPS_N × WARPS_K; those along K add up through
// shared memory. `prepare` needs nothing of the layer before and runs ahead of the wait: each lane's weights go to registers, 16 bytes a
// load. `finish` fetches the tile's input pixels at once (a patch with its halo, zeros outside the image), multiplies, adds, stores.
// What follows from the shapes alone comes ready-made with the weights (pack.py), because a step's own instructions take longer than its
// multiplications: the offsets of the K steps, and for each thread which pixels it fetches and where its outputs lie (AIMS).
//
// Columns of the patch are sorted by their remainder modulo the stride, so that neighbouring output pixels are neighbours in the patch;
// PIXEL_PITCH and ROW_PITCH are chosen so that the 8 rows that ldmatrix reads together lie in different banks.

template <class L>
struct Convolution {
    using Constants = L;
    static constexpr int FRAGMENTS_M = L::TILE_Y * L::TILE_X / 16, FRAGMENTS_N = L::TILE_N / 8;
    static constexpr int MINE_M = FRAGMENTS_M / L::WARPS_M, MINE_N = FRAGMENTS_N / L::WARPS_N;
    static constexpr int LOADS = ceil_div(L::CHUNK_STEPS * MINE_N, 2);           // 16 bytes a lane: two B fragments
    static constexpr int PAIRS = L::TILE_Y * L::TILE_X * L::TILE_N / 2;          // of neighbouring channels: what a thread stores
    static constexpr int MINE_PAIRS = ceil_div(PAIRS, THREADS);
    static constexpr int SETS = MINE_M * MINE_N >= 4 ? 1 : (MINE_M * MINE_N >= 2 ? 2 : 4);  // independent chains of multiplications
    static constexpr int PATCH_Y = (L::TILE_Y - 1) * L::STRIDE_Y + L::KERNEL_Y, PATCH_X = (L::TILE_X - 1) * L::STRIDE_X + L::KERNEL_X;
    static constexpr int TILES_X = ceil_div(L::OUT_WIDTH, L::TILE_X), TILES_Y = ceil_div(L::OUT_HEIGHT, L::TILE_Y);
    static constexpr int PIXEL_TILES = TILES_X * TILES_Y, CHANNEL_TILES = ceil_div(L::OUT_CHANNELS, L::TILE_N);
    static constexpr int COUNTERS = PIXEL_TILES, ARRIVALS = CHANNEL_TILES;       // of the grid
    static constexpr int TABLE_ROW = ceil_div(L::CHUNK_STEPS, 4) * 16;           // bytes of one warp's offsets of one chunk
    static constexpr int TABLE_PIECES = L::WARPS_K * L::CHUNKS * TABLE_ROW / 16, MINE_TABLE = ceil_div(TABLE_PIECES, THREADS);
    static constexpr int SHARE = L::WARPS_N * L::WARPS_K * 32;                   // threads that have weights of their own
    static_assert(L::WARPS_M * L::WARPS_N * L::WARPS_K == WARPS);
    static_assert(MINE_M * L::WARPS_M == FRAGMENTS_M && MINE_N * L::WARPS_N == FRAGMENTS_N);

    // Shared memory: offsets of the K steps, sums of the warps, the patch.
    static constexpr int TABLE = 0, SUMS = TABLE + L::WARPS_K * L::CHUNKS * TABLE_ROW;
    static constexpr int PATCH = SUMS + L::WARPS_K * PAIRS * 8;

    MEMBER int counter_of(int tile) { return tile % PIXEL_TILES; }

    // The patch, in copies of 16 bytes; of the image there are none.
    static constexpr int PIECES = larger(L::CHANNELS / 8, 1), COPIES = PATCH_Y * PATCH_X * PIECES, MINE = ceil_div(COPIES, THREADS);
    static constexpr int TOGETHER = POLLS ? smaller(MINE, 8) : MINE;  // looked at together, in 4 registers each

    // A thread's copies and places of outputs from the weights' file; a grid that POLLS has them only where they wait in shared memory,
    // because they are what it needs first.
    static constexpr bool AIMED = L::AIMS >= 0 && (!POLLS || L::SLOT >= 0);
    static constexpr int AIM_LOADS = ceil_div(MINE + MINE_PAIRS, 4);
    static constexpr int HELD = L::CHUNKS == 1 ? LOADS : 0;  // loads of weights that wait in shared memory

    struct Prepared {
        uint4 weights[LOADS];
        float2 bias[MINE_PAIRS];
        uint4 table[MINE_TABLE];
        uint4 aims[AIMED ? AIM_LOADS : 1];
    };

    // Some of a thread's copies: offsets in the arena; -1: outside the image, -2: no copy.
    struct Copies {
        Address to[TOGETHER];
        int from[TOGETHER];
        uint4 values[TOGETHER];
    };

    // Where a pair of outputs lies in the tile: the order in which the accumulators of mma lie.
    MEMBER int pixel_of(int pair) { return pair / 64 / FRAGMENTS_N * 16 + pair % 2 * 8 + pair % 64 / 8; }
    MEMBER int channel_of(int pair) { return pair / 64 % FRAGMENTS_N * 8 + pair / 2 % 4 * 2; }

    MEMBER int column_of(int x) { return x % L::STRIDE_X * ceil_div(PATCH_X, L::STRIDE_X) + x / L::STRIDE_X; }

    // A thread's first load of a chunk; the next ones are SHARE loads apart.
    MEMBER const unsigned char* weights_of(const Run& run, int tile, int chunk) {
        const int block = (tile / PIXEL_TILES * L::CHUNKS + chunk) * LOADS;
        return run.weights + L::WEIGHTS + (block * SHARE + thread() % SHARE) * 16;
    }
    MEMBER const unsigned char* aims_of(const Run& run, int tile) {
        return run.weights + L::AIMS + (tile % PIXEL_TILES * AIM_LOADS * THREADS + thread()) * 16;
    }

    MEMBER void load_weights(const Run& run, int tile, int chunk, uint4 (&weights)[LOADS]) {
        const unsigned char* from = weights_of(run, tile, chunk);
#pragma unroll
        for (int i = 0; i < LOADS; i++) weights[i] = load_constant16(from + i * SHARE * 16);
    }

    // Weights and aims of a tile on their way to shared memory, where each thread finds its own.
    MEMBER Address slot_of(int i) { return shared_memory() + L::SLOT + (i * THREADS + thread()) * 16; }
    MEMBER void fetch_ahead(const Run& run, int tile) {
        if constexpr (L::SLOT < 0) return;
        const unsigned char* from = weights_of(run, tile, 0);
#pragma unroll
        for (int i = 0; i < HELD; i++) copy_weights16(slot_of(i), from + i * SHARE * 16);
        if constexpr (AIMED) {
            const unsigned char* aims = aims_of(run, tile);
#pragma unroll
            for (int i = 0; i < AIM_LOADS; i++) copy_weights16(slot_of(HELD + i), aims + i * THREADS * 16);
        }
    }

    // AHEAD: what is fetched ahead is in shared memory.
    template <bool AHEAD>
    MEMBER void prepare_aims(const Run& run, int tile, Prepared& ready) {
        if constexpr (AIMED) {
#pragma unroll
            for (int i = 0; i < AIM_LOADS; i++)
                ready.aims[i] = AHEAD ? load_shared16(slot_of(HELD + i)) : load_constant16(aims_of(run, tile) + i * THREADS * 16);
        }
    }

    template <bool AHEAD>
    MEMBER void prepare(const Run& run, int tile, Prepared& ready) {
        prepare_aims<AHEAD>(run, tile, ready);
        prepare_rest<AHEAD>(run, tile, ready);
    }

    template <bool AHEAD>
    MEMBER void prepare_rest(const Run& run, int tile, Prepared& ready) {
#pragma unroll
        for (int i = 0; i < MINE_TABLE; i++) {
            const int piece = thread() + i * THREADS;
            if (piece < TABLE_PIECES) ready.table[i] = load_constant16(run.weights + L::OFFSETS + piece * 16);
        }
#pragma unroll
        for (int i = 0; i < MINE_PAIRS; i++) {
            const int pair = thread() + i * THREADS;
            const int channel = tile / PIXEL_TILES * L::TILE_N + channel_of(pair);
            if (PAIRS % THREADS == 0 || pair < PAIRS) ready.bias[i] = load_constant8(run.weights + L::BIAS + channel * 4);
        }
        if constexpr (AHEAD && L::SLOT >= 0 && HELD > 0) {
#pragma unroll
            for (int i = 0; i < LOADS; i++) ready.weights[i] = load_shared16(slot_of(i));
        } else {
            load_weights(run, tile, 0, ready.weights);
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
        Copies copies;
        Prepared ready;
        prepare_aims<AHEAD>(run, tile, ready);
        if constexpr (LOOK_FIRST) ask(run, tile, ready, copies);
        prepare_rest<AHEAD>(run, tile, ready);
        finish_asked<LOOK_FIRST>(run, tile, ready, copies, then);
    }

    template <bool ASKED, class Then>
    MEMBER void finish_asked(const Run& run, int tile, Prepared& ready, Copies& copies, Then then) {
        const Address shared = shared_memory();
        int places[MINE_PAIRS];  // of outputs, in halves from the layer's place in the arena; -1: none
        Word residual[MINE_PAIRS];
#pragma unroll
        for (int i = 0; i < MINE_PAIRS; i++) {
            places[i] = place_of(tile, ready, i);
            residual[i] = 0;
            if (L::RESIDUAL >= 0 && places[i] >= 0) residual[i] = POLLS ? peek4(run.exchange + L::RESIDUAL + places[i] * 2)
                                                                        : load_activation4(run.arena + L::RESIDUAL + places[i] * 2);
        }
        if constexpr (L::SOURCE != ARENA) gather_image<L>(run, shared + PATCH, first_y(tile), first_x(tile));
        else fetch_patch<ASKED>(run, tile, ready, copies);
        if constexpr (L::RESIDUAL >= 0 && POLLS) {
#pragma unroll
            for (int i = 0; i < MINE_PAIRS; i++) {
                for (Patience patience; places[i] >= 0 && residual[i] == 0 && !patience.over(run, L::NUMBER);)
                    residual[i] = peek4(run.exchange + L::RESIDUAL + places[i] * 2);
                residual[i] = ~residual[i];
            }
        }
#pragma unroll
        for (int i = 0; i < MINE_TABLE; i++)
            if (thread() + i * THREADS < TABLE_PIECES) store_shared16(shared + TABLE + (thread() + i * THREADS) * 16, ready.table[i]);
        sync();
        then.early();

        float4 sums[MINE_M][MINE_N];
        multiply_all(run, tile, shared, ready, sums);

        const int along_k = warp() % L::WARPS_K, along_n = warp() / L::WARPS_K % L::WARPS_N, along_m = warp() / L::WARPS_K / L::WARPS_N;
#pragma unroll
        for (int m = 0; m < MINE_M; m++)
#pragma unroll
            for (int n = 0; n < MINE_N; n++) {
                const int fragment = (along_m * MINE_M + m) * FRAGMENTS_N + along_n * MINE_N + n;
                store_shared16(shared + SUMS + along_k * PAIRS * 8 + (fragment * 32 + lane()) * 16, sums[m][n]);
            }
        sync();
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
        then.late();
    }

    MEMBER int first_y(int tile) { return tile % PIXEL_TILES / TILES_X * L::TILE_Y; }
    MEMBER int first_x(int tile) { return tile % PIXEL_TILES % TILES_X * L::TILE_X; }

    MEMBER Word aim_of(const Prepared& ready, int i) {
        const uint4 four = ready.aims[i / 4];
        return i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w;
    }

    MEMBER int place_of(int tile, const Prepared& ready, int i) {
        const int pair = thread() + i * THREADS, channel = tile / PIXEL_TILES * L::TILE_N + channel_of(pair);
        const bool mine = (PAIRS % THREADS == 0 || pair < PAIRS) && (L::OUT_CHANNELS % L::TILE_N == 0 || channel < L::OUT_CHANNELS);
        if constexpr (AIMED) {
            const int place = static_cast<int>(aim_of(ready, MINE + i));
            return mine && place >= 0 ? place + tile / PIXEL_TILES * L::TILE_N : -1;
        }
        const int pixel = pixel_of(pair), y = first_y(tile) + pixel / L::TILE_X, x = first_x(tile) + pixel % L::TILE_X;
        return mine && y < L::OUT_HEIGHT && x < L::OUT_WIDTH ? (y * L::OUT_WIDTH + x) * L::OUT_CHANNELS + channel : -1;
    }

    MEMBER void aim(Copies& copies, const Prepared& ready, int tile, int first) {
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            const int copy = thread() + (first + i) * THREADS;
            if constexpr (AIMED) {
                // From the first bit: 16 bytes of the layer, 18 bits; 16 bytes of the patch, 13; whether it is outside the image.
                const Word word = aim_of(ready, smaller(first + i, MINE - 1));
                copies.to[i] = shared_memory() + PATCH + (word >> 18) % 8192 * 16;
                copies.from[i] = static_cast<int>(word) < 0 ? -1 : L::INPUT + static_cast<int>(word % 262144 * 16);
            } else {
                const int pixel = copy / PIECES, piece = copy % PIECES, y = pixel / PATCH_X, x = pixel % PATCH_X;
                const int from_y = first_y(tile) * L::STRIDE_Y - L::PAD_Y + y, from_x = first_x(tile) * L::STRIDE_X - L::PAD_X + x;
                const bool inside = from_y >= 0 && from_y < L::HEIGHT && from_x >= 0 && from_x < L::WIDTH;
                copies.to[i] = shared_memory() + PATCH + y * L::ROW_PITCH + column_of(x) * L::PIXEL_PITCH + piece * 16;
                copies.from[i] = inside ? L::INPUT + ((from_y * L::WIDTH + from_x) * L::CHANNELS + piece * 8) * 2 : -1;
            }
            if (copy >= COPIES) copies.from[i] = -2;
        }
    }

    // Where POLLS: a first look at the input before `prepare`, which then costs no time of its own.
    MEMBER void ask(const Run& run, int tile, const Prepared& ready, Copies& copies) {
        if constexpr (L::SOURCE == ARENA) {
            aim(copies, ready, tile, 0);
            look(run, copies.from, copies.values);
        }
    }

    // The patch in shared memory; behind the next barrier everybody's is there.
    template <bool ASKED>
    MEMBER void fetch_patch(const Run& run, int tile, const Prepared& ready, Copies& copies) {
#pragma unroll
        for (int first = 0; first < MINE; first += TOGETHER) {
            if (!ASKED || first > 0) aim(copies, ready, tile, first);
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
