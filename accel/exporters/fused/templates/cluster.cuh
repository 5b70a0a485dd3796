// Schedule `cluster`: one kernel of one cluster, CTAS CTAs that see each other's shared memory; activations never leave it.
//
// Each layer is cut into PARTS pixel parts × PARTS_N channel parts, one a CTA (rank = channel part · PARTS + pixel part). A CTA reads its
// patch and its weights in its OWN shared memory and pushes what it computes, 16 bytes a store, into the patches of all CTAs whose next
// tile needs it: remote stores are four times as fast as remote loads, and nobody waits for them but the barrier.
//
// Pushed bytes are counted by a barrier in the receiver's shared memory: whoever waits for its patch waits for nothing else, neither for a
// fence nor for CTAs that it does not read. The cluster barrier guards what is pushed over alone, and its latency is hidden: a thread arrives
// when it has done a step (all but its pushes, which are on their way) and waits while those of the others come to it. So what peers push
// in step s may lie where this CTA had something up to step s - 1; cluster.py gives no place to two things that live in the same step.
// Neither wait has a bound, nor needs one: a cluster is launched as a whole, all of its CTAs resident, each thread arrives as often as all
// others, and each push is made by a CTA that waits only for earlier ones.
//
// Weights come in blocks, one a layer and CTA, by bulk copies. The CTAs of one channel part need the same: each reads a slice from the L2 and
// sends it to all of them. The first block is needed before all CTAs are known to have begun, and in step 1 it is not known that the others
// have done step 0: there each CTA reads its own. Blocks that have no place at first are copied when it is free, from step 2 on behind the
// cluster barrier that says so. The first layer (the stem) is computed by every CTA for its own patch, halo and all: no exchange behind it.

// Of the last warp, one thread makes the barriers and sends for weights, while the others fetch the picture.
constexpr int SENDER = THREADS - 32;

INLINE void make_barriers(int count) {
    for (int i = 0; i < count; i++) make_barrier(shared_memory() + i * 8);
    barriers_are_made();
    before_blocks();
}

// The block of BYTES of this CTA's channel part.
template <class Layer, int BYTES>
INLINE void fetch_whole(const Run& run, int weights, int to, int barrier) {
    if (Layer::active()) copy_block(shared_memory() + to, run.weights + weights + Layer::channel_part() * BYTES, BYTES, shared_memory() + barrier);
}

// Of a block of BYTES a channel part, this CTA's slice to all CTAs of its channel part.
template <class Layer, int BYTES>
INLINE void fetch_slice(const Run& run, int weights, int to, int barrier) {
    constexpr int PARTS = Layer::PARTS, SLICE = ceil_div(BYTES, PARTS * 16) * 16;
    const int part = cta() % PARTS, channel_part = cta() / PARTS, size = smaller(SLICE, BYTES - part * SLICE);
    if (!Layer::active() || size <= 0) return;
    const Address place = shared_memory() + to + part * SLICE;
    const unsigned char* from = run.weights + weights + channel_part * BYTES + part * SLICE;
    if constexpr (PARTS == 1) copy_block(place, from, size, shared_memory() + barrier);
    else copy_block_to(place, from, size, shared_memory() + barrier, ((1 << PARTS) - 1) << channel_part * PARTS);
}

