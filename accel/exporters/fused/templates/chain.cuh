// Schedule `chain`: a kernel a layer. The next one may start at once: it fetches its weights and then waits for this one's end.

template <class Layer>
INLINE void run_alone(const Run& run) {
    dependents_may_start();
    typename Layer::Prepared ready;
    Layer::template prepare<false>(run, cta(), ready);
    wait_for_previous();
    Layer::finish(run, cta(), ready);
}
