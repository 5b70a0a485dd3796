from __future__ import annotations

import csv
import dataclasses
import gzip
import itertools
import json
import lzma
import sys
import threading

import bench_scripted
import fake_nvml
import numpy as np
import pytest

from accel.bench import checking, coordinate, fetching
from accel.bench.columns import COLUMNS, STANDARD
from accel.bench.coordinate import run_set
from accel.bench.flags import NVML_COLUMNS
from accel.bench.plan import MeasurementPlan, order
from accel.bench.results import read_rows, to_jsonl
from accel.bench.results import row as result_row
from accel.bench.settings import BenchSettings
from accel.bench.stats import summarise
from accel.engines import Bundle, verified
from accel.errors import CorruptArtifact, MissingExtra, RuntimeUnavailable
from accel.types import Variant

PLAN = MeasurementPlan(warmup=2, iterations=12, rounds=2, discard=1, name="test plan")
FIRST_IS_EAGER = next(seed for seed in range(20) if order(["eager:fp32", "other:fp32"], 0, seed)[0] == "eager:fp32")
EAGER, OTHER = Variant("eager", "fp32"), Variant("other", "fp32")


@pytest.fixture
def bench(script, bundle, settings, tmp_path):
    def run(*variants: Variant, plan=PLAN, settings=settings, **more):
        chosen = variants or (EAGER, OTHER)
        return run_set(Bundle.open(bundle.path), chosen, plan, "cpu", tmp_path / "out", settings, launch=script.launch, **more)

    return run


def test_every_variant_gets_a_row_for_each_round_and_latency(bench):
    result = bench()

    assert sorted((row["variant"], row["round"], row["latency_kind"]) for row in result.rows) == [
        (variant, number, kind) for variant in ("eager:fp32", "other:fp32") for number in (0, 1) for kind in ("e2e_us", "host_us")
    ]
    row = result.rows[0]
    assert (row["p50_us"], row["mean_us"], row["n"], row["p99_us"], row["build_s"]) == (100, 100, 12, None, 2.0)
    assert (row["top1"], row["top1_reference"], row["n_test"], row["n_flips"], row["mcnemar_p"]) == (100, 100, 200, 0, 1)
    assert (row["verdict"], row["params"], row["model"], row["l2_mode"], row["gpu_name"]) == ("OK", 192, "tiny", None, None)
    assert not result.unverified


def test_jsonl_csv_samples_and_description_lie_in_a_folder_of_the_sets_own(bench):
    result = bench()

    assert sorted(path.name for path in result.folder.iterdir()) == ["results.csv", "results.jsonl", "samples.npz", "set.json"]
    assert read_rows(result.folder) == json.loads(json.dumps(result.rows))
    with open(result.folder / "results.csv", newline="") as stream:
        table = list(csv.reader(stream))
    assert tuple(table[0]) == COLUMNS
    assert len(table) == 1 + len(result.rows)
    described = json.loads((result.folder / "set.json").read_text())
    assert (described["state"], described["command"], described["plan"]["iterations"]) == ("finished", "accel bench tiny", 12)


