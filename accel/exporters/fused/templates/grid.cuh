// Schedule `grid`: one kernel for all layers, of CTAS CTAs that are all resident. There is no barrier: a tile waits for the tiles that it
// reads, and for no others.
//
// A step has a counter for each of its pixel tiles (a convolution), or one: that many tiles of channels add to it when they are stored. It
// is never set back: in its l-th launch a CTA waits for l times as many. A wait that is not over after SPIN_NANOSECONDS says so in State,
// with the number of the step, and ends the kernel, here and in all later launches of this context.
//
// No CTA can wait for itself or in a circle: all of them take steps in order, and a step waits for earlier ones only.

// All tiles of a step.
template <class Producer, int FIRST>
struct Whole {
    static constexpr int COUNT = Producer::COUNTERS, ARRIVALS = Producer::ARRIVALS;
    MEMBER int counter(int, int i) { return FIRST + i; }
};

// Those tiles of a convolution that hold what a tile of another reads: with its halo, or, of a residual, the same pixels.
template <class Layer, class Producer, int FIRST, bool HALO>
struct Near {
    using L = typename Layer::Constants;
    using P = typename Producer::Constants;
    static constexpr int SPAN_Y = HALO ? Layer::PATCH_Y : L::TILE_Y, SPAN_X = HALO ? Layer::PATCH_X : L::TILE_X;
    static constexpr int STEP_Y = L::TILE_Y * (HALO ? L::STRIDE_Y : 1), STEP_X = L::TILE_X * (HALO ? L::STRIDE_X : 1);
    static constexpr int ROWS = smaller(Producer::TILES_Y, (SPAN_Y + P::TILE_Y - 2) / P::TILE_Y + 1);
    static constexpr int COLUMNS = smaller(Producer::TILES_X, (SPAN_X + P::TILE_X - 2) / P::TILE_X + 1);
    static constexpr int COUNT = ROWS * COLUMNS, ARRIVALS = Producer::ARRIVALS;

    // -1: none, at the image's border.
    MEMBER int counter(int tile, int i) {
        const int pixel_tile = tile % Layer::PIXEL_TILES;
        const int y = pixel_tile / Layer::TILES_X * STEP_Y - (HALO ? L::PAD_Y : 0), x = pixel_tile % Layer::TILES_X * STEP_X - (HALO ? L::PAD_X : 0);
        const int row = larger(y, 0) / P::TILE_Y + i / COLUMNS, column = larger(x, 0) / P::TILE_X + i % COLUMNS;
        const bool read = row * P::TILE_Y < smaller(y + SPAN_Y, P::OUT_HEIGHT) && column * P::TILE_X < smaller(x + SPAN_X, P::OUT_WIDTH);
        return read ? FIRST + row * Producer::TILES_X + column : -1;
    }
};

template <int CTAS>
struct Persistent {
    static constexpr int LAUNCHES = 32, COUNTERS = LAUNCHES + ceil_div(CTAS, 32) * 32, SPACING = 8;  // words of State; counters in sectors of their own
    static constexpr int WAITING = THREADS / 2;                                                      // threads that wait for one producer

    Run run;
    Word launch;  // of this CTA, from 1

    // False: an earlier launch has failed.
    INLINE bool begin(const Run& given) {
        run = given;
        launch = load_relaxed(run.state + LAUNCHES + cta()) + 1;
        return load_relaxed(run.state) == 0;
    }

    INLINE void end() {
        sync();
        if (thread() == 0) store_relaxed(run.state + LAUNCHES + cta(), launch);
    }

    // The tiles of one step that are this CTA's. FIRST: its first counter, -1: nobody waits for it. False: a wait took too long.
    template <class Layer, int NUMBER, int TILES, int FIRST, class... Waits>
    INLINE bool step() {
#pragma unroll 1
        for (int tile = cta(); tile < TILES; tile += CTAS) {
            typename Layer::Prepared ready;
            Layer::template prepare<false>(run, tile, ready);
            if constexpr (sizeof...(Waits) > 0) {
                int group = 0;
                bool late = false;
                ((late = late || !reached<Waits, NUMBER>(tile, group++)), ...);
                if (any_of_cta(late)) return false;
            }
            Layer::finish(run, tile, ready);
            if constexpr (FIRST >= 0) {
                sync();
                if (thread() == 0) add_release(counter(FIRST + Layer::counter_of(tile)), 1);
            }
        }
        return true;
    }

    // Each thread waits for counters of its own, so that their reads are under way together.
    template <class Wait, int NUMBER>
    INLINE bool reached(int tile, int group) {
        if (thread() / WAITING != group) return true;
        for (int i = thread() % WAITING; i < Wait::COUNT; i += WAITING) {
            const int index = Wait::counter(tile, i);
            if (index >= 0 && !spin(counter(index), launch * Wait::ARRIVALS, NUMBER)) return false;
        }
        return true;
    }

    INLINE Word* counter(int index) { return run.state + COUNTERS + index * SPACING; }

    INLINE bool spin(const Word* counter, Word target, Word number) {
        for (Patience patience; static_cast<int>(load_acquire(counter) - target) < 0;)
            if (patience.over(run, number)) return false;
        return true;
    }
};
