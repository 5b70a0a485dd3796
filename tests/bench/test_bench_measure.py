from __future__ import annotations

import gc
import itertools

import bench_scripted
import numpy as np
import pytest

from accel.bench import inputs as rotation
from accel.bench import passes
from accel.bench.measure import ENQUEUE_BLOCKED, FOREIGN_STREAM, INPUT_DEPENDENT, first_call, measure, preprocessing_ns
from accel.bench.passes import Instruments
from accel.bench.plan import MeasurementPlan
from accel.bench.processors import Used
from accel.bench.warming import NOT_WARM, agree, preheat, warm_up
from accel.engines import Golden
from accel.errors import UsageError
from accel.types import EngineSource, TensorSpec, Variant
from accel.verify.opened import open_engine

PLAN = MeasurementPlan(warmup=5, iterations=20, rounds=1, block=8, discard=2)
IMAGE = TensorSpec("image", ("batch", 3, 4, 4))
LOGITS = TensorSpec("logits", ("batch", 4))


@pytest.fixture
def engine(script):
    source = EngineSource(Variant("eager", "fp32"), "cpu", (IMAGE,), (LOGITS,))
    with open_engine(source) as engine:
        yield engine


@pytest.fixture
def batches():
    return [{"image": np.full((1, 3, 4, 4), index, np.float32)} for index in range(8)]


def instruments(script, **more) -> Instruments:
    return Instruments(script.clock, lambda stream: None, **more)


class FakeTimer:
    """Events that fire on the fake clock; `gpu_us` is what a gated call reads."""

    def __init__(self, clock):
        self.clock, self.marks = clock, []

    def start(self):
        self.begin = self.clock.now_ns()

    def stop(self):
        self.end = self.clock.now_ns()

    def elapsed_ns(self):
        return self.end - self.begin

    def close(self):
        self.closed = True


class FakeGate:
    def __init__(self, blocks_at=None):
        self.blocked, self.held, self.count, self.blocks_at = False, False, 0, blocks_at

    def hold(self):
        assert not self.held
        self.held, self.count = True, self.count + 1
        self.blocked = self.blocked or self.count == self.blocks_at

    def open(self):
        self.held = False


def test_on_a_cpu_only_host_and_e2e_exist(script, engine, batches):
    result = measure(engine, batches, PLAN, instruments(script))

    assert list(result.samples_ns) == ["host_us", "e2e_us"]
    assert all((samples == 100_000).all() and len(samples) == 20 for samples in result.samples_ns.values())
    assert (result.blocks, result.flags) == (3, ())


def test_end_to_end_can_be_sampled_less(script, engine, batches):
    plan = MeasurementPlan(warmup=5, iterations=20, e2e_iterations=6, rounds=1, block=8, discard=2)
    taken = measure(engine, batches, plan, instruments(script)).samples_ns
    assert {kind: len(samples) for kind, samples in taken.items()} == {"host_us": 20, "e2e_us": 6}


def test_warm_up_and_the_head_of_each_block_are_thrown_away(script, engine, batches):
    # 5 warm-up calls, then in three blocks 2 discarded calls before 8, 8 and 4 kept ones.
    script.call_us = itertools.count(1)

    host = measure(engine, batches, PLAN, instruments(script)).samples_ns["host_us"] // 1000

    assert host.tolist() == [*range(8, 16), *range(18, 26), *range(28, 32)]


def test_the_wall_time_of_a_pass_counts_its_discarded_calls(script, engine, batches):
    result = measure(engine, batches, PLAN, instruments(script))

    assert result.wall_s["host_us"] == pytest.approx((20 + 3 * 2) * 100e-6)


def test_preprocessing_is_timed_over_batches_of_images_in_turn(script):
    images, given = np.arange(16, dtype=np.uint8).reshape(16, 1, 1, 1), []

    def preprocess(batch):
        given.append(batch.ravel().tolist())
        script.clock.advance_us(900 if len(given) <= 20 else 30)
        return batch

    assert preprocessing_ns(preprocess, images, 3, script.clock) == 30_000
    assert (len(given), given[20], given[25]) == (220, [0, 1, 2], [15, 0, 1])


