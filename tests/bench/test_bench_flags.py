from __future__ import annotations

import json

import numpy as np
import pytest

from accel.bench import flags
from accel.bench.candidates import Candidate, Failure, Job
from accel.bench.flags import FLAGS, NVML_COLUMNS, REFUSALS, Refused
from accel.bench.nvml import Reading
from accel.bench.plan import MeasurementPlan
from accel.bench.results import row
from accel.bench.rows import RowMaker
from accel.bench.settings import BenchSettings
from accel.bench.telemetry import Sample, Watch
from accel.bench.verification import Verification
from accel.types import Variant

MACHINE = {"gpu_uuid": "GPU-1", "gpu_name": "Fake GPU", "driver": "580.1", "python": "3.11.9", "versions": {}, "dirty": True}
FACTS = {"precision": "fp32", "tf32_matmul": "ieee", "tf32_conv": "ieee", "cpu_nodes": 0, "recompiles": 0}
ANSWER = {
    "load_s": 3.0,
    "build_s": 1.0,
    "first_call_ms": 2.0,
    "host_mem_peak_mib": 512.0,
    "flags": [],
    "wall_s": {"host_us": 1.0},
    "blocks": 1,
    "warmup_n": 50,
    "event_floor_us": {},
    "timed_ns": [0, 0],
    "input_sha256": "abc",
    "input_shape": [1, 3, 4, 4],
    "sync_mode": "spin",
    "preprocess_us": 12.5,
    "cudnn": "9.10.2",
    "load1": 0.1,
    "cpu_affinity": "0-1",
    "versions": {},
    "python": "3.11.9",
    "executable": "/python",
}
READING = {"temp_c": 40, "power_w": 300.0, "utilisation_pct": 99, "mem_used_mib": 9.0, "mem_clock_mhz": 2619}


def watched(mask: int = 0, others: tuple[int, ...] = (), own: bool = True) -> Watch:
    reading = Reading(sm_clock_mhz=1980, reasons=mask, pids=frozenset(others), **READING)
    return Watch([Sample(0, reading, own, frozenset(others))] * 2, 700.0, (0, 0))


@pytest.fixture
def measured(bundle, tmp_path):
    """One row of a run on a GPU, without its time stamp."""

    def make(facts=None, watch=None, first=None, told=(), failure=None, device="cuda:0", input_sha256="abc", **machine):
        variant = Variant("eager", "fp32")
        job = Job(bundle, device, 1, 1, BenchSettings(), tmp_path, launch=lambda *_: {})
        maker = RowMaker(job, MeasurementPlan(), "set", {**MACHINE, **machine})
        answer = {**ANSWER, "facts": {**FACTS, **(facts or {})}, "flags": list(told), "input_sha256": input_sha256}
        verification = Verification(Candidate(variant, "/python", "1.0", "identity"), failure=failure)
        samples = {"host_us": np.full(200, 100_000)}
        (made,), _ = maker.measured(verification, 0, 0, answer, samples, watched() if watch is None else watch, first)
        return made | {"timestamp_utc": None}

    return make


RUNS = {
    "PRECISION": ({"facts": {"precision": "fp16"}}, {}),
    "PRECISION by TF32": ({"facts": {"tf32_conv": "tf32"}}, {"tf32_conv": True}),
    "RECOMPILED": ({"facts": {"recompiles": 2}}, {"recompiles": 2}),
    "CPU_NODES": ({"facts": {"cpu_nodes": 3}}, {"cpu_nodes": 3}),
    "OTHER_PROCESS": ({"watch": watched(others=(71, 70))}, {"other_pids": [70, 71]}),
    "HW_SLOWDOWN": ({"watch": watched(0x8)}, {"throttle_mask": 0x8}),
    "HW_SLOWDOWN by heat": ({"watch": watched(0x40)}, {"throttle_mask": 0x40}),
    "HW_SLOWDOWN by the power supply": ({"watch": watched(0x81)}, {"throttle_mask": 0x81}),
    "FOREIGN_STREAM": ({"told": ["FOREIGN_STREAM"]}, {}),
    "INPUTS_DIFFER": ({"first": {"input_sha256": "xyz"}}, {}),
    "GPU_DIFFERS": ({"first": {"gpu_uuid": "GPU-2"}}, {}),
    "DRIVER_DIFFERS": ({"first": {"driver": "590.2"}}, {}),
}
"""Refusal → the run that it is made for, and the columns that this run changes beside the outcome."""


@pytest.mark.parametrize("case", RUNS)
def test_each_refusal_fires_on_its_case_alone_and_changes_nothing_else_in_the_row(measured, case):
    given, seen = RUNS[case]
    name = case.partition(" ")[0]
    clean = measured()
    given = {**given, "first": clean | given["first"]} if "first" in given else given

    found = measured(**given)

    outcome = {"verdict": "INVALID", "exit_code": 3, "refusals": [name], "remedy": REFUSALS[name].remedy, "reason": found["reason"]}
    assert found == clean | seen | outcome
    assert found["reason"]


