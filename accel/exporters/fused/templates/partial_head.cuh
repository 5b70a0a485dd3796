// The global average and a linear layer of up to 16 outputs behind the last convolution, without a step of their own: the warps of that
// convolution multiply what they have just computed by the linear layer's weights, and send 16 sums each, through the exchange as activations
// go. One CTA adds them up, always in the same order.
//
// What is multiplied is what the arena gets: activations rounded to FP16. Sums are FP32, and go with every bit inverted as activations do: the
// last that a sum comes from is an addition, whose only NaN is 0x7fffffff, so that none of them is "not there".

constexpr int HEAD_SUMS = 16;  // that a warp sends

// `first` where `bit` of the lane is clear, `second` elsewhere, each with that of the lane which differs in this bit.
INLINE float sum_or(float first, float second, int bit) {
    const bool other = lane() & bit;
    return (other ? second : first) + shuffle_xor(other ? first : second, bit);
}

// A lane has two channels of the pixels lane / 4 and lane / 4 + 8, as mma leaves its sums. So mma takes them for B: in its columns pixels, along
// K channels 0 to 7 twice, of the one and of the other pixel. A has the weights, outputs × channels, twice as well. 8 columns of sums are
// left, for all fragments of the warp.
template <class Layer>
struct Share {
    using L = typename Layer::Constants;
    static constexpr int FRAGMENTS = Layer::FRAGMENTS_M * Layer::FRAGMENTS_N, SENDERS = smaller(FRAGMENTS, WARPS), MINE = FRAGMENTS / SENDERS;
    static_assert(MINE * SENDERS == FRAGMENTS && WARPS % Layer::FRAGMENTS_N == 0);  // all fragments of a warp have the same channels

    MEMBER uint4 weights(const Run& run, int tile) {
        const int channel = tile / Layer::PIXEL_TILES * L::TILE_N + warp() % Layer::FRAGMENTS_N * 8 + lane() % 4 * 2;
        uint4 a = make_uint4(0, 0, 0, 0);
        if (warp() < SENDERS && channel < L::OUT_CHANNELS) {
            const unsigned char* from = run.weights + L::HEAD + (lane() / 4 * L::OUT_CHANNELS + channel) * 2;
            a.x = a.z = load_constant_pair(from);
            a.y = a.w = load_constant_pair(from + 8 * L::OUT_CHANNELS * 2);
        }
        return a;
    }

    MEMBER void send(const Run& run, int tile, const typename Layer::Prepared& ready, const int (&places)[MINE * 2],
                     const Word (&residual)[MINE * 2]) {
        if (warp() >= SENDERS) return;
        float4 total = make_float4(0, 0, 0, 0);
        Word results[MINE * 2];
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            const float4 sum = sum_of(i * WARPS + warp(), ready.bias[i * 2], ready.bias[i * 2 + 1]);
            results[i * 2] = places[i * 2] < 0 ? 0 : result_of(sum.x, sum.y, residual[i * 2]);
            results[i * 2 + 1] = places[i * 2 + 1] < 0 ? 0 : result_of(sum.z, sum.w, residual[i * 2 + 1]);
            multiply(total, ready.head, results[i * 2], results[i * 2 + 1]);
        }
        // Of output lane / 4, or with a lane that is odd of the one 8 behind it; lanes that differ in bit 1 store the same word twice.
        float mine = sum_or(total.x + total.y, total.z + total.w, 1);
        mine += shuffle_xor(mine, 2);
        const int output = lane() / 4 + lane() % 2 * 8;
        hand_on4(run.exchange + L::PARTIALS + ((tile * SENDERS + warp()) * HEAD_SUMS + output) * 4, ~bits_of(mine));
        // Nobody waits for these.
#pragma unroll
        for (int i = 0; i < MINE * 2; i++)
            if (places[i] >= 0) store_activation4(run.arena + L::OUTPUT + places[i] * 2, results[i]);
    }

    // Those of a fragment: of two channels of a pixel, and of the pixel 8 behind it.
    MEMBER float4 sum_of(int fragment, float2 bias, float2 bias_behind) {
        float4 sum = make_float4(bias.x, bias.y, bias_behind.x, bias_behind.y), parts[L::WARPS_K];
#pragma unroll
        for (int k = 0; k < L::WARPS_K; k++)
            parts[k] = load_shared16f(shared_memory() + Layer::SUMS + k * Layer::PAIRS * 8 + (fragment * 32 + lane()) * 16);
#pragma unroll
        for (int k = 0; k < L::WARPS_K; k++) sum.x += parts[k].x, sum.y += parts[k].y, sum.z += parts[k].z, sum.w += parts[k].w;
        return sum;
    }

    MEMBER Word result_of(float low, float high, Word residual) {
        if constexpr (L::RESIDUAL >= 0) {
            const float2 more = unpack(residual);
            low += more.x, high += more.y;
        }
        return pack(activated<L::ACTIVATION>(low), activated<L::ACTIVATION>(high));
    }
};