def test_inputs_are_rotated(script, engine, batches):
    seen = []
    enqueue = engine.runtime.enqueue
    engine.runtime.enqueue = lambda binding: (seen.append(float(binding.inputs["image"].owner.flat[0])), enqueue(binding))

    measure(engine, batches, PLAN, instruments(script))

    assert seen[:8] == [0, 1, 2, 3, 4, 0, 1, 2]  # warm-up, then the first block
    assert set(seen) == set(range(8))


def test_beside_a_gpu_events_are_read_behind_the_gate_and_without_it(script, engine, batches):
    timer, gate = FakeTimer(script.clock), FakeGate()

    result = measure(engine, batches, PLAN, instruments(script, timer=timer, gate=gate))

    assert list(result.samples_ns) == ["host_us", "device_us", "span_us", "enqueue_us", "replay_us", "e2e_us"]
    # Inputs in turn, and then one input alone.
    assert gate.count == passes.EMPTY_PAIRS + 2 * (20 + 3 * 2)
    assert not gate.held
    assert result.event_floor_ns == {"device_us": 0, "span_us": 0}
    assert result.flags == ()


def test_an_enqueue_that_blocks_has_a_flag_and_no_device_time(script, engine, batches):
    gate = FakeGate(blocks_at=passes.EMPTY_PAIRS + 7)

    result = measure(engine, batches, PLAN, instruments(script, timer=FakeTimer(script.clock), gate=gate))

    assert list(result.samples_ns) == ["host_us", "span_us", "enqueue_us", "replay_us", "e2e_us"]
    assert result.flags == (ENQUEUE_BLOCKED,)


def test_the_gate_is_opened_when_the_call_fails(script, engine, batches):
    gate = FakeGate()
    enqueue = engine.runtime.enqueue

    def failing(binding):
        if gate.held:
            raise RuntimeError("a kernel failed")
        enqueue(binding)

    engine.runtime.enqueue = failing
    with pytest.raises(RuntimeError, match="a kernel failed"):
        measure(engine, batches, PLAN, instruments(script, timer=FakeTimer(script.clock), gate=gate))
    assert not gate.held


def test_no_garbage_is_collected_while_timing_and_the_collector_comes_back(script, engine, batches):
    enabled, frozen = [], []
    enqueue = engine.runtime.enqueue
    engine.runtime.enqueue = lambda binding: (enabled.append(gc.isenabled()), frozen.append(gc.get_freeze_count()), enqueue(binding))

    measure(engine, batches, PLAN, instruments(script))

    assert not any(enabled[PLAN.warmup :])
    assert all(frozen[PLAN.warmup : PLAN.warmup + 20 + 3 * 2])
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_slow_first_call_is_a_number_of_its_own(script, engine, batches):
    script.call_us = itertools.chain([9000.0], itertools.repeat(50.0))

    assert first_call(engine, batches[0], script.clock, lambda stream: None) == 9_000_000
    assert (measure(engine, batches, PLAN, instruments(script)).samples_ns["host_us"] == 50_000).all()


def test_rotated_inputs_are_distinct_images_and_the_same_every_time(bundle):
    golden = bundle.golden()

    batches = rotation.rotated(golden, 8, 1, seed=0)

    assert len({batch["image"].tobytes() for batch in batches}) == 8
    assert all(batch["image"].shape == (1, 3, 4, 4) and batch["image"].any() for batch in batches)
    again = rotation.rotated(golden, 8, 1, seed=0)
    assert all((a["image"] == b["image"]).all() for a, b in zip(batches, again, strict=True))
    assert rotation.input_sha256(golden, 8, 1, 0) == rotation.input_sha256(golden, 8, 1, 0) != rotation.input_sha256(golden, 8, 1, 1)
    assert rotation.rotated(golden, 8, 5, seed=0)[7]["image"].shape == (5, 3, 4, 4)