template <class L>
struct Clustered {
    using Of = L;
    static constexpr int PARTS = L::PARTS_Y * L::PARTS_X, RANKS = PARTS * L::PARTS_N;
    static constexpr int TILE_PIXELS = L::TILE_Y * L::TILE_X;
    static constexpr int FRAGMENTS_M = ceil_div(TILE_PIXELS, 16), FRAGMENTS_N = L::TILE_N / 8, FRAGMENTS = FRAGMENTS_M * FRAGMENTS_N;
    static constexpr int MINE_M = FRAGMENTS_M / L::WARPS_M, MINE_N = FRAGMENTS_N / L::WARPS_N;
    static constexpr int LOADS = ceil_div(L::CHUNK_STEPS * MINE_N, 2);  // 16 bytes a lane: two B fragments
    static constexpr int ROUNDS = MINE_M % 2 == 0 ? 2 : 1, ROUND_M = MINE_M / ROUNDS, ROUND = FRAGMENTS / ROUNDS;
    static constexpr int SETS = ROUND_M * MINE_N >= 4 ? 1 : (ROUND_M * MINE_N >= 2 ? 2 : 4);
    static constexpr int PATCH_Y = (L::TILE_Y - 1) * L::STRIDE_Y + L::KERNEL_Y, PATCH_X = (L::TILE_X - 1) * L::STRIDE_X + L::KERNEL_X;
    static constexpr int TABLE_ROW = ceil_div(L::CHUNK_STEPS, 4) * 16;  // bytes of one warp's offsets
    // A block: weights, biases, and for each warp along K the bytes from a pixel's row in the patch to what its K steps read. A step beyond the
    // last has weights of zero and reads what step 0 reads.
    static constexpr int BIASES = LOADS * L::WARPS_N * L::WARPS_K * 512, TABLE = BIASES + L::TILE_N * 4, BLOCK = TABLE + L::WARPS_K * TABLE_ROW;
    static_assert(L::WARPS_M * L::WARPS_N * L::WARPS_K == WARPS);
    static_assert(MINE_M * L::WARPS_M == FRAGMENTS_M && MINE_N * L::WARPS_N == FRAGMENTS_N);

    struct Prepared {
        uint4 weights[LOADS];
    };

    MEMBER bool active() { return RANKS == CTAS || cta() < RANKS; }
    MEMBER int channel_part() { return cta() / PARTS; }
    MEMBER int first_y() { return cta() % PARTS / L::PARTS_X * L::TILE_Y; }
    MEMBER int first_x() { return cta() % PARTS % L::PARTS_X * L::TILE_X; }
    MEMBER int column_of(int x) { return x % L::STRIDE_X * ceil_div(PATCH_X, L::STRIDE_X) + x / L::STRIDE_X; }

    // By one thread.
    MEMBER void expect_all() {
        if (!active()) return;
        const int from_y = first_y() * L::STRIDE_Y - L::PAD_Y, from_x = first_x() * L::STRIDE_X - L::PAD_X;
        const int rows = smaller(from_y + PATCH_Y, L::HEIGHT) - larger(from_y, 0), columns = smaller(from_x + PATCH_X, L::WIDTH) - larger(from_x, 0);
        expect(shared_memory() + L::BLOCK_BARRIER, BLOCK);
        if (L::PUSHED) expect(shared_memory() + L::PATCH_BARRIER, larger(rows, 0) * larger(columns, 0) * L::CHANNELS * 2);
    }
    // The whole block for this CTA, or its slice for all that need it.
    MEMBER void fetch_alone(const Run& run) { fetch_whole<Clustered, BLOCK>(run, L::WEIGHTS, L::HELD, L::BLOCK_BARRIER); }
    MEMBER void fetch(const Run& run) { fetch_slice<Clustered, BLOCK>(run, L::WEIGHTS, L::HELD, L::BLOCK_BARRIER); }

    // Zeros for what of the patch lies outside the image: nobody pushes there.
    MEMBER void clear_border() {
        if (!active()) return;
        const int from_y = first_y() * L::STRIDE_Y - L::PAD_Y, from_x = first_x() * L::STRIDE_X - L::PAD_X;
        for (int pixel = thread(); pixel < PATCH_Y * PATCH_X; pixel += THREADS) {
            const int y = pixel / PATCH_X, x = pixel % PATCH_X;
            if (from_y + y >= 0 && from_y + y < L::HEIGHT && from_x + x >= 0 && from_x + x < L::WIDTH) continue;
            const Address to = shared_memory() + L::PATCH + y * L::ROW_PITCH + column_of(x) * L::PIXEL_PITCH;
#pragma unroll 4
            for (int piece = 0; piece < L::CHANNELS / 8; piece++) store_shared16(to + piece * 16, make_uint4(0, 0, 0, 0));
        }
    }

    MEMBER void prepare(Prepared& ready) {
        if (!active()) return;
        arrived(shared_memory() + L::BLOCK_BARRIER);
        const int along_n = warp() / L::WARPS_K % L::WARPS_N, along_k = warp() % L::WARPS_K;
        const Address from = shared_memory() + L::HELD + ((along_n * L::WARPS_K + along_k) * LOADS * 32 + lane()) * 16;
#pragma unroll
        for (int i = 0; i < LOADS; i++) ready.weights[i] = load_shared16(from + i * 512);
    }