def test_every_refusal_of_a_run_has_its_case():
    # The two left are found before anything is timed.
    assert {case.partition(" ")[0] for case in RUNS} | {"CORRECTNESS", "SELF_CHECK"} == REFUSALS.keys()


def test_what_events_read_is_on_record_raw_and_corrected(bundle, tmp_path):
    maker = RowMaker(Job(bundle, "cuda:0", 1, 1, BenchSettings(), tmp_path, launch=lambda *_: {}), MeasurementPlan(), "set", MACHINE)
    answer = {**ANSWER, "facts": FACTS, "wall_s": {"host_us": 1.0, "device_us": 1.0}, "event_floor_us": {"device_us": 1.5}}
    samples = {"host_us": np.full(200, 100_000), "device_us": np.full(200, 90_000)}

    rows, _ = maker.measured(
        Verification(Candidate(Variant("eager", "fp32"), "/python", "1.0", "x")), 0, 0, answer, samples, watched(), None
    )

    found = {row["latency_kind"]: [row[name] for name in ("p50_us", "event_floor_us", "p50_corrected_us")] for row in rows}
    assert found == {"host_us": [100, None, None], "device_us": [90, 1.5, 88.5]}


def test_a_clean_run_has_neither_flag_nor_refusal(measured):
    clean = measured(first=measured())

    assert (clean["verdict"], clean["flags"], clean["refusals"], clean["reason"], clean["exit_code"]) == ("OK", [], [], None, 0)
    assert not [name for name in NVML_COLUMNS if clean[name] is None]


def test_all_that_is_wrong_with_one_run_is_said(measured):
    found = measured(facts={"precision": "fp16", "recompiles": 1}, watch=watched(0xC, others=(70,)))

    assert found["refusals"] == ["PRECISION", "RECOMPILED", "OTHER_PROCESS", "HW_SLOWDOWN"]
    assert found["flags"] == ["SW_POWER_CAP"]
    for said in ("fp16 was computed", "compiled again 1 time while", "PID 70", "HwSlowdown"):
        assert said in found["reason"]
    assert found["remedy"].count("accel doctor") == 1


def test_a_failed_correctness_is_a_refusal_with_its_remedy(bundle, tmp_path):
    job = Job(bundle, "cpu", 1, 1, BenchSettings(), tmp_path, launch=lambda *_: {})
    failure = Failure.refused([Refused("CORRECTNESS", "top1 fell by 3.00 points")])

    found = RowMaker(job, MeasurementPlan(), "set", MACHINE).not_run(
        Verification(Candidate(Variant("eager", "fp32"), "/python"), failure=failure)
    )

    assert [found[name] for name in ("verdict", "exit_code", "refusals", "flags")] == ["INVALID", 3, ["CORRECTNESS"], []]
    assert (found["reason"], found["remedy"]) == ("top1 fell by 3.00 points", REFUSALS["CORRECTNESS"].remedy)


def test_a_refusal_outdoes_a_fallback_and_a_missing_accuracy(measured):
    unverified = Failure("UNVERIFIED", "no data", "name some")

    found = measured(facts={"fallback": "no compiler"}, watch=watched(0x8), failure=unverified)

    assert (found["verdict"], found["fallback"], found["flags"]) == ("INVALID", "no compiler", ["UNVERIFIED"])


COLUMNS = {
    "NOISY": {"stability": "NOISY"},
    "UNSTABLE": {"stability": "UNSTABLE"},
    "COV": {"cov_pct": 2.6},
    "WIDE_IQR": {"iqr_rel_pct": 10.1},
    "DRIFT": {"drift_pct": 1.1},
    "DRIFT downwards": {"drift_pct": -1.1},
    "AUTOCORR": {"rho1": 0.11},
    "NEAR_FLOOR": {"latency_kind": "device_us", "event_floor_us": 2.1, "p50_us": 100.0},
    "NEAR_FLOOR of a span": {"latency_kind": "span_us", "event_floor_us": 2.1, "p50_us": 100.0},
    "BUSY_HOST": {"host_others_cpus": 0.51},
    "STOLEN": {"host_stolen_cpus": 0.021},
    "SW_POWER_CAP": {"throttle_mask": 0x4},
    "SW_THERMAL": {"throttle_mask": 0x21},
    "NVML_UNAVAILABLE": dict.fromkeys(NVML_COLUMNS),
}
"""Flag → columns that bear it out."""