@pytest.mark.parametrize(("spoil", "left"), [(lambda image: image, 15), (np.zeros_like, 15)])
def test_inputs_that_are_the_same_or_all_zero_are_refused(spoil, left):
    image = np.random.default_rng(0).standard_normal((16, 3, 4, 4)).astype(np.float32)
    good = Golden(None, {"image": image.copy()}, {})
    image[7] = spoil(image[0])

    assert len(rotation.rotated(good, 16, 1, seed=0)) == 16
    with pytest.raises(UsageError, match=f"16 distinct inputs are rotated, and of those drawn from golden.npz {left} differ"):
        rotation.rotated(Golden(None, {"image": image}, {}), 16, 1, seed=0)
    with pytest.raises(UsageError, match="holds 7 samples and 8 distinct"):
        rotation.rotated(Golden(None, {"image": image[:7]}, {}), 8, 1, seed=0)


def test_a_short_batch_is_padded_and_cut(script):
    source = EngineSource(Variant("eager", "fp32"), "cpu", (IMAGE,), (LOGITS,), batch=4)
    rows = np.random.default_rng(0).standard_normal((3, 3, 4, 4)).astype(np.float32)

    with open_engine(source) as engine:
        found = engine.infer({"image": rows})["logits"]

    np.testing.assert_allclose(found, rows.reshape(3, -1) @ bench_scripted.WEIGHTS.T, rtol=1e-5)


def beside_a_gpu(script, **more) -> Instruments:
    return instruments(script, timer=FakeTimer(script.clock), gate=FakeGate(), **more)


def test_who_else_used_the_processors_is_asked_before_and_after_the_passes(script, engine, batches):
    # 52 calls of a tenth of a second: 20 and 6 that are thrown away, on the device and end to end.
    script.call_us = itertools.repeat(100_000.0)
    moments = iter([Used(busy_s=10.0, stolen_s=0.0, own_s=1.0), Used(busy_s=17.2, stolen_s=0.26, own_s=3.0)])
    script.clock.used = lambda: next(moments)

    result = measure(engine, batches, PLAN, instruments(script))

    assert result.host == {"host_others_cpus": 1.0, "host_stolen_cpus": 0.05}
    assert next(moments, None) is None


def test_a_replay_is_a_call_of_a_chain_of_them(script, engine, batches):
    script.call_us = itertools.repeat(70.0)
    # 3 µs for a pair of events around nothing, and 70 for each call: the pair is in both chains, and so in neither.
    instruments_ = beside_a_gpu(script)
    stop = instruments_.timer.stop
    instruments_.timer.stop = lambda: (script.clock.advance_us(3), stop())

    result = measure(engine, batches, PLAN, instruments_)

    assert result.samples_ns["replay_us"].tolist() == [70_000] * 5
    assert result.event_floor_ns == {"device_us": 3_000, "span_us": 3_000}
    assert set(result.samples_ns["device_us"]) == {73_000}


def test_a_replay_throws_one_sample_away_that_has_the_calls_which_others_throw_away_one_by_one(script, engine, batches):
    script.call_us = itertools.repeat(70.0)

    result = measure(engine, batches, MeasurementPlan(warmup=5, iterations=20, rounds=1, discard=20), beside_a_gpu(script))

    pair_s = 3 * passes.LONGEST * 70e-6
    assert result.wall_s["replay_us"] == pytest.approx((1 + 5) * pair_s)
    assert result.wall_s["host_us"] == pytest.approx((20 + 20) * 70e-6)


def test_diagnostics_take_few_samples(script, engine, batches):
    plan = MeasurementPlan(warmup=5, iterations=300, rounds=1, discard=2)

    result = measure(engine, batches, plan, beside_a_gpu(script))

    assert {kind: len(samples) for kind, samples in result.samples_ns.items()} == {
        "host_us": 300,
        "device_us": 300,
        "span_us": 200,
        "enqueue_us": 200,
        "replay_us": 5,
        "e2e_us": 300,
    }


def test_a_cold_cache_is_filled_and_waited_for_outside_every_sample(script, engine, batches):
    done = []

    def flush():
        done.append("flush")
        script.clock.advance_us(40)

    result = measure(engine, batches, PLAN, beside_a_gpu(script, flush=flush))

    assert list(result.samples_ns) == ["host_us", "device_us", "span_us", "e2e_us"]
    assert set(result.samples_ns["host_us"]) == {100_000}
    # Warm-up, four passes of 20 samples and 3 discarded pairs, and the pass with one input.
    assert len(done) == 5 + 5 * (20 + 3 * 2)