    // From the patch to the sums of each warp in shared memory, of one of ROUNDS parts of its rows.
    MEMBER void multiply_all(const Prepared& ready, int round) {
        const Address shared = shared_memory();
        const int along_k = warp() % L::WARPS_K, along_n = warp() / L::WARPS_K % L::WARPS_N, along_m = warp() / L::WARPS_K / L::WARPS_N;
        Address rows[ROUND_M];
#pragma unroll
        for (int m = 0; m < ROUND_M; m++) {
            // Rows beyond the tile's pixels compute what nobody stores.
            const int row = (along_m * MINE_M + round * ROUND_M + m) * 16 + lane() % 16, pixel = row < TILE_PIXELS ? row : 0;
            rows[m] = shared + L::PATCH + pixel / L::TILE_X * L::STRIDE_Y * L::ROW_PITCH + pixel % L::TILE_X * L::PIXEL_PITCH + lane() / 16 * 16;
        }
        float4 sums[SETS][ROUND_M][MINE_N];
#pragma unroll
        for (int i = 0; i < SETS * ROUND_M * MINE_N; i++) sums[i / (ROUND_M * MINE_N)][i / MINE_N % ROUND_M][i % MINE_N] = make_float4(0, 0, 0, 0);
        const Address table = shared + L::HELD + TABLE + along_k * TABLE_ROW;
        uint4 offsets = make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int step = 0; step < L::CHUNK_STEPS; step++) {
            if (step % 4 == 0) offsets = load_shared16(table + step * 4);
            const Word offset = step % 4 == 0 ? offsets.x : step % 4 == 1 ? offsets.y : step % 4 == 2 ? offsets.z : offsets.w;
#pragma unroll
            for (int m = 0; m < ROUND_M; m++) {
                const uint4 a = load_fragment(rows[m] + offset);
#pragma unroll
                for (int n = 0; n < MINE_N; n++) {
                    const int fragment = step * MINE_N + n;
                    const uint4 b = ready.weights[fragment / 2];
                    multiply(sums[step % SETS][m][n], a, fragment % 2 ? b.z : b.x, fragment % 2 ? b.w : b.y);
                }
            }
        }
#pragma unroll
        for (int m = 0; m < ROUND_M; m++)
#pragma unroll
            for (int n = 0; n < MINE_N; n++) {
                float4 sum = sums[0][m][n];
#pragma unroll
                for (int set = 1; set < SETS; set++) {
                    const float4 more = sums[set][m][n];
                    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
                }
                const int fragment = (along_m * MINE_M + round * ROUND_M + m) * FRAGMENTS_N + along_n * MINE_N + n;
                store_shared16(shared + L::SUMS + ((along_k * FRAGMENTS + fragment) * 32 + lane()) * 16, sum);
            }
    }

    // The fragment of a round that is the `index`th of it.
    MEMBER int fragment_of(int round, int index) {
        const int row = index / FRAGMENTS_N;
        return (row / ROUND_M * MINE_M + round * ROUND_M + row % ROUND_M) * FRAGMENTS_N + index % FRAGMENTS_N;
    }

    // A step. What a round computed is on its way while the next one multiplies.
    template <class Next>
    MEMBER void compute(const Run& run, const Prepared& ready) {
        if (!active()) return;
        if (L::PUSHED) arrived(shared_memory() + L::PATCH_BARRIER);
#pragma unroll 1
        for (int round = 0; round < ROUNDS; round++) {
            multiply_all(ready, round);
            sync();
            Next::take(run, round);
        }
    }

    // A fragment of results with bias and activation: channels 2·(lane % 4) and the next of the rows lane / 4 and lane / 4 + 8.
    MEMBER float4 result(int fragment) {
        const Address shared = shared_memory();
        float4 parts[L::WARPS_K];
#pragma unroll
        for (int k = 0; k < L::WARPS_K; k++) parts[k] = load_shared16f(shared + L::SUMS + ((k * FRAGMENTS + fragment) * 32 + lane()) * 16);
        const float2 bias = load_shared8(shared + L::HELD + BIASES + (fragment % FRAGMENTS_N * 8 + lane() % 4 * 2) * 4);
        float4 sum = make_float4(bias.x, bias.y, bias.x, bias.y);
#pragma unroll
        for (int k = 0; k < L::WARPS_K; k++) sum.x += parts[k].x, sum.y += parts[k].y, sum.z += parts[k].z, sum.w += parts[k].w;
        return make_float4(activated<L::ACTIVATION>(sum.x), activated<L::ACTIVATION>(sum.y), activated<L::ACTIVATION>(sum.z),
                           activated<L::ACTIVATION>(sum.w));
    }

    // Where a row of a fragment lies in the layer's output.
    struct Pixel {
        int y, x;
        bool inside;
    };
    MEMBER Pixel pixel_of(int fragment, int row) {
        const int pixel = fragment / FRAGMENTS_N * 16 + row, y = first_y() + pixel / L::TILE_X, x = first_x() + pixel % L::TILE_X;
        return {y, x, pixel < TILE_PIXELS && y < L::OUT_HEIGHT && x < L::OUT_WIDTH};
    }
    MEMBER int channel_of(int fragment) { return channel_part() * L::TILE_N + fragment % FRAGMENTS_N * 8; }

    // 8 channels of one pixel in each lane, of two fragments whose words lie in the 4 lanes of each row: of the first fragment in lanes 0 and 1
    // of the four, else of the second; of the row lane / 4 in even lanes, else of the row lane / 4 + 8.
    MEMBER uint4 eight_channels(Word upper0, Word lower0, Word upper1, Word lower1) {
        const bool odd = lane() % 2 != 0, late = lane() % 4 >= 2;
        const Word other0 = shuffle_xor(odd ? upper0 : lower0, 1), other1 = shuffle_xor(odd ? upper1 : lower1, 1);
        const Word low0 = odd ? other0 : upper0, high0 = odd ? lower0 : other0, low1 = odd ? other1 : upper1, high1 = odd ? lower1 : other1;
        const Word low = shuffle_xor(late ? low0 : low1, 2), high = shuffle_xor(late ? high0 : high1, 2);
        return late ? make_uint4(low, high, low1, high1) : make_uint4(low0, high0, low, high);
    }

    // The results to the arena, for comparisons of layers.
    MEMBER void keep(const Run& run, Pixel pixel, int channel, uint4 values) {
        store_activation16(run.arena + L::OUTPUT + ((pixel.y * L::OUT_WIDTH + pixel.x) * L::OUT_CHANNELS + channel) * 2, values);
    }

    // 8 channels of an input pixel to the CTAs that need them, or, of SHARES warps that share them, to this one's; each sender begins with
    // another. All lanes of a store mean the same CTA, and two of them 32 bytes in a row.
    template <int SHARES>
    MEMBER void receive(int y, int x, int channel, uint4 values, int share, int turn) {
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            const int to_y = y - (part / L::PARTS_X * L::TILE_Y * L::STRIDE_Y - L::PAD_Y);
            const int to_x = x - (part % L::PARTS_X * L::TILE_X * L::STRIDE_X - L::PAD_X);
            if (to_y < 0 || to_y >= PATCH_Y || to_x < 0 || to_x >= PATCH_X) continue;
            const Address at = shared_memory() + L::PATCH + to_y * L::ROW_PITCH + column_of(to_x) * L::PIXEL_PITCH + channel * 2;
#pragma unroll
            for (int i = 0; i < L::PARTS_N; i += SHARES)
                push16((i + share + turn) % L::PARTS_N * PARTS + part, at, values, shared_memory() + L::PATCH_BARRIER);
        }
    }
};

