// Moments of a CTA, kept in State, of a grid that is made to be measured (generate(..., timed=True)). An exported source has neither this nor
// the lines of the other templates that call it.
//
// Of each CTA the first threads of the first and of the last warp keep them, STAMPS words each, from the word STAMPS_AT of State. A moment
// that a CTA does not come to stays zero.

constexpr int STAMPERS = 2;

INLINE void keep(Word* state, int place, Word moment) {
    store_relaxed(state + STAMPS_AT + (cta() * STAMPERS + (thread() > 0)) * STAMPS + place, moment);
}
INLINE bool stamps() { return lane() == 0 && (warp() == 0 || warp() == WARPS - 1); }

// Of the kernel, in cycles of this SM; and in nanoseconds of the GPU.
INLINE void stamp(Word* state, int place) {
    if (stamps()) keep(state, place, cycles());
}
INLINE void stamp_nanoseconds(Word* state, int place) {
    if (stamps()) keep(state, place, static_cast<Word>(nanoseconds()));
}

// Of the step of layer L, of its first tile here.
template <class L>
INLINE void stamp(const Run& run, int tile, StepMoment moment) {
    if (tile == cta()) stamp(run.state, KERNEL_STAMPS + (L::NUMBER - 1) * STEP_STAMPS + moment);
}