def test_the_standard_columns_are_named_once_for_all_and_come_first():
    standard = [
        "schema_version",
        "set_id",
        "run_id",
        "round",
        "order_index",
        "timestamp_utc",
        "git_sha",
        "dirty",
        "seed",
        "model",
        "weights_sha256",
        "input_sha256",
        "input_shape",
        "batch",
        "n_distinct_inputs",
        "engine",
        "runtime",
        "runtime_version",
        "engine_sha256",
        "options_json",
        "precision",
        "tf32_matmul",
        "tf32_conv",
        "export_s",
        "load_s",
        "build_s",
        "build_warm_s",
        "first_call_ms",
        "graph_nodes",
        "cpu_nodes",
        "recompiles",
        "size_mb",
        "params",
        "latency_kind",
        "sync_mode",
        "l2_mode",
        "warmup_n",
        "n",
        "blocks",
        "timed_wall_s",
        "cpu_affinity",
        "threads",
        "mean_us",
        "std_us",
        "min_us",
        "p50_us",
        "p50_lo_us",
        "p50_hi_us",
        "p95_us",
        "p95_lo_us",
        "p95_hi_us",
        "p99_us",
        "p99_lo_us",
        "p99_hi_us",
        "max_us",
        "ci_method",
        "cov_pct",
        "iqr_rel_pct",
        "rho1",
        "drift_pct",
        "n_outliers",
        "event_floor_us",
        "launch_floor_us",
        "aa_floor_pct",
        "gpu_name",
        "gpu_uuid",
        "driver",
        "cuda",
        "cudnn",
        "sm_clock_min_mhz",
        "sm_clock_mean_mhz",
        "sm_clock_max_mhz",
        "mem_clock_mhz",
        "temp_start_c",
        "temp_max_c",
        "power_mean_w",
        "power_limit_w",
        "throttle_mask",
        "viol_power_ns",
        "viol_thermal_ns",
        "other_pids",
        "mem_peak_mib",
        "cpu_model",
        "governor",
        "load1",
        "kernel",
        "host_mem_peak_mib",
        "top1",
        "top1_reference",
        "n_test",
        "n_flips",
        "mcnemar_p",
        "max_abs_err",
        "max_rel_err",
        "stability",
        "flags",
        "verdict",
        "raw_path",
    ]
    assert list(STANDARD) == standard  # readers of old sets rely on these names: a change is a new schema_version
    assert COLUMNS[: len(standard)] == tuple(standard)


def test_statistics_can_be_recomputed_from_the_raw_samples(bench):
    result = bench()
    samples = result.samples()

    for row in result.rows:
        name, key = row["raw_path"].split("#")
        assert name == "samples.npz"
        assert samples[key].dtype == np.uint32
        assert dataclasses.asdict(summarise(samples[key])).items() <= row.items()


def test_each_run_is_a_worker_of_its_own_and_odd_rounds_are_reversed(bench, script):
    bench()

    measured = [variant for mode, variant, _ in script.launched if mode == "measure"]
    assert len(measured) == 4
    assert measured[2:] == measured[:2][::-1]


def test_the_references_pass_is_not_run_twice_and_a_second_set_verifies_nothing(bench, script):
    first = bench()
    assert script.count("verify") == 2
    assert Bundle.open(first.description["bundle"]).reference().logits.shape == (200, 4)

    second = bench()

    assert script.count("verify") == 2
    assert second.folder != first.folder
    assert second.rows[0]["top1"] == 100


def test_the_reference_is_made_even_when_eager_is_not_asked_for(bench, script):
    result = bench(OTHER)

    # Side by side, in either order.
    assert sorted(variant for mode, variant, _ in script.launched if mode == "verify") == ["eager:fp32", "other:fp32"]
    assert {row["variant"] for row in result.rows} == {"other:fp32"}


