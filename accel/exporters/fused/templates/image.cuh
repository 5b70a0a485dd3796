// The first layer's A matrix in shared memory, from the image as the user gives it: one row a pixel, K = (channel, tap) padded to 16.
//
// IMAGE_HALF: FP16 planes. IMAGE_BYTES: bytes, pixel after pixel, which become pixel · scale - offset, rounded as numpy rounds them.

template <class L>
INLINE void gather_image(const Run& run, Address rows, int out_y, int out_x) {
    constexpr int PIXELS = L::TILE_Y * L::TILE_X, TAPS = L::KERNEL_Y * L::KERNEL_X, K = TAPS * L::CHANNELS;
    constexpr int VALUES = PIXELS * L::STEPS * 16, MINE = ceil_div(VALUES, THREADS);
    unsigned short values[MINE];
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        const int value = thread() + i * THREADS, pixel = value % PIXELS, k = value / PIXELS;
        const int channel = k / TAPS, tap_y = k % TAPS / L::KERNEL_X, tap_x = k % L::KERNEL_X;
        const int y = (out_y + pixel / L::TILE_X) * L::STRIDE_Y - L::PAD_Y + tap_y;
        const int x = (out_x + pixel % L::TILE_X) * L::STRIDE_X - L::PAD_X + tap_x;
        const bool inside = k < K && y >= 0 && y < L::HEIGHT && x >= 0 && x < L::WIDTH;
        values[i] = 0;
        if (!inside) continue;
        if constexpr (L::SOURCE == IMAGE_BYTES) {
            const float byte = load_constant1(run.image + (y * L::WIDTH + x) * L::CHANNELS + channel);
            const float2 factors = load_constant8(run.weights + L::PIXELS + channel * 8);
            values[i] = half_bits(scaled(byte, factors.x, factors.y));
        } else {
            values[i] = load_constant2(run.image + ((channel * L::HEIGHT + y) * L::WIDTH + x) * 2);
        }
    }
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        const int value = thread() + i * THREADS;
        if (VALUES % THREADS == 0 || value < VALUES)
            store_shared2(rows + value % PIXELS * L::PIXEL_PITCH + value / PIXELS * 2, values[i]);
    }
}
