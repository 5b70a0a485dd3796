// Schedule `grid`, the faster way: one kernel for all layers, of CTAS CTAs that are all resident, without a barrier and without a counter.
//
// A tile reads its input until every word of it is there (POLLS, in common.cuh): one trip to the L2 behind the store, where a counter
// needs a fence, an addition, a look at it, and then the read. Words that are "not there" have to be cleared: launches take turns between
// two exchanges, each clearing the other's. They lie in State, which is zeros when a context is made.
//
// Where LOOK_FIRST, a step's first look at its input comes before all else that it has to prepare: its way to the L2 and back hides that.
//
// Weights go to shared memory DISTANCE steps ahead, a group of copies a step: each thread copies what it will itself read. Or, where BULK,
// one thread sends for blocks, which a barrier of each step counts; what was in their place is in registers behind the step's first sync.
//
// BYTES are those of an exchange: the activations and, where the last convolution's CTAs do the head's work, their shares of it.
//
// No CTA can wait for itself or in a circle: all of them take steps in order, and a step reads what earlier ones wrote.

template <int CTAS, int BYTES, int DISTANCE, bool LOOK_FIRST>
struct Flow {
    static constexpr int LAUNCHES = 32, EXCHANGE = ceil_div(LAUNCHES + CTAS, 64) * 64;  // words of State

    Run run;
    Word launch, error;  // of this CTA, from 0; of an earlier launch

    // What comes is not looked at before the first step has its input (settle), which reads no exchange: a trip to the L2 less.
    INLINE void begin(const Run& given) {
        run = given;
        launch = load_relaxed(run.state + LAUNCHES + cta());
        error = load_relaxed(run.state);
    }

    // Of the steps whose weights come in blocks.
    template <int AT, int COUNT>
    INLINE void make_barriers() {
        if constexpr (BULK) {
            if (thread() == 0) {
#pragma unroll
                for (int i = 0; i < COUNT; i++) make_barrier(shared_memory() + AT + i * 8);
                barriers_are_made();
                before_blocks();
            }
            sync();
        }
    }

    INLINE void settle() { run.exchange = exchange_of(launch); }

    INLINE unsigned char* exchange_of(Word number) {
        return reinterpret_cast<unsigned char*>(run.state + EXCHANGE) + number % 2 * BYTES;
    }

    // Behind the first step's stores, which others wait for.
    INLINE void clear_next() {
        unsigned char* next = exchange_of(launch + 1);
        for (int i = cta() * THREADS + thread(); i < BYTES / 16; i += CTAS * THREADS) hand_on16(next + i * 16, make_uint4(0, 0, 0, 0));
    }

    // Behind the first step: an earlier launch has failed, and what its exchange has is void.
    INLINE bool failed() {
        if (error == 0) return false;
        copies_arrived();
        return true;
    }

    INLINE void end() {
        sync();
        if (thread() == 0) store_relaxed(run.state + LAUNCHES + cta(), launch + 1);
    }

    template <class Layer, int TILES>
    INLINE void fetch_ahead() {
        if (cta() < TILES) Layer::fetch_ahead(run, cta());
        if constexpr (!BULK) copies_committed();
    }

    // A CTA does not end before what it sent for is there.
    template <class Layer, int TILES>
    INLINE void drop() {
        if (cta() < TILES) Layer::drop();
    }

    // The tiles of one step that are this CTA's; `then` fetches weights of a later one. BEHIND: groups fewer that are under way by then.
    // APART: the next step writes to shared memory, until its first sync, only where nobody reads behind this one's last.
    template <class Layer, int TILES, int BEHIND = 0, bool APART = false, class Then>
    INLINE void step(Then then) {
        if (cta() < TILES) {
            if constexpr (DISTANCE > 0 && !BULK) copies_left<DISTANCE - 1 - BEHIND>();
            Layer::template compute<(DISTANCE > 0), LOOK_FIRST>(run, cta(), then);
            if constexpr (TILES > CTAS) more<Layer, TILES>();
            if constexpr (!APART) sync();  // before the next step writes over this one's shared memory
        } else {
            then.looking(), then.early(), then.late();
        }
    }

    template <class Layer, int TILES>
    INLINE void more() {
#pragma unroll 1
        for (int tile = cta() + CTAS; tile < TILES; tile += CTAS) {
            typename Layer::Prepared ready;
            Layer::template prepare<false>(run, tile, ready);
            Layer::finish(run, tile, ready);
        }
    }
};
