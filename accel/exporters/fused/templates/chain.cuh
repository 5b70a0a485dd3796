// Schedule `chain`: a kernel a layer. The next one may start at once: it fetches its weights and then waits for this one's end.

template <class Layer>
INLINE void run_tile(const Run& run, int tile) {
    typename Layer::Prepared ready;
    Layer::template prepare<false>(run, tile, ready);
    wait_for_previous();
    Layer::finish(run, tile, ready);
}

template <class Layer>
INLINE void run_alone(const Run& run) {
    dependents_may_start();
    run_tile<Layer>(run, cta());
}

// Two layers that read the same one: the CTAs of the second behind those of the first, and one kernel less to wait for.
template <class First, int FIRST_TILES, class Second>
INLINE void run_beside(const Run& run) {
    dependents_may_start();
    if (cta() < FIRST_TILES) run_tile<First>(run, cta());
    else run_tile<Second>(run, cta() - FIRST_TILES);
}