// What becomes of a layer's results: they are pushed to the patches of the next. A warp takes two fragments of neighbouring channels (the
// last one alone, where their number is odd), and several warps share them where there are warps left.
template <class Layer, class Next>
struct PushedTo {
    static constexpr int PAIRS = ceil_div(Layer::FRAGMENTS_N, 2), UNITS = Layer::ROUND / Layer::FRAGMENTS_N * PAIRS;
    static constexpr int SPARE = UNITS * 4 <= WARPS ? 4 : UNITS * 2 <= WARPS ? 2 : 1, SHARES = smaller(SPARE, Next::Of::PARTS_N);
    static_assert(Next::Of::PARTS_N % SHARES == 0);

    MEMBER void take(const Run& run, int round) {
#pragma unroll 1
        for (int unit = warp(); unit < UNITS * SHARES; unit += WARPS) {
            const int pair = unit / SHARES, n = pair % PAIRS * 2, fragment = Layer::fragment_of(round, pair / PAIRS * Layer::FRAGMENTS_N + n);
            const bool both = n + 1 < Layer::FRAGMENTS_N, late = lane() % 4 >= 2;
            const float4 first = Layer::result(fragment), second = Layer::result(fragment + (both ? 1 : 0));
            const uint4 values = Layer::eight_channels(pack(first.x, first.y), pack(first.z, first.w), pack(second.x, second.y), pack(second.z, second.w));
            const typename Layer::Pixel pixel = Layer::pixel_of(fragment, lane() / 4 + lane() % 2 * 8);
            const int channel = Layer::channel_of(fragment) + (late ? 8 : 0);
            if (!pixel.inside || channel >= Layer::Of::OUT_CHANNELS || (late && !both)) continue;
            Next::template receive<SHARES>(pixel.y, pixel.x, channel, values, unit % SHARES, Layer::channel_part());
            if (unit % SHARES == 0) Layer::keep(run, pixel, channel, values);
        }
    }
};