// L: of the linear layer; Layer: the convolution.
template <class L, class Layer>
struct PartialHead {
    static constexpr int SENT = Layer::PIXEL_TILES * Layer::CHANNEL_TILES * Share<Layer>::SENDERS * HEAD_SUMS / 4;  // words of 16 bytes
    static constexpr int READING = smaller(ceil_div(SENT, 8 * 32), WARPS), MINE = ceil_div(SENT, READING * 32);  // warps; words of a lane

    // By one CTA: where some have no tile of the convolution, by one of these, which has looked many times before it is all there. What
    // comes behind the look is done once before it with zeros, so that its code is at hand.
    template <int CTAS>
    MEMBER void gather(const Run& run) {
        constexpr int TILES = Layer::PIXEL_TILES * Layer::CHANNEL_TILES;
        if (cta() != (TILES < CTAS ? CTAS - 1 : 0) || (READING == 1 && warp() > 0)) return;
        const int output = lane() % 4 * 4 + lane() / 16 * 2 + lane() / 8 % 2;
        const float bias = load_constant4(run.weights + L::BIAS + output * 4);
        int from[MINE];
        uint4 values[MINE];
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            const int word = i * READING * 32 + thread();
            from[i] = word < SENT && warp() < READING ? Layer::Constants::PARTIALS + word * 16 : -1;
            values[i] = make_uint4(0, 0, 0, 0);
        }
#pragma unroll 1
        for (int round = 0; round < 2; round++) {
            if (round == 1) look(run.exchange, from, values), look_again(run, run.exchange, from, values, L::NUMBER);
            stamp<L>(run, cta(), THERE);
            const float sum = over_warps(over_lanes(values), output, round);
            const float logit = activated<L::ACTIVATION>(sum * (1.0f / L::PIXELS) + bias);
            if (round == 1 && warp() == 0 && lane() % 8 < 4 && output < L::OUT_REAL) store_logit(run.logits + output, logit);
        }
        stamp<L>(run, cta(), STORED);
    }

    // A lane has 4 outputs of some senders, and is left with one of all that its warp reads.
    MEMBER float over_lanes(const uint4 (&values)[MINE]) {
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int i = 0; i < MINE; i++)
            sum.x += float_of(values[i].x), sum.y += float_of(values[i].y), sum.z += float_of(values[i].z), sum.w += float_of(values[i].w);
        const float low = sum_or(sum.x, sum.z, 16), high = sum_or(sum.y, sum.w, 16);
        const float one = sum_or(low, high, 8);
        return one + shuffle_xor(one, 4);
    }

    MEMBER float over_warps(float mine, int output, int round) {
        if constexpr (READING == 1) return mine;
        const Address to = shared_memory() + round * READING * HEAD_SUMS * 4;
        if (warp() < READING && lane() % 8 < 4) store_shared4(to + (warp() * HEAD_SUMS + output) * 4, mine);
        sync();
        float sum = 0;
#pragma unroll
        for (int i = 0; i < READING; i++) sum += load_shared4(to + (i * HEAD_SUMS + output) * 4);
        return sum;
    }
};
