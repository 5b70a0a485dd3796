// A convolution as an implicit GEMM: rows are output pixels, columns output channels, K runs over taps × input channels in steps of 16.
//
// A CTA computes TILE_Y×TILE_X pixels × TILE_N channels. Its warps stand in WARPS_M × WARPS_N × WARPS_K; those along K add up through
// shared memory. `prepare` needs nothing of the layer before and runs ahead of the wait: each lane's weights go to registers, 16 bytes a
// load. `finish` fetches the tile's input pixels at once (a patch with its halo, zeros outside the image), multiplies, adds, stores.
// What follows from the shapes alone comes ready-made with the weights (pack.py) where it is fetched ahead, because a step's own instructions
// take longer than its multiplications: the offsets of the K steps (OFFSETS), and for each thread which pixels it fetches and where its
// outputs lie (AIMS). Where one of the two is -1 `prepare` computes it, the same words: a kernel of a chain has the time for it.
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
    static constexpr int TABLE_PIECES = L::WARPS_K * L::CHUNKS * TABLE_ROW / 16, MINE_TABLE = ceil_div(TABLE_PIECES, THREADS);
    static constexpr int SHARE = L::WARPS_N * L::WARPS_K * 32;                   // threads that have weights of their own
    static_assert(L::WARPS_M * L::WARPS_N * L::WARPS_K == WARPS);
    static_assert(MINE_M * L::WARPS_M == FRAGMENTS_M && MINE_N * L::WARPS_N == FRAGMENTS_N);

    // Shared memory: offsets of the K steps, sums of the warps, the patch.
    static constexpr int TABLE = 0, SUMS = L::SUMS, PATCH = L::PATCH;
    static_assert(SUMS >= TABLE_PIECES * 16 && PATCH >= SUMS + L::WARPS_K * PAIRS * 8);

    MEMBER int counter_of(int tile) { return tile % PIXEL_TILES; }

    // The patch, in copies of 16 bytes; of the image there are none.
    static constexpr int PIECES = larger(L::CHANNELS / 8, 1), COPIES = PATCH_Y * PATCH_X * PIECES, MINE = ceil_div(COPIES, THREADS);
    static constexpr int TOGETHER = POLLS ? smaller(MINE, 8) : MINE;  // looked at together, in 4 registers each

    // A thread's copies and places of outputs in words (pack.aims), from the weights' file or computed ahead; a grid that POLLS has them only
    // where they wait in shared memory, because they are what it needs first.
    static constexpr bool AIMED = POLLS ? L::AIMS >= 0 && L::SLOT >= 0 : L::AIMABLE;
    static constexpr int AIMED_PAIRS = ceil_div(PAIRS, THREADS), AIM_LOADS = ceil_div(MINE + AIMED_PAIRS, 4);

    // What waits in shared memory from SLOT on: weights, unless they come in chunks; aims; where BULK, the table of K offsets and biases.
    static constexpr int SLOT = larger(L::SLOT, 0), HELD = L::CHUNKS == 1 ? LOADS : 0, SLOT_WARPS = BULK ? SHARE / 32 : WARPS;
    static constexpr int WEIGHT_BYTES = HELD * SLOT_WARPS * 512, AIM_BYTES = AIMED ? AIM_LOADS * THREADS * 16 : 0;
    static constexpr int OFFSETS_AT = WEIGHT_BYTES + AIM_BYTES, BIAS_AT = OFFSETS_AT + TABLE_PIECES * 16, BLOCK = BIAS_AT + L::TILE_N * 4;

    // Where each lane can have its warp's K offsets in registers, they are there before the input is.
    static constexpr bool OFFSETS_HELD = BULK && L::SLOT >= 0 && L::CHUNKS == 1 && L::CHUNK_STEPS <= 24;

    struct Prepared {
        uint4 weights[LOADS];
        float2 bias[MINE_PAIRS];
        uint4 head;  // where HEADED: of the linear layer
        uint4 table[OFFSETS_HELD ? TABLE_ROW / 16 : MINE_TABLE];  // this warp's row, or this thread's pieces of all
        uint4 aims[AIMED ? AIM_LOADS : 1];
    };

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

    MEMBER int column_of(int x) { return x % L::STRIDE_X * ceil_div(PATCH_X, L::STRIDE_X) + x / L::STRIDE_X; }

    MEMBER const unsigned char* weights_of(const Run& run, int tile, int chunk) {
        const int along_n = warp() / L::WARPS_K % L::WARPS_N, along_k = warp() % L::WARPS_K;
        const int block = ((tile / PIXEL_TILES * L::WARPS_N + along_n) * L::WARPS_K + along_k) * L::CHUNKS + chunk;
        return run.weights + L::WEIGHTS + (block * LOADS * 32 + lane()) * 16;
    }
    MEMBER const unsigned char* aims_of(const Run& run, int tile) {
        return run.weights + L::AIMS + ((tile % PIXEL_TILES * WARPS + warp()) * AIM_LOADS * 32 + lane()) * 16;
    }

    MEMBER void load_weights(const Run& run, int tile, int chunk, uint4 (&weights)[LOADS]) {
        const unsigned char* from = weights_of(run, tile, chunk);
#pragma unroll
        for (int i = 0; i < LOADS; i++) weights[i] = load_constant16(from + i * 512);
    }

    // A thread's weights and aims in shared memory; further ones are 512 bytes apart.
    MEMBER Address weights_at() { return shared_memory() + SLOT + (warp() % SLOT_WARPS * LOADS * 32 + lane()) * 16; }
    MEMBER Address aims_at() { return shared_memory() + SLOT + WEIGHT_BYTES + (warp() * AIM_LOADS * 32 + lane()) * 16; }

    // What a tile needs of the weights' file on its way to shared memory: in blocks, or each thread copies what it will itself read.
    MEMBER void fetch_ahead(const Run& run, int tile) {
        if constexpr (L::SLOT < 0) return;
        if constexpr (BULK) {
            if (thread() == L::NUMBER % WARPS * 32) fetch_blocks(run, tile);
            return;
        }
        const unsigned char *weights = weights_of(run, tile, 0), *aims = aims_of(run, tile);
#pragma unroll
        for (int i = 0; i < HELD; i++) copy_weights16(weights_at() + i * 512, weights + i * 512);
#pragma unroll
        for (int i = 0; i < (AIMED ? AIM_LOADS : 0); i++) copy_weights16(aims_at() + i * 512, aims + i * 512);
    }

    // No before_blocks(): what was in their place came by blocks too and was only read; it would wait for the look that is on its way.
    MEMBER void fetch_blocks(const Run& run, int tile) {
        const Address to = shared_memory() + SLOT, barrier = shared_memory() + L::BARRIER;
        const int channels = tile / PIXEL_TILES, pixels = tile % PIXEL_TILES;
        expect(barrier, BLOCK);
        if constexpr (AIMED) copy_block(to + WEIGHT_BYTES, run.weights + L::AIMS + pixels * AIM_BYTES, AIM_BYTES, barrier);
        copy_block(to + OFFSETS_AT, run.weights + L::OFFSETS, TABLE_PIECES * 16, barrier);
        copy_block(to + BIAS_AT, run.weights + L::BIAS + channels * L::TILE_N * 4, L::TILE_N * 4, barrier);
        if constexpr (HELD > 0) copy_block(to, run.weights + L::WEIGHTS + channels * WEIGHT_BYTES, WEIGHT_BYTES, barrier);
    }

    MEMBER void drop() {
        if constexpr (BULK && L::SLOT >= 0) arrived(shared_memory() + L::BARRIER);
    }

    // AHEAD: what is fetched ahead is in shared memory.
    template <bool AHEAD>
    MEMBER void prepare(const Run& run, int tile, Prepared& ready) {
        prepare_rest<AHEAD>(run, tile, ready);  // first, so that what is computed is while weights are on their way
        prepare_aims<AHEAD>(run, tile, ready);
    }

    template <bool AHEAD>
    MEMBER void prepare_aims(const Run& run, int tile, Prepared& ready) {
        if constexpr (AHEAD && BULK && L::SLOT >= 0) arrived(shared_memory() + L::BARRIER);
        if constexpr (AIMED && L::AIMS < 0) compute_aims(tile, ready.aims);
#pragma unroll
        for (int i = 0; i < (AIMED && L::AIMS >= 0 ? AIM_LOADS : 0); i++)
            ready.aims[i] = AHEAD ? load_shared16(aims_at() + i * 512) : load_constant16(aims_of(run, tile) + i * 512);
    }

    template <bool AHEAD>
    MEMBER void prepare_rest(const Run& run, int tile, Prepared& ready) {
        constexpr bool IN_BLOCK = AHEAD && BULK && L::SLOT >= 0;
        const Address slot = shared_memory() + SLOT;
        if constexpr (OFFSETS_HELD) {
            const int first = warp() % L::WARPS_K * TABLE_ROW;
#pragma unroll
            for (int i = 0; i < TABLE_ROW / 16; i++)
                ready.table[i] = AHEAD ? load_shared16(slot + OFFSETS_AT + first + i * 16) : load_constant16(run.weights + L::OFFSETS + first + i * 16);
        } else if constexpr (L::OFFSETS >= 0) {
#pragma unroll
            for (int i = 0; i < MINE_TABLE; i++) {
                const int piece = thread() + i * THREADS;
                if (piece < TABLE_PIECES) ready.table[i] = IN_BLOCK ? load_shared16(slot + OFFSETS_AT + piece * 16)
                                                                    : load_constant16(run.weights + L::OFFSETS + piece * 16);
            }
        }
#pragma unroll
        for (int i = 0; i < MINE_PAIRS; i++) {
            const int pair = pair_of(i), channel = channel_of(pair);
            if (!ALL_MINE && pair >= PAIRS) continue;
            if constexpr (IN_BLOCK) ready.bias[i] = load_shared8(slot + BIAS_AT + channel * 4);
            else ready.bias[i] = load_constant8(run.weights + L::BIAS + (tile / PIXEL_TILES * L::TILE_N + channel) * 4);
        }
        if constexpr (HEADED) ready.head = Share<Convolution>::weights(run, tile);
        if constexpr (AHEAD && L::SLOT >= 0 && HELD > 0) {
#pragma unroll
            for (int i = 0; i < LOADS; i++) ready.weights[i] = load_shared16(weights_at() + i * 512);
        } else {
            load_weights(run, tile, 0, ready.weights);
        }
        if constexpr (L::OFFSETS < 0) compute_offsets();
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
        stamp<L>(run, tile, WEIGHTS);
        if constexpr (LOOK_FIRST) ask(run, tile, ready, copies);
        stamp<L>(run, tile, LOOKED);
        prepare_rest<AHEAD>(run, tile, ready);
        stamp<L>(run, tile, PREPARED);
        if constexpr (!LOOK_FIRST) ask(run, tile, ready, copies);
        finish_asked<true>(run, tile, ready, copies, then);
    }

    template <bool ASKED, class Then>
    MEMBER void finish_asked(const Run& run, int tile, Prepared& ready, Copies& copies, Then then) {
        const Address shared = shared_memory();
        int places[MINE_PAIRS];  // of outputs, in halves from the layer's place in the arena; -1: none
        Word residual[MINE_PAIRS];
        unsigned char *sent[MINE_PAIRS], *kept[MINE_PAIRS];  // where they go in the exchange, and in the arena
#pragma unroll
        for (int i = 0; i < MINE_PAIRS; i++) {
            places[i] = place_of(tile, ready, i);
            if constexpr (POLLS && !L::TO_LOGITS && L::SOURCE == ARENA && !HEADED) {
                sent[i] = run.exchange + L::OUTPUT + Word(larger(places[i], 0)) * 2, computed(sent[i]);
                kept[i] = run.arena + L::OUTPUT + Word(larger(places[i], 0)) * 2, computed(kept[i]);
            }
            residual[i] = 0;
            if (L::RESIDUAL >= 0 && places[i] >= 0) residual[i] = POLLS ? peek4(run.exchange + L::RESIDUAL + places[i] * 2)
                                                                        : load_activation4(run.arena + L::RESIDUAL + places[i] * 2);
        }
        Address rows[MINE_M];
        rows_of(rows);
        Address added = sums_at(shared), result = shared + SUMS + thread() * 8;
        computed(added), computed(result);
        if constexpr (OFFSETS_HELD && MINE_M == 1) add_row(ready.table, rows[0]);
        then.looking();
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
        for (int i = 0; i < (OFFSETS_HELD || L::OFFSETS < 0 ? 0 : MINE_TABLE); i++)
            if (thread() + i * THREADS < TABLE_PIECES) store_shared16(shared + TABLE + (thread() + i * THREADS) * 16, ready.table[i]);
        stamp<L>(run, tile, THERE);
        sync();
        stamp<L>(run, tile, SYNCED);
        then.early();
        stamp<L>(run, tile, SENT);

        float4 sums[MINE_M][MINE_N];
        multiply_all(run, tile, shared, ready, rows, sums);
        stamp<L>(run, tile, MULTIPLIED);

#pragma unroll
        for (int m = 0; m < MINE_M; m++)
#pragma unroll
            for (int n = 0; n < MINE_N; n++) store_shared16(added + (m * FRAGMENTS_N + n) * 512, sums[m][n]);
        sync();
        stamp<L>(run, tile, SUMMED);
        if constexpr (HEADED) Share<Convolution>::send(run, tile, ready, places, residual);
        else store(run, result, ready, places, residual, sent, kept);
        stamp<L>(run, tile, STORED);
        then.late();
    }

    MEMBER void store(const Run& run, Address result, const Prepared& ready, const int (&places)[MINE_PAIRS], const Word (&residual)[MINE_PAIRS],
                      unsigned char* const (&sent)[MINE_PAIRS], unsigned char* const (&kept)[MINE_PAIRS]) {
#pragma unroll
        for (int i = 0; i < MINE_PAIRS; i++) {
            if (places[i] < 0) continue;
            float2 sum = ready.bias[i];
            float2 parts[L::WARPS_K];
#pragma unroll
            for (int k = 0; k < L::WARPS_K; k++) parts[k] = load_shared8(result + (i * THREADS + k * PAIRS) * 8);
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
                const Word both = pack(low, high);
                if constexpr (POLLS && L::SOURCE == ARENA) hand_on4(sent[i], ~both), store_activation4(kept[i], both);
                else write4(run, L::OUTPUT + places[i] * 2, both);
            }
        }
    }

    MEMBER int first_y(int tile) { return tile % PIXEL_TILES / TILES_X * L::TILE_Y; }
    MEMBER int first_x(int tile) { return tile % PIXEL_TILES % TILES_X * L::TILE_X; }

    // As pack.k_offsets: a step beyond the last has weights of zero; it reads what step 0 reads.
    MEMBER void compute_offsets() {
        constexpr int ROW = TABLE_ROW / 4;
        for (int i = thread(); i < TABLE_PIECES * 4; i += THREADS) {
            const int step = i / ROW * L::CHUNK_STEPS + i % ROW;
            const bool real = i % ROW < L::CHUNK_STEPS && step < L::STEPS;
            store_shared4(shared_memory() + TABLE + i * 4, static_cast<Word>(offset_of(real ? step : 0)));
        }
    }
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

    // As pack.aims.
    MEMBER void compute_aims(int tile, uint4 (&aims)[AIM_LOADS]) {
#pragma unroll
        for (int i = 0; i < AIM_LOADS; i++) {
            const int first = i * 4;
            aims[i] = make_uint4(word_of(tile, first), word_of(tile, first + 1), word_of(tile, first + 2), word_of(tile, first + 3));
            computed(aims[i].x), computed(aims[i].y), computed(aims[i].z), computed(aims[i].w);
        }
    }
    MEMBER Word word_of(int tile, int i) { return i < MINE ? copy_word(tile, i) : i < MINE + AIMED_PAIRS ? pair_word(tile, i - MINE) : 0; }
    MEMBER Word copy_word(int tile, int i) {
        const int copy = thread() + i * THREADS, pixel = copy / PIECES, piece = copy % PIECES, y = pixel / PATCH_X, x = pixel % PATCH_X;
        const int from_y = first_y(tile) * L::STRIDE_Y - L::PAD_Y + y, from_x = first_x(tile) * L::STRIDE_X - L::PAD_X + x;
        const bool inside = is_copy(i) && from_y >= 0 && from_y < L::HEIGHT && from_x >= 0 && from_x < L::WIDTH;
        const Word from = inside ? static_cast<Word>((from_y * L::WIDTH + from_x) * PIECES + piece) << 4 : 1u << 31;
        const Word to = y * (L::ROW_PITCH / 16) + column_of(x) * (L::PIXEL_PITCH / 16) + piece;
        return from | to >> 4 << 22 | (to & 15);
    }
    MEMBER Word pair_word(int tile, int i) {
        const int pair = thread() + i * THREADS, pixel = pixel_of(pair), y = first_y(tile) + pixel / L::TILE_X, x = first_x(tile) + pixel % L::TILE_X;
        return y < L::OUT_HEIGHT && x < L::OUT_WIDTH ? static_cast<Word>((y * L::OUT_WIDTH + x) * L::OUT_CHANNELS + channel_of(pair)) : ~0u;
    }

    MEMBER Word aim_of(const Prepared& ready, int i) {
        const uint4 four = ready.aims[i / 4];
        return i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w;
    }

    MEMBER int place_of(int tile, const Prepared& ready, int i) {
        const int pair = pair_of(i), channel = tile / PIXEL_TILES * L::TILE_N + channel_of(pair);
        const bool mine = (ALL_MINE || pair < PAIRS) && (L::OUT_CHANNELS % L::TILE_N == 0 || channel < L::OUT_CHANNELS);
        if constexpr (AIMED && !HEADED) {
            const int place = static_cast<int>(aim_of(ready, MINE + i));
            return mine && place >= 0 ? place + tile / PIXEL_TILES * L::TILE_N : -1;
        }
        const int pixel = pixel_of(pair), y = first_y(tile) + pixel / L::TILE_X, x = first_x(tile) + pixel % L::TILE_X;
        return mine && y < L::OUT_HEIGHT && x < L::OUT_WIDTH ? (y * L::OUT_WIDTH + x) * L::OUT_CHANNELS + channel : -1;
    }

    // The last of TOGETHER may be none of any thread's: i runs beyond MINE there.
    MEMBER bool is_copy(int i) { return i < MINE && (COPIES % THREADS == 0 || thread() + i * THREADS < COPIES); }
    MEMBER void aim(Copies& copies, const Prepared& ready, int tile, int first) {
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            const int copy = thread() + (first + i) * THREADS;
            if constexpr (AIMED) {
                const Word word = first + i < MINE ? aim_of(ready, first + i) : 1u << 31;  // as pack.aims says
                copies.to[i] = shared_memory() + PATCH + (word >> 14 & 0x1ff00) + (word & 15) * 16;
                copies.from[i] = static_cast<int>(word & 0x803ffff0);
                computed(copies.to[i]);
            } else {
                const int pixel = copy / PIECES, piece = copy % PIECES, y = pixel / PATCH_X, x = pixel % PATCH_X;
                const int from_y = first_y(tile) * L::STRIDE_Y - L::PAD_Y + y, from_x = first_x(tile) * L::STRIDE_X - L::PAD_X + x;
                const bool inside = from_y >= 0 && from_y < L::HEIGHT && from_x >= 0 && from_x < L::WIDTH;
                copies.to[i] = shared_memory() + PATCH + y * L::ROW_PITCH + column_of(x) * L::PIXEL_PITCH + piece * 16;
                copies.from[i] = inside && copy < COPIES ? ((from_y * L::WIDTH + from_x) * L::CHANNELS + piece * 8) * 2 : -1;
            }
        }
    }

    // Where POLLS: the first look at the input, in front of `prepare_rest`, which then costs no time of its own, or behind it. One that
    // comes before its data takes the L2's time from those behind it, and the next begins only when it is back: hence PAUSE.
    MEMBER void ask(const Run& run, int tile, const Prepared& ready, Copies& copies) {
        if constexpr (L::SOURCE == ARENA) {
            const unsigned char* input = (POLLS ? run.exchange : run.arena) + L::INPUT;
            aim(copies, ready, tile, 0);
            if constexpr (L::PAUSE > 0) pause(L::PAUSE);
            look(input, copies.from, copies.values);
        }
    }

    // The patch in shared memory; behind the next barrier everybody's is there.
    template <bool ASKED>
    MEMBER void fetch_patch(const Run& run, int tile, const Prepared& ready, Copies& copies) {
        const unsigned char* input = (POLLS ? run.exchange : run.arena) + L::INPUT;
#pragma unroll
        for (int first = 0; first < MINE; first += TOGETHER) {
            if (!ASKED || first > 0) aim(copies, ready, tile, first);
            if constexpr (POLLS) {
                if (!ASKED || first > 0) look(input, copies.from, copies.values);
                look_again(run, input, copies.from, copies.values, L::NUMBER);
#pragma unroll
                for (int i = 0; i < TOGETHER; i++)
                    if (is_copy(first + i)) store_shared16(copies.to[i], copies.values[i]);
            } else {
#pragma unroll
                for (int i = 0; i < TOGETHER; i++)
                    if (is_copy(first + i)) copy16(copies.to[i], input + Word(larger(copies.from[i], 0)), copies.from[i] >= 0);
            }
        }
        if constexpr (!POLLS) copies_arrived();
    }

    // Where this warp's sums go: fragments of 512 bytes, row by row.
    MEMBER Address sums_at(Address shared) {
        const int along_k = warp() % L::WARPS_K, along_n = warp() / L::WARPS_K % L::WARPS_N, along_m = warp() / L::WARPS_K / L::WARPS_N;
        const int fragment = along_m * MINE_M * FRAGMENTS_N + along_n * MINE_N;
        return shared + SUMS + along_k * PAIRS * 8 + (fragment * 32 + lane()) * 16;
    }

    template <int N>
    MEMBER void add_row(uint4 (&table)[N], Address row) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            table[i] = make_uint4(table[i].x + row, table[i].y + row, table[i].z + row, table[i].w + row);
            computed(table[i].x), computed(table[i].y), computed(table[i].z), computed(table[i].w);
        }
    }

    // Rows of the patch that this lane names to ldmatrix, one a fragment.
    MEMBER void rows_of(Address (&rows)[MINE_M]) {
        const int along_m = warp() / L::WARPS_K / L::WARPS_N;
#pragma unroll
        for (int m = 0; m < MINE_M; m++) {
            const int pixel = (along_m * MINE_M + m) * 16 + lane() % 16, y = pixel / L::TILE_X, x = pixel % L::TILE_X;
            const int row = L::SOURCE == ARENA ? y * L::STRIDE_Y * L::ROW_PITCH + x * L::PIXEL_PITCH : pixel * L::PIXEL_PITCH;
            rows[m] = shared_memory() + PATCH + row + lane() / 16 * 16;
            computed(rows[m]);
        }
    }

    MEMBER void multiply_all(const Run& run, int tile, Address shared, Prepared& ready, const Address (&rows)[MINE_M], float4 (&total)[MINE_M][MINE_N]) {
        const int along_k = warp() % L::WARPS_K;
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
                if (step % 4 == 0) offsets = OFFSETS_HELD ? ready.table[step / 4] : load_shared16(table + step * 4);
                const Word offset = step % 4 == 0 ? offsets.x : step % 4 == 1 ? offsets.y : step % 4 == 2 ? offsets.z : offsets.w;
#pragma unroll
                for (int m = 0; m < MINE_M; m++) {
                    const uint4 a = load_fragment(OFFSETS_HELD && MINE_M == 1 ? offset : rows[m] + offset);
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