// The first layer, for the whole patch of the next: First::PATCH. K = (channel, tap); A's fragments are read from the pixels themselves.
template <class L, class First>
struct Stem {
    static constexpr int PIXELS = First::PATCH_Y * First::PATCH_X, FRAGMENTS_M = ceil_div(PIXELS, 16);
    static constexpr int TAPS = L::KERNEL_Y * L::KERNEL_X, K = TAPS * L::CHANNELS;
    static constexpr int MINE_N = L::OUT_CHANNELS / 8 / L::WARPS_N, LOADS = ceil_div(L::STEPS * MINE_N, 2);
    static constexpr int RAW_Y = (First::PATCH_Y - 1) * L::STRIDE_Y + L::KERNEL_Y, RAW_X = (First::PATCH_X - 1) * L::STRIDE_X + L::KERNEL_X;
    static constexpr int VALUES = RAW_Y * RAW_X * L::CHANNELS, MINE = ceil_div(VALUES, SENDER);  // of the threads before SENDER
    static_assert(L::WARPS_M * L::WARPS_N == WARPS);

    struct Prepared {
        unsigned short pixels[MINE];
        uint4 weights[LOADS];
        float2 bias[MINE_N];
        uint4 offsets[L::STEPS];  // bytes from a pixel's first tap to the four values of each step that this lane has of a row of A
    };

    // Pixels and weights on their way to registers.
    MEMBER void prepare(const Run& run, Prepared& ready) {
        if (!First::active()) return;
        if (thread() < SENDER) load_pixels(run, ready);
        const int along_n = warp() % L::WARPS_N;
        const unsigned char* from = run.weights + L::WEIGHTS + (along_n * LOADS * 32 + lane()) * 16;
#pragma unroll
        for (int i = 0; i < LOADS; i++) ready.weights[i] = load_constant16(from + i * 512);
#pragma unroll
        for (int n = 0; n < MINE_N; n++) ready.bias[n] = load_constant8(run.weights + L::BIAS + ((along_n * MINE_N + n) * 8 + lane() % 4 * 2) * 4);
#pragma unroll
        for (int step = 0; step < L::STEPS; step++) ready.offsets[step] = load_constant16(run.weights + L::OFFSETS + (step * 4 + lane() % 4) * 16);
    }