def test_a_killed_set_is_continued_and_nothing_recorded_runs_again(bench, script, tmp_path):
    script.fail["measure", "other:fp32"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        bench()
    (folder,) = (tmp_path / "out").iterdir()
    script.fail.clear()
    before = script.count("measure")

    result = bench()

    assert result.folder == folder
    # The interrupted run is taken again; those before it are not.
    assert script.count("measure") == 4 + 1
    assert before >= 1
    assert len(result.rows) == 8
    assert len({row["set_id"] for row in result.rows}) == 1


def test_a_line_that_was_cut_short_is_dropped_and_measured_again(bench, script, tmp_path):
    result = bench()
    path = result.folder / "results.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:6]) + whole[6][:40])
    described = json.loads((result.folder / "set.json").read_text())
    (result.folder / "set.json").write_text(json.dumps({**described, "state": "running"}))

    again = bench()

    assert again.folder == result.folder
    assert len(read_rows(again.folder)) == 8


def test_an_interrupt_while_engines_are_verified_side_by_side_keeps_what_was_done(bench, script, bundle, monkeypatch):
    monkeypatch.setattr(fetching.os, "cpu_count", lambda: 2)
    scripted, patience = script.launch, threading.Event()

    def launch(request, *rest):
        if request["mode"] == "verify" and request["variant"] == "other:fp32":
            for _ in range(3000):
                if verified.read(bundle.path):
                    raise KeyboardInterrupt
                patience.wait(0.01)
        return scripted(request, *rest)

    monkeypatch.setattr(script, "launch", launch)
    with pytest.raises(KeyboardInterrupt):
        bench()

    assert [known["variant"] for known in verified.read(bundle.path).values()] == ["eager:fp32"]


def test_another_plan_is_another_set(bench, script):
    script.fail["measure", "other:fp32"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        bench()
    script.fail.clear()

    result = bench(plan=dataclasses.replace(PLAN, iterations=13))

    assert {row["n"] for row in result.rows} == {13}


def test_a_worker_that_fails_becomes_an_error_row_and_the_others_go_on(bench, script):
    script.fail["measure", "other:fp32"] = bench_scripted.boom("the worker was killed by SIGSEGV")

    result = bench()

    (error,) = result.errors
    assert (error["verdict"], error["reason"], error["remedy"], error["exit_code"]) == (
        "ERROR",
        "the worker was killed by SIGSEGV",
        "mend it",
        1,
    )
    assert sum(row["verdict"] == "OK" for row in result.rows) == 4


def test_refused_and_missing_variants_have_a_row_and_do_not_fail_the_set(bench, script, monkeypatch):
    from accel.runtimes import table

    monkeypatch.setitem(table.RUNTIMES, "other", bench_scripted.table("no-such-distribution")["other"])

    result = bench(EAGER, Variant("eager", "fp16"), OTHER)

    refused, missing = sorted(result.refused, key=lambda row: row["variant"])
    assert (refused["verdict"], refused["reason"]) == ("REFUSED", "no FP16 kernels on this CPU")
    assert (missing["verdict"], missing["remedy"]) == ("MISSING", "pip install 'accel-engines[train]'")
    assert (refused["latency_kind"], refused["engine_sha256"], refused["size_mb"]) == (None, None, None)
    assert not result.errors
    assert not result.failed_gates


def test_an_engine_that_lost_accuracy_is_invalid_and_not_timed(bench, script):
    script.noise["other:fp32"] = 5.0

    result = bench()

    (row,) = result.failed_gates
    assert (row["variant"], row["exit_code"], row["latency_kind"]) == ("other:fp32", 3, None)
    assert row["top1"] < row["top1_reference"]
    assert "fell by" in row["reason"]
    assert ("measure", "other:fp32", sys.executable) not in script.launched


@pytest.mark.parametrize(
    ("facts", "verdict", "reason"),
    [
        ({"precision": "fp16"}, "INVALID", "fp16 was computed"),
        ({"recompiles": 2}, "INVALID", "compiled again 2 times"),
        ({"fallback": "no compiler was found"}, "FALLBACK", "no compiler was found"),
        ({"fallback": "half of it", "fallback_remedy": "export it again"}, "FALLBACK", "half of it"),
    ],
)
def test_what_ran_is_held_against_what_was_asked(bench, script, facts, verdict, reason):
    script.facts["other:fp32"] = facts

    result = bench()

    rows = [row for row in result.rows if row["variant"] == "other:fp32"]
    assert {row["verdict"] for row in rows} == {verdict}
    assert reason in rows[0]["reason"]
    assert facts.get("fallback_remedy", rows[0]["remedy"]) == rows[0]["remedy"]


def test_what_is_seen_of_the_gpu_is_in_the_rows_and_the_description(bench, script, monkeypatch):
    real = coordinate.snapshot
    monkeypatch.setattr(coordinate, "snapshot", lambda device: real(device) | {"gpu_uuid": fake_nvml.UUID})
    with fake_nvml.installed() as nvml:
        nvml.fail["nvmlDeviceGetPowerUsage"] = fake_nvml.NOT_SUPPORTED
        scripted, patience = script.launch, threading.Event()

        def launch(request, *rest):
            nvml.mask = 0x48 if request["variant"] == "other:fp32" else 0x4
            sampled = nvml.calls["nvmlDeviceGetMemoryInfo"]
            for _ in range(1000 if request["mode"] == "measure" else 0):
                if nvml.calls["nvmlDeviceGetMemoryInfo"] >= sampled + 2:
                    break
                patience.wait(0.01)
            nvml.mask = 0x80 if request["mode"] == "verify" else 0
            answer = scripted(request, *rest)
            answer.pop("timed_ns", None)  # the scripted clock's time is not that of the samples
            return answer

        monkeypatch.setattr(script, "launch", launch)
        result = bench()

    assert nvml.calls["nvmlInit"] == nvml.calls["nvmlShutdown"] == 1
    assert {row["sm_clock_mean_mhz"] for row in result.rows} == {1980}
    assert {row["power_mean_w"] for row in result.rows} == {None}
    assert json.loads((result.folder / "set.json").read_text())["environment"]["nvml"] == {"period_s": 0.1, "unreadable": ["power"]}
    slowed = {row["variant"] for row in result.rows if row["verdict"] == "INVALID"}
    assert slowed == {row["variant"] for row in result.failed_gates} == {"other:fp32"}
    flagged = {(row["variant"], *row["flags"]) for row in result.rows}
    assert flagged == {("eager:fp32", "PIDS_HIDDEN", "SW_POWER_CAP"), ("other:fp32", "PIDS_HIDDEN")}


def test_on_a_cpu_nvml_is_not_touched_and_every_column_of_a_gpu_is_none(bench):
    with fake_nvml.installed() as nvml:
        result = bench()

    assert not nvml.calls
    assert {row[name] for row in result.rows for name in ("gpu_uuid", "driver", *NVML_COLUMNS)} == {None}
    assert {tuple(row["flags"]) for row in result.rows} == {()}
    assert result.description["environment"]["nvml"] is None


def test_a_set_that_goes_on_with_another_driver_refuses_what_it_adds(bench, script, monkeypatch):
    script.fail["measure", "other:fp32"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        bench(plan=dataclasses.replace(PLAN, seed=FIRST_IS_EAGER))
    script.fail.clear()
    real = coordinate.snapshot
    monkeypatch.setattr(coordinate, "snapshot", lambda device: real(device) | {"driver": "590.2"})

    result = bench(plan=dataclasses.replace(PLAN, seed=FIRST_IS_EAGER))

    assert {(row["driver"], row["verdict"], *row["refusals"]) for row in result.rows} == {
        (None, "OK"),
        ("590.2", "INVALID", "DRIVER_DIFFERS"),
    }


def test_what_a_runtime_set_by_itself_is_among_the_options(bench, script):
    script.facts["other:fp32"] = {"settings": {"layout_optimization": False}}

    result = bench()

    assert {tuple(row["options_json"]) for row in result.rows if row["variant"] == "other:fp32"} == {("layout_optimization=false",)}


def test_without_images_parity_is_held_and_rows_say_unverified(bench, script, settings, tmp_path):
    absent = dataclasses.replace(settings, data=f"npz:{tmp_path / 'absent.npz'}")

    result = bench(settings=absent)

    assert result.unverified
    assert {row["verdict"] for row in result.rows} == {"UNVERIFIED"}
    assert {tuple(row["flags"]) for row in result.rows} == {("UNVERIFIED",)}
    assert result.rows[0]["p50_us"] == 100
    assert result.rows[0]["top1"] is None
    assert "absent.npz" in result.rows[0]["reason"]
    assert script.count("parity") == 2


def test_without_images_an_engine_that_fails_parity_is_invalid(bench, script, settings, tmp_path):
    script.noise["other:fp32"] = 5.0

    result = bench(settings=dataclasses.replace(settings, data=f"npz:{tmp_path / 'absent.npz'}"))

    assert [row["variant"] for row in result.failed_gates] == ["other:fp32"]


def test_no_verify_marks_what_is_not_known(bench, script):
    result = bench(verify=False)

    assert {row["verdict"] for row in result.rows} == {"UNVERIFIED"}
    assert script.count("verify") == script.count("parity") == 0


def test_a_bundle_without_classes_or_data_has_parity_only(script, tmp_path):
    bundle = bench_scripted.make_bundle(tmp_path / "boxes", "", labels=())

    result = run_set(bundle, [EAGER], PLAN, "cpu", tmp_path / "out", BenchSettings(), launch=script.launch)

    assert {(row["verdict"], row["metric"], row["top1"]) for row in result.rows} == {("OK", "parity", None)}
    assert not result.unverified


def test_classes_are_matched_by_name(script, bundle, settings, tmp_path):
    data = dict(np.load(settings.data.partition(":")[2]))
    swapped = np.array([1, 0, 3, 2])[data["labels"]]
    np.savez(tmp_path / "swapped.npz", images=data["images"], labels=swapped, classes=np.array(["b", "a", "d", "c"]))

    result = run_set(
        bundle,
        [EAGER],
        PLAN,
        "cpu",
        tmp_path / "out",
        dataclasses.replace(settings, data=f"npz:{tmp_path / 'swapped.npz'}"),
        launch=script.launch,
    )

    assert result.rows[0]["top1"] == 100


def test_gates_hold_for_results_that_were_looked_up(bench, script, settings):
    bench(EAGER)

    stricter = bench(EAGER, settings=dataclasses.replace(settings, min_top1=100.1))

    assert script.count("verify") == 1
    assert stricter.failed_gates
    # The reference has no more than 100 % either: no other export mends that.
    assert {row["remedy"].partition(";")[0] for row in stricter.rows} == {
        "the FP32 model itself is below that: train it further, or give the floor that it must have as --min-top1"
    }


def test_the_interpreter_of_a_runtime_runs_its_workers(bench, script, monkeypatch, settings):
    monkeypatch.setenv("ACCEL_BENCH_PYTHON_OTHER", "/elsewhere/python")
    chosen = dataclasses.replace(settings, python={"eager": "/chosen/python"})

    bench(settings=chosen)

    assert {(variant, python) for _, variant, python in script.launched} == {
        ("eager:fp32", "/chosen/python"),
        ("other:fp32", "/elsewhere/python"),
    }


def test_a_missing_interpreter_is_a_missing_row(bench, script, monkeypatch):
    monkeypatch.setenv("ACCEL_BENCH_PYTHON_OTHER", "/elsewhere/python")
    script.fail["identify", "other:fp32"] = RuntimeUnavailable("the interpreter cannot be started")

    assert [row["verdict"] for row in bench().refused] == ["MISSING"]


def test_one_fallback_is_not_remembered_as_the_variants_accuracy(bench, script, bundle):
    script.facts["other:fp32"] = {"fallback": "no compiler was found"}

    bench()

    assert len(verified.read(bundle.path)) == 1


@pytest.mark.parametrize(("ending", "compress"), [("gz", gzip.compress), ("xz", lzma.compress)])
def test_a_packed_record_reads_as_it_was(tmp_path, ending, compress):
    rows = [result_row(model="m", variant="eager:fp32", latency_kind="host_us", p50_us=1.5, verdict="OK")]
    packed = tmp_path / f"results.jsonl.{ending}"
    packed.write_bytes(compress(to_jsonl(rows).encode()))

    assert read_rows(tmp_path) == read_rows(packed) == rows

    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(CorruptArtifact, match="cannot be unpacked"):
        read_rows(packed)


def test_rows_of_a_newer_schema_and_damaged_lines_are_refused(bench):
    path = bench(EAGER).folder / "results.jsonl"
    good = path.read_text()

    path.write_text(good.replace('"schema_version": 2', '"schema_version": 3'))
    with pytest.raises(CorruptArtifact, match="schema_version 3"):
        read_rows(path)
    path.write_text("{\n" + good)
    with pytest.raises(CorruptArtifact, match="line 1"):
        read_rows(path)
    path.write_text(good.replace('"verdict": "OK"', '"verdict": "GREAT"'))
    with pytest.raises(CorruptArtifact, match="line 1 has the verdict 'GREAT'"):
        read_rows(path)


def test_rows_of_the_first_schema_are_read_with_the_later_builds_called_warm(bench):
    path = bench(EAGER).folder / "results.jsonl"
    later = ("export_s", "load_s", "build_warm_s", "host_mem_peak_mib")
    old = [{name: value for name, value in row.items() if name not in later} | {"schema_version": 1} for row in read_rows(path)]
    path.write_text("".join(json.dumps(row | {"build_s": 2.5 - row["round"]}) + "\n" for row in old))

    found = {(row["round"], row["build_s"], row["build_warm_s"]) for row in read_rows(path)}

    assert found == {(0, 2.5, None), (1, None, 1.5)}
    assert {(row["schema_version"], row["load_s"], row["export_s"], row["host_mem_peak_mib"]) for row in read_rows(path)} == {
        (1, None, None, None)
    }


def test_loading_is_told_from_building_and_the_first_build_from_those_that_find_its_caches(bench, script):
    script.load_us = 1_500_000

    found = {(row["round"], row["load_s"], row["build_s"], row["build_warm_s"]) for row in bench(EAGER).rows}

    assert found == {(0, 1.5, 2.0, None), (1, 1.5, None, 2.0)}


def test_a_runtime_that_does_not_tell_has_its_load_in_the_build(bench, script):
    assert {(row["load_s"], row["build_s"]) for row in bench(EAGER).rows if row["round"] == 0} == {(None, 2.0)}


def test_a_build_that_came_from_a_cache_is_never_called_cold(bench, script):
    script.facts["eager:fp32"] = {"build_cached": True}
    assert {(row["build_s"], row["build_warm_s"]) for row in bench(EAGER).rows} == {(None, 2.0)}


def test_a_plan_that_rebuilds_has_a_cold_build_in_every_round_and_says_so(bench, script):
    script.facts["eager:fp32"] = {"build_cached": False}
    rows = bench(EAGER, plan=dataclasses.replace(PLAN, rebuild=True)).rows

    assert {(row["round"], row["build_s"], row["build_warm_s"]) for row in rows} == {(0, 2.0, None), (1, 2.0, None)}
    assert rows[0]["plan"] == "test plan: warm-up 2, 12 iterations, 2 rounds (to 5 where UNSTABLE), every build cold"


def test_the_memory_of_the_worker_is_on_record(bench, monkeypatch):
    monkeypatch.setattr("accel.bench.environment.peak_resident_mib", lambda: 321.5)
    assert {row["host_mem_peak_mib"] for row in bench(EAGER).rows} == {321.5}


def test_a_row_carries_the_marks_of_its_own_samples(bench, script):
    script.call_us = itertools.cycle([100.0, 100.0, 200.0])

    result = bench(EAGER)

    assert {tuple(row["flags"]) for row in result.rows} == {("COV", "WIDE_IQR")}
    assert {(row["iqr_rel_pct"], row["ci_method"], row["n_outliers"]) for row in result.rows} == {(100.0, "order-statistic", 4)}


def test_a_set_needs_no_scipy(bench, script, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.stats", None)

    result = bench()

    assert script.launched
    assert all(row["p50_lo_us"] is not None for row in result.rows if row["p50_us"] is not None)


def test_a_set_keeps_its_self_check_and_makes_it_once(bench, monkeypatch):
    made = []
    real = checking.simulated
    monkeypatch.setattr(checking, "simulated", lambda: (made.append(1), real())[1])

    result = bench()

    assert result.description["self_check"]["passed"] is True
    assert len(result.description["self_check"]["checks"]) == 7
    # The simulated floors are no machine's.
    assert {row["launch_floor_us"] for row in result.rows} == {None}
    assert len(made) == 1


def test_a_failed_self_check_refuses_the_set(bench, script, monkeypatch):
    found = checking.simulated()
    bad = dataclasses.replace(found.checks[0], passed=False, said="R² 0.98, at least 0.9999")
    monkeypatch.setattr(checking, "simulated", lambda: dataclasses.replace(found, checks=(bad, *found.checks[1:])))

    result = bench()

    assert script.count("measure") == 0
    assert {(row["variant"], row["verdict"], row["exit_code"]) for row in result.rows} == {
        ("eager:fp32", "INVALID", 3),
        ("other:fp32", "INVALID", 3),
    }
    assert result.rows[0]["refusals"] == ["SELF_CHECK"]
    assert "R² 0.98, at least 0.9999" in result.rows[0]["reason"]


def test_a_self_check_that_cannot_be_made_is_said_and_refuses_nothing(bench, monkeypatch):
    def absent():
        raise MissingExtra("torch", "train")

    monkeypatch.setattr(checking, "simulated", absent)

    result = bench()

    assert (result.description["self_check"]["passed"], result.description["self_check"]["not_run"]) == (None, "torch is not installed")
    assert {row["verdict"] for row in result.rows} == {"OK"}
