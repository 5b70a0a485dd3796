// Schedule `grid`: one kernel for all layers, of CTAS CTAs that are all resident; a barrier between a layer and the next.
//
// The barrier counts arrivals over all launches and never goes back: launch l waits at its barrier b for (l · BARRIERS + b + 1) · CTAS of
// them, modulo 2³². A wait that is not over after SPIN_NANOSECONDS says so in State, and ends the kernel, here and in all later launches.

template <int CTAS, int BARRIERS>
struct Persistent {
    static constexpr unsigned long long SPIN_NANOSECONDS = 1000000000ull;
    static constexpr Word TIMED_OUT = 1;

    Run run;
    Word target;

    // False: an earlier launch has failed.
    INLINE bool begin(const Run& given) {
        run = given;
        target = load_relaxed(&run.state->launches) * BARRIERS * CTAS;
        return load_relaxed(&run.state->error) == 0;
    }

    // Everybody has passed a barrier, so that everybody has read `launches`.
    INLINE void end() {
        if (BARRIERS > 0 && cta() == 0 && thread() == 0) store_relaxed(&run.state->launches, load_relaxed(&run.state->launches) + 1);
    }

    INLINE void arrive() {
        sync();
        if (thread() == 0) add_release(&run.state->arrived, 1);
        target += CTAS;
    }

    INLINE bool wait() {
        bool late = false;
        if (thread() == 0 && !reached()) late = !spin();
        return !any_of_cta(late);
    }

    INLINE bool reached() { return static_cast<int>(load_acquire(&run.state->arrived) - target) >= 0; }

    INLINE bool spin() {
        const unsigned long long start = nanoseconds();
        for (int turn = 1; !reached(); turn++) {
            if (turn % 256 || nanoseconds() - start < SPIN_NANOSECONDS) continue;
            store_relaxed(&run.state->error, TIMED_OUT);
            return false;
        }
        return true;
    }

    template <class Layer, int TILES>
    INLINE void first() {
        typename Layer::Prepared ready;
        for (int tile = cta(); tile < TILES; tile += CTAS) {
            Layer::prepare(run, tile, ready);
            Layer::finish(run, tile, ready);
        }
    }

    // A layer behind a barrier. Its weights are under way while the barrier is waited for; LAST: who has no tile does not wait.
    template <class Layer, int TILES, bool LAST>
    INLINE bool next() {
        typename Layer::Prepared ready;
        arrive();
        if (cta() < TILES) Layer::prepare(run, cta(), ready);
        else if (LAST) return false;
        if (!wait()) return false;
        if (cta() < TILES) Layer::finish(run, cta(), ready);
        for (int tile = cta() + CTAS; tile < TILES; tile += CTAS) {
            Layer::prepare(run, tile, ready);
            Layer::finish(run, tile, ready);
        }
        return true;
    }
};