def test_a_paced_call_comes_after_a_sleep_that_is_not_counted(script, engine, batches):
    plan = MeasurementPlan(warmup=5, iterations=20, rounds=1, block=8, discard=2, idle_ms=33.0)

    before = script.clock.now_ns()
    result = measure(engine, batches, plan, instruments(script))

    assert list(result.samples_ns) == ["host_us", "e2e_us", "paced_us"]
    assert (result.samples_ns["paced_us"] == 100_000).all()
    assert script.clock.now_ns() - before > 26 * 33e6


def test_one_input_that_is_faster_than_inputs_in_turn_is_told(script, engine, batches):
    enqueue = engine.runtime.enqueue

    def by_input(binding):
        # Only input 0 is fast, as a branch on the values would make it.
        script.call_us = itertools.repeat(50.0 if not binding.inputs["image"].owner.flat[0] else 100.0)
        enqueue(binding)

    engine.runtime.enqueue = by_input

    assert measure(engine, batches, PLAN, beside_a_gpu(script)).flags == (INPUT_DEPENDENT,)


def test_a_warm_up_ends_when_two_halves_agree():
    def settling(samples, offset):
        samples[:] = [max(1000 - 10 * (offset + index), 100) for index in range(len(samples))]

    spent, warm = warm_up(settling, 1000)
    # Slow until call 90: the last hundred are level from call 190 on, which the step after it sees.
    assert (spent, warm) == (200, True)
    assert warm_up(settling, 150) == (150, False)
    assert warm_up(settling, 20) == (20, True)
    assert warm_up(settling, 0) == (0, True)


def test_halves_agree_within_two_percent_of_the_median_and_five_of_the_quartiles():
    level = np.tile(np.arange(1000, 1010), 5)
    assert agree(np.concatenate([level, level]))
    assert agree(np.concatenate([level, level * 1.015]))
    assert not agree(np.concatenate([level, level * 1.03]))
    wide = level.copy()
    wide[wide >= 1007] = 1100
    assert not agree(np.concatenate([level, wide]))


def test_a_warm_up_that_never_settles_is_flagged(script, engine, batches):
    script.call_us = itertools.count(100, 5)
    plan = MeasurementPlan(warmup=100, iterations=20, rounds=1)

    result = measure(engine, batches, plan, instruments(script))

    assert (result.warmup_n, result.flags) == (100, (NOT_WARM,))


def test_a_gpu_is_kept_busy_for_a_second_first(script):
    calls = []

    preheat(lambda count: (calls.append(count), script.clock.advance_us(count * 1000)), script.clock.now_ns)

    assert calls == [50] * 20


@pytest.mark.parametrize(("left_us", "flags"), [(0, ()), (15, ()), (60, (FOREIGN_STREAM,))])
def test_work_that_is_left_on_another_stream_is_found_out(script, engine, batches, left_us, flags):
    left = []
    enqueue = engine.runtime.enqueue
    engine.runtime.enqueue = lambda binding: (left.append(left_us), enqueue(binding))

    def wait_for_all():
        # A wait costs 50 µs even where nothing is left.
        script.clock.advance_us(50 + (left[-1] if left else 0))
        left.clear()

    result = measure(engine, batches, PLAN, beside_a_gpu(script, synchronize_device=wait_for_all))

    assert result.flags == flags


@pytest.mark.parametrize("disturbed", [4, 8])
def test_a_host_that_stumbles_for_a_moment_leaves_no_work(script, engine, batches, disturbed):
    waits = []

    def wait_for_all():
        # Three waits belong to a call: before it, of the idle device, and after it. The last is late for the first calls only.
        waits.append(None)
        call, part = divmod(len(waits) - 1, 3)
        script.clock.advance_us(50 + (60 if part == 2 and call < disturbed else 0))

    result = measure(engine, batches, PLAN, beside_a_gpu(script, synchronize_device=wait_for_all))

    assert result.flags == ()
    assert len(waits) == 3 * 5 * (2 if disturbed == 4 else 3)