HARMLESS = {
    "stable": {"stability": "STABLE"},
    "at every limit": {"cov_pct": 2.5, "iqr_rel_pct": 10.0, "drift_pct": -1.0, "rho1": 0.1},
    "others at the limit": {"host_others_cpus": 0.5, "host_stolen_cpus": 0.02},
    "samples that alternate": {"rho1": -0.5},
    "a floor of the events beside the host's clock": {"latency_kind": "host_us", "event_floor_us": 2.1, "p50_us": 100.0},
    "a floor at the limit": {"latency_kind": "device_us", "event_floor_us": 2.0, "p50_us": 100.0},
    "an idle GPU, application clocks, a display": {"throttle_mask": 0x1 | 0x2 | 0x10 | 0x100},
    "one reading of NVML": dict.fromkeys(NVML_COLUMNS) | {"temp_start_c": 40},
    "nothing known": dict.fromkeys(("stability", "cov_pct", "iqr_rel_pct", "drift_pct", "rho1", "event_floor_us", "throttle_mask")),
    "a CPU": {"device": "cpu", **dict.fromkeys(NVML_COLUMNS)},
}


@pytest.mark.parametrize(("case", "expected"), [(case, [case.split()[0]]) for case in COLUMNS] + [(case, []) for case in HARMLESS])
def test_each_flag_fires_on_its_columns_and_on_no_others(measured, case, expected):
    changed = (COLUMNS | HARMLESS)[case]

    assert flags.flags(measured() | changed) == expected
    assert flags.disturbed(measured() | changed) == []


@pytest.mark.parametrize("name", ["ENQUEUE_BLOCKED", "NOT_WARM", "INPUT_DEPENDENT"])
def test_what_a_worker_alone_can_know_it_tells(measured, name):
    assert measured(told=[name]) == measured() | {"flags": [name]}


def test_a_clock_that_moves_into_the_passes_is_not_warm(measured):
    def rising(mhz):
        reading = Reading(sm_clock_mhz=mhz, reasons=0, pids=frozenset(), **READING)
        return Sample(0, reading, True, frozenset())

    steady = Watch([rising(1980)] * 5, 700.0, (0, 0))
    climbing = Watch([*[rising(1980)] * 4, rising(1950)], 700.0, (0, 0))

    assert measured(watch=steady)["flags"] == []
    assert measured(watch=climbing)["flags"] == ["NOT_WARM"]


def test_hidden_processes_are_said(measured):
    assert measured(watch=watched(own=False)) == measured() | {"flags": ["PIDS_HIDDEN"], "other_pids": None}


def test_a_gpu_that_nobody_watched_is_said_once(measured):
    silent = Watch([Sample(0, Reading(**dict.fromkeys(vars(watched().samples[0].reading))), False, frozenset())], None, (None, None))

    for watch in (Watch(), silent):
        assert measured(watch=watch) == measured() | dict.fromkeys(NVML_COLUMNS) | {"flags": ["NVML_UNAVAILABLE"]}


def test_on_a_cpu_nothing_of_the_gpu_is_missed(measured):
    found = measured(device="cpu", watch=Watch(), facts={"cpu_nodes": 20}, gpu_uuid=None, gpu_name=None, driver=None)

    assert (found["verdict"], found["flags"], {found[name] for name in NVML_COLUMNS}) == ("OK", [], {None})


def test_an_unverified_row_has_the_flag_of_its_verdict(measured):
    assert measured(failure=Failure("UNVERIFIED", "no data"))["flags"] == ["UNVERIFIED"]


@pytest.mark.parametrize(
    ("mhz", "other", "differ"), [(1980, 1941, False), (1980, 1940, True), (1940, 1980, True), (None, 1980, False), (1980, None, False)]
)
def test_clocks_differ_by_more_than_two_percent_of_the_larger(mhz, other, differ):
    assert flags.clocks_differ(mhz, other) is differ


def test_every_flag_and_refusal_has_a_meaning_and_a_remedy():
    told = {"ENQUEUE_BLOCKED", "NOT_WARM", "INPUT_DEPENDENT", "PIDS_HIDDEN", "UNVERIFIED", "CLOCKS_DIFFER"}

    assert {case.split()[0] for case in COLUMNS} | told == FLAGS.keys()
    assert all(rule.meaning and rule.remedy for rule in [*FLAGS.values(), *REFUSALS.values()])
    assert not FLAGS.keys() & REFUSALS.keys()


def test_rows_of_a_cpu_and_of_a_gpu_are_not_compared():
    cpu = row(variant="a", run_id="r0", input_sha256="abc")
    gpu = row(variant="b", run_id="r0", input_sha256="abc", gpu_uuid="GPU-1", driver="580.1")

    assert [item.name for item in flags.differences(cpu, gpu)] == ["GPU_DIFFERS", "DRIVER_DIFFERS"]
    assert flags.differences(cpu, {**cpu, "variant": "c"}) == []


def test_a_refused_row_can_be_written(measured):
    assert json.loads(json.dumps(measured(watch=watched(0x8, others=(70,)))))["refusals"] == ["OTHER_PROCESS", "HW_SLOWDOWN"]