    MEMBER void load_pixels(const Run& run, Prepared& ready) {
        const int image_y = (First::first_y() * First::Of::STRIDE_Y - First::Of::PAD_Y) * L::STRIDE_Y - L::PAD_Y;
        const int image_x = (First::first_x() * First::Of::STRIDE_X - First::Of::PAD_X) * L::STRIDE_X - L::PAD_X;
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            const int value = thread() + i * SENDER, channel = value / (RAW_Y * RAW_X);
            const int y = image_y + value / RAW_X % RAW_Y, x = image_x + value % RAW_X;
            const bool inside = (VALUES % SENDER == 0 || value < VALUES) && y >= 0 && y < L::HEIGHT && x >= 0 && x < L::WIDTH;
            ready.pixels[i] = 0;
            if (!inside) continue;
            if constexpr (L::SOURCE == IMAGE_BYTES) {
                const float byte = load_constant1(run.image + (y * L::WIDTH + x) * L::CHANNELS + channel);
                const float2 factors = load_constant8(run.weights + L::PIXELS + channel * 8);
                ready.pixels[i] = half_bits(scaled(byte, factors.x, factors.y));
            } else {
                ready.pixels[i] = load_constant2(run.image + ((channel * L::HEIGHT + y) * L::WIDTH + x) * 2);
            }
        }
    }

    MEMBER void store_pixels(const Prepared& ready) {
        if (!First::active() || thread() >= SENDER) return;
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            const int value = thread() + i * SENDER;
            if (VALUES % SENDER == 0 || value < VALUES) store_shared2(shared_memory() + L::RAW + value * 2, ready.pixels[i]);
        }
    }

    MEMBER Word two(Address row, Word first, Word second) {
        return load_shared2(row + first) | static_cast<Word>(load_shared2(row + second)) << 16;
    }

    MEMBER void finish(const Prepared& ready) {
        if (!First::active()) return;
        const Address shared = shared_memory();
        const int along_n = warp() % L::WARPS_N, q = lane() % 4;
#pragma unroll 1
        for (int fragment = warp() / L::WARPS_N; fragment < FRAGMENTS_M; fragment += L::WARPS_M) {
            int pixels[2];
            Address rows[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                pixels[half] = fragment * 16 + half * 8 + lane() / 4;
                const int pixel = pixels[half] < PIXELS ? pixels[half] : 0;
                rows[half] = shared + L::RAW + (pixel / First::PATCH_X * L::STRIDE_Y * RAW_X + pixel % First::PATCH_X * L::STRIDE_X) * 2;
            }
            float4 sums[MINE_N];
#pragma unroll
            for (int n = 0; n < MINE_N; n++) sums[n] = make_float4(ready.bias[n].x, ready.bias[n].y, ready.bias[n].x, ready.bias[n].y);
#pragma unroll
            for (int step = 0; step < L::STEPS; step++) {
                const uint4 at = ready.offsets[step];
                const uint4 a = make_uint4(two(rows[0], at.x, at.y), two(rows[1], at.x, at.y), two(rows[0], at.z, at.w), two(rows[1], at.z, at.w));
#pragma unroll
                for (int n = 0; n < MINE_N; n++) {
                    const int of = step * MINE_N + n;
                    const uint4 b = ready.weights[of / 2];
                    multiply(sums[n], a, of % 2 ? b.z : b.x, of % 2 ? b.w : b.y);
                }
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if (pixels[half] >= PIXELS) continue;
                const int y = pixels[half] / First::PATCH_X, x = pixels[half] % First::PATCH_X;
                const int out_y = First::first_y() * First::Of::STRIDE_Y - First::Of::PAD_Y + y;
                const int out_x = First::first_x() * First::Of::STRIDE_X - First::Of::PAD_X + x;
                const bool inside = out_y >= 0 && out_y < L::OUT_HEIGHT && out_x >= 0 && out_x < L::OUT_WIDTH;
                const Address to = shared + First::Of::PATCH + y * First::Of::ROW_PITCH + First::column_of(x) * First::Of::PIXEL_PITCH;
#pragma unroll
                for (int n = 0; n < MINE_N; n++) {
                    const float low = activated<L::ACTIVATION>(half ? sums[n].z : sums[n].x), high = activated<L::ACTIVATION>(half ? sums[n].w : sums[n].y);
                    store_shared4(to + ((along_n * MINE_N + n) * 8 + q * 2) * 2, inside ? pack(low, high) : Word{0});
                }
            }
        }
    }
};

// The answer: the mean over the last convolution's pixels times the weights of a linear layer. Each CTA adds up what its own pixels and
// channels give to each logit and pushes that to CTA 0.
template <class L, class Last>
struct ClusterHead {
    static constexpr int BIASES = L::OUT_REAL * Last::Of::TILE_N * 2, BLOCK = BIASES + ceil_div(L::OUT_REAL, 4) * 16;

    // By one thread.
    MEMBER void expect_all() {
        if (Last::active()) expect(shared_memory() + L::BLOCK_BARRIER, BLOCK);
        if (cta() == 0) expect(shared_memory() + L::SHARES_BARRIER, Last::RANKS * L::OUT_REAL * 4);
    }
    MEMBER void fetch_alone(const Run& run) { fetch_whole<Last, BLOCK>(run, L::WEIGHTS, L::HELD, L::BLOCK_BARRIER); }
    MEMBER void fetch(const Run& run) { fetch_slice<Last, BLOCK>(run, L::WEIGHTS, L::HELD, L::BLOCK_BARRIER); }

    // Sums over pixels: a row of TILE_N channels for each 16 pixels.
    MEMBER void take(const Run& run, int round) {
#pragma unroll 1
        for (int index = warp(); index < Last::ROUND; index += WARPS) {
            const int fragment = Last::fragment_of(round, index);
            const float4 of = Last::result(fragment);
            const Word words[2] = {pack(of.x, of.y), pack(of.z, of.w)};
            const int channel = Last::channel_of(fragment);
            const uint4 values = Last::eight_channels(words[0], words[1], words[0], words[1]);
            const typename Last::Pixel mine = Last::pixel_of(fragment, lane() / 4 + lane() % 2 * 8);
            if (mine.inside && channel < Last::Of::OUT_CHANNELS && lane() % 4 < 2) Last::keep(run, mine, channel, values);
            float2 sum = {0.0f, 0.0f};
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if (!Last::pixel_of(fragment, lane() / 4 + half * 8).inside) continue;
                const float2 value = L::ROUNDED ? unpack(words[half]) : half ? float2{of.z, of.w} : float2{of.x, of.y};
                sum.x += value.x, sum.y += value.y;
            }
#pragma unroll
            for (int distance = 4; distance < 32; distance *= 2) sum.x += shuffle_xor(sum.x, distance), sum.y += shuffle_xor(sum.y, distance);
            if (lane() >= 4) continue;
            const int row = fragment / Last::FRAGMENTS_N, at = fragment % Last::FRAGMENTS_N * 8 + lane() * 2;
            const Address to = shared_memory() + L::MEANS + (row * Last::Of::TILE_N + at) * 4;
            store_shared4(to, sum.x), store_shared4(to + 4, sum.y);
        }
    }

    // This CTA's share of each logit, to CTA 0.
    MEMBER void push_shares() {
        if (!Last::active()) return;
        const Address shared = shared_memory();
        sync();
        arrived(shared + L::BLOCK_BARRIER);
        for (int output = thread(); output < L::OUT_REAL; output += THREADS) {
            float sum = 0;
#pragma unroll
            for (int piece = 0; piece < Last::Of::TILE_N / 8; piece++) {
                const uint4 weights = load_shared16(shared + L::HELD + (output * Last::Of::TILE_N + piece * 8) * 2);
                const float2 a = unpack(weights.x), b = unpack(weights.y), c = unpack(weights.z), d = unpack(weights.w);
#pragma unroll
                for (int row = 0; row < Last::FRAGMENTS_M; row++) {
                    const Address from = shared + L::MEANS + (row * Last::Of::TILE_N + piece * 8) * 4;
                    const float4 low = load_shared16f(from), high = load_shared16f(from + 16);
                    sum += a.x * low.x + a.y * low.y + b.x * low.z + b.y * low.w + c.x * high.x + c.y * high.y + d.x * high.z + d.y * high.w;
                }
            }
            push4(0, shared + L::SHARES + (cta() * L::OUT_REAL + output) * 4, sum, shared + L::SHARES_BARRIER);
        }
    }

    MEMBER void answer(const Run& run) {
        if (cta() != 0) return;
        arrived(shared_memory() + L::SHARES_BARRIER);
        for (int output = thread(); output < L::OUT_REAL; output += THREADS) {
            const float bias = load_shared4(shared_memory() + L::HELD + BIASES + output * 4);
            float shares[Last::RANKS];
#pragma unroll
            for (int rank = 0; rank < Last::RANKS; rank++) shares[rank] = load_shared4(shared_memory() + L::SHARES + (rank * L::OUT_REAL + output) * 4);
            float sum = 0;
#pragma unroll
            for (int rank = 0; rank < Last::RANKS; rank++) sum += shares[rank];
            store_logit(run.logits + output, activated<L::ACTIVATION>(sum * (1.0f / L::PIXELS) + bias));
        }
    }
};
