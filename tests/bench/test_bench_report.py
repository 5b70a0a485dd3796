from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from accel.bench.columns import LATENCY_KINDS
from accel.bench.flags import FLAGS
from accel.bench.report import fitting, header, remarks, render, rows_csv, summary
from accel.bench.results import ResultSet, row, write_samples
from accel.bench.stats import summarise
from accel.errors import UnknownName

MACHINE = {
    "cpu_model": "Some CPU",
    "kernel": "6.1",
    "python": "3.11.9",
    "versions_json": {"torch": "2.15.0", "onnxruntime": "1.31.1"},
    "plan": "CPU quick plan: warm-up 20, 200 iterations, 3 rounds",
    "command": "accel bench resnet18",
    "set_id": "s",
    "model": "resnet18",
    "device": "cpu",
    "metric": "top1",
    "size_mb": 44.7,
    "params": 11_173_962,
    "flags": [],
    "exit_code": 0,
}


def result_set(tmp_path, variants: dict[str, dict], samples: int = 250) -> ResultSet:
    """Three rounds of `host_us` around `us` for every variant that has it; round r is r percent slower."""
    rows, raw = [], {}
    for name, given in variants.items():
        values = {"verdict": "OK", "top1": 95.2, "top1_reference": 95.22, "n_flips": 3, "mcnemar_p": 0.625, **given}
        kinds = {kind: values.pop(kind) for kind in LATENCY_KINDS if kind in values}
        common = {**MACHINE, "variant": name, "runtime": name.partition(":")[0], **values}
        if not kinds:
            rows.append(row(**common))
        for number in range(3):
            for kind, us in kinds.items():
                key = f"{name}/s/r{number}/{kind}"
                raw[key] = np.linspace(us * 900, us * 1100, samples).astype(np.int64) * (100 + number) // 100
                statistics = vars(summarise(raw[key]))
                built = {"build_warm_s" if number else "build_s": 4.0 - number}
                place = {"latency_kind": kind, "round": number, "raw_path": f"samples.npz#{key}"}
                place["launch_floor_us"] = FLOORS.get(kind) if common["device"] != "cpu" else None
                rows.append(row(**{**built, **common, **statistics, **place}))
    write_samples(tmp_path / "samples.npz", raw)
    return ResultSet(tmp_path, {}, rows)


FLOORS = {"host_us": 6.14, "device_us": 1.92}
"""The launch floors of a machine with a GPU."""

CPU = {
    "eager:fp32": {"host_us": 5000, "e2e_us": 5100, "n_flips": 0, "mcnemar_p": 1.0, "top1": 95.22},
    "compile:fp32": {"host_us": 3000, "e2e_us": 3100},
    "onnxruntime:fp16": {
        "verdict": "REFUSED",
        "top1": None,
        "reason": "no FP16 kernels on this CPU",
        "remedy": "use a GPU",
        "exit_code": 4,
    },
    "torchscript:fp32": {"host_us": 800, "verdict": "FALLBACK", "reason": "no compiler was found", "remedy": "apt install gcc"},
}


@pytest.fixture
def cpu(tmp_path):
    return [result_set(tmp_path, CPU)]


def test_a_line_pools_its_rounds_and_keeps_their_spread(cpu):
    line = next(line for line in summary(cpu) if line.variant == "eager:fp32")
    host = line.latency["host_us"]

    assert (host.n, host.pooled, line.rounds) == (750, True, 3)
    assert host.spread == pytest.approx(1.02, abs=1e-3)
    assert host.p50_us == pytest.approx(5050, rel=2e-3)
    assert host.p99_us is not None  # 750 samples over the rounds, 250 in each
    assert (line.build_min_s, line.build_s, line.build_warm_s) == (4.0, 4.0, 3.0)


def test_without_raw_samples_the_median_of_the_rounds_is_shown(cpu):
    (cpu[0].folder / "samples.npz").unlink()

    host = next(line for line in summary(cpu) if line.variant == "eager:fp32").latency["host_us"]

    assert (host.pooled, host.p99_us) == (False, None)
    assert host.p50_us == pytest.approx(5050, rel=2e-3)


def test_ok_lines_come_first_fastest_on_top(cpu):
    assert [line.variant for line in summary(cpu)] == ["compile:fp32", "eager:fp32", "torchscript:fp32", "onnxruntime:fp16"]


def test_the_worst_verdict_of_the_runs_is_the_variants(tmp_path):
    results = result_set(tmp_path, {"eager:fp32": {"host_us": 100}})
    results.rows[-1] |= {"verdict": "ERROR", "reason": "the worker was killed by SIGKILL"}

    assert summary([results])[0].verdict == "ERROR"


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_table_fits_the_terminal(cpu, width):
    printed = render(cpu, "table", width=width)

    assert max(map(len, printed.splitlines())) <= width
    assert "…" not in printed
    for name in ("compile:fp32", "REFUSED", "p50", "5049"):
        assert name in printed


def test_120_columns_hold_what_matters(cpu):
    printed = "\n".join(render(cpu, "table", width=120).splitlines()[:8])

    for name in ("top-1", "Δ", "flips", "host", "mean", "p50", "p95", "p99", "spread", "e2e", "MB", "build", "verdict"):
        assert name in printed.split()
    assert "device" not in printed.split()


def test_a_column_that_does_not_fit_is_named(cpu):
    printed = render(cpu, "table", width=80)

    assert "left out to fit 80 columns: warm build s, e2e p99, host std, host max, host min" in printed
    assert "device p50" not in printed


def test_beside_a_gpu_the_device_has_its_column(tmp_path):
    results = [result_set(tmp_path, {"eager:fp32": {"host_us": 500, "device_us": 400, "e2e_us": 600}})]

    shown, _ = fitting(summary(results), 200)

    assert "device p50" in [name for name, _ in shown]


GPU = {
    "eager:fp32": {"host_us": 500, "device_us": 400, "e2e_us": 600, "device": "cuda:0"},
    "tensorrt:fp16": {"host_us": 61, "device_us": 12, "e2e_us": 90, "device": "cuda:0"},
}


def test_a_table_names_the_launch_floor_and_each_line_its_multiple(tmp_path):
    results = [result_set(tmp_path, GPU)]

    assert "launch floor: one-node CUDA graph, host 6.1 µs, device 1.9 µs" in header(results)
    shown, _ = fitting(summary(results), 1000)
    cells = {line.variant: {name: cell(line) for name, cell in shown} for line in summary(results)}
    # 1.01 times the length asked for, over the floor: 61 * 1.01 / 6.14.
    assert {name: (found["host × floor"], found["device × floor"]) for name, found in cells.items()} == {
        "tensorrt:fp16": ("10.0", "6.31"),
        "eager:fp32": ("82.2", "210.4"),
    }
    (first, _) = json.loads(render(results, "json"))["lines"]
    assert (first["host_launch_floor_us"], first["device_launch_floor_us"], first["e2e_launch_floor_us"]) == (6.14, 1.92, None)
    assert first["host_times_floor"] == pytest.approx(first["host_p50_us"] / 6.14)
    assert {"host_times_floor", "device_times_floor"} <= next(csv.DictReader(io.StringIO(render(results, "csv")))).keys()
    for format in ("table", "markdown"):
        printed = " ".join(render(results, format, width=300).split())
        assert "launch floor: one-node CUDA graph, host 6.1 µs, device 1.9 µs" in printed
        assert "82.2" in printed


def test_without_a_floor_neither_line_nor_column_is_there(cpu):
    assert not [line for line in header(cpu) if "floor" in line]
    assert not [name for name, _ in fitting(summary(cpu), 1000)[0] if "floor" in name]


def test_several_cold_builds_are_shown_from_the_quickest_to_the_slowest(tmp_path):
    results = result_set(tmp_path, {"compile:fp32": {"host_us": 500}})
    assert dict(fitting(summary([results]), 1000)[0])["build s"](summary([results])[0]) == "4.0"
    for item in results.rows:
        item["build_s"], item["build_warm_s"] = 9.5 + item["round"], None

    (line,) = summary([results])

    assert {name: cell(line) for name, cell in fitting([line], 1000)[0] if "build" in name} == {"build s": "9.5–11.5"}


def test_the_header_names_machine_versions_plan_and_command(cpu):
    assert header(cpu) == [
        "machine: Some CPU, Linux 6.1",
        "versions: Python 3.11.9, onnxruntime 1.31.1, torch 2.15.0",
        "plan: CPU quick plan: warm-up 20, 200 iterations, 3 rounds",
        "command: accel bench resnet18",
    ]
    for format in ("table", "markdown"):
        assert all(line in " ".join(render(cpu, format, width=200).split()) for line in header(cpu))


def test_lines_that_are_not_ok_say_why_and_what_mends_them(cpu):
    assert remarks(summary(cpu)) == [
        "torchscript:fp32 FALLBACK: no compiler was found; to mend it: apt install gcc",
        "onnxruntime:fp16 REFUSED: no FP16 kernels on this CPU; to mend it: use a GPU",
    ]


def test_a_blocked_enqueue_is_explained(tmp_path):
    results = [result_set(tmp_path, {"eager:fp32": {"host_us": 500, "flags": ["ENQUEUE_BLOCKED"]}})]

    assert "device_us cannot be gated" in " ".join(render(results).split())


def test_every_flag_is_explained_with_its_remedy_and_marks_the_verdict(tmp_path):
    names = sorted(FLAGS.keys() - {"UNVERIFIED"})
    results = [result_set(tmp_path, {"eager:fp32": {"host_us": 500, "flags": names}})]

    said = remarks(summary(results))

    assert said == [f"eager:fp32 {name}: {FLAGS[name].meaning}; to mend it: {FLAGS[name].remedy}" for name in names]
    assert "OK*" in render(results)


def test_a_flag_of_everything_that_was_measured_is_said_once(tmp_path):
    three = {name: {"host_us": 500, "flags": ["DRIFT"]} for name in ("eager:fp32", "compile:fp32", "onnxruntime:fp32")}
    said = remarks(summary([result_set(tmp_path / "all", three)]))
    assert [text.partition(":")[0] for text in said] == ["all measured DRIFT"]

    said = remarks(summary([result_set(tmp_path / "two", three | {"onnxruntime:fp32": {"host_us": 500}})]))
    assert said[0].startswith("eager:fp32 DRIFT, compile:fp32 DRIFT: the last third")


def test_the_flag_of_a_verdict_is_not_said_twice(tmp_path):
    values = {"host_us": 500, "verdict": "UNVERIFIED", "flags": ["UNVERIFIED"], "reason": "no data", "remedy": "name some"}
    results = [result_set(tmp_path, {"eager:fp32": values})]

    assert remarks(summary(results)) == ["eager:fp32 UNVERIFIED: no data; to mend it: name some"]
    assert "UNVERIFIED*" not in render(results)


def test_a_variant_that_ran_at_a_lower_clock_than_another_is_flagged(tmp_path):
    clocks = {"eager:fp32": 1980.0, "compile:fp32": 1941.0, "onnxruntime:fp32": 1900.0, "torchscript:fp32": None}
    results = [result_set(tmp_path, {name: {"host_us": 500, "sm_clock_mean_mhz": mhz} for name, mhz in clocks.items()})]

    assert {line.variant: line.flags for line in summary(results) if line.flags} == {"onnxruntime:fp32": ("CLOCKS_DIFFER",)}


def test_models_on_clocks_of_their_own_are_not_compared(tmp_path):
    first = result_set(tmp_path, {"eager:fp32": {"host_us": 500, "sm_clock_mean_mhz": 1980.0}})
    (tmp_path / "b").mkdir()
    second = result_set(tmp_path / "b", {"eager:fp32": {"host_us": 500, "sm_clock_mean_mhz": 900.0, "model": "other"}})

    assert not any(line.flags for line in summary([first, second]))


@pytest.mark.parametrize("verdict", ["OK", "INVALID"])
def test_an_invalid_round_takes_the_variant_out_of_the_ranking(tmp_path, verdict):
    results = result_set(tmp_path, {"eager:fp32": {"host_us": 100}, "compile:fp32": {"host_us": 300}})
    results.rows[0] |= {"verdict": verdict, "refusals": [] if verdict == "OK" else ["HW_SLOWDOWN"]}

    (first, *_) = summary([results])

    assert first.variant == ("eager:fp32" if verdict == "OK" else "compile:fp32")


def test_too_few_samples_for_a_tail_are_said(tmp_path):
    printed = render([result_set(tmp_path, {"eager:fp32": {"host_us": 500}}, samples=50)])

    assert "n<662" in printed
    assert "n<130" not in printed
    assert " ".join(printed.split()).count("n<662 = insufficient n for a p99.") == 1


@pytest.mark.parametrize(("samples", "lacking"), [(221, []), (220, [99]), (43, [95, 99])])
def test_p99_under_662_samples_over_all_rounds_is_insufficient_and_p95_under_130(tmp_path, samples, lacking):
    results = [result_set(tmp_path, {"eager:fp32": {"host_us": 500}}, samples=samples)]
    cells = {name: cell(summary(results)[0]) for name, cell in fitting(summary(results), 1000)[0]}

    least = {95: "n<130", 99: "n<662"}
    assert [percent for percent in least if cells[f"host p{percent}"] == least[percent]] == lacking
    for format in ("table", "markdown"):
        printed = " ".join(render(results, format, width=300).split())
        assert [percent for percent in least if f"{least[percent]} = insufficient n for a p{percent}." in printed] == lacking


def test_what_a_paced_service_sees_has_its_column(tmp_path):
    results = [result_set(tmp_path, {"eager:fp32": {"host_us": 500, "paced_us": 740}, "compile:fp32": {"host_us": 600}})]

    shown = dict(fitting(summary(results), 1000)[0])

    assert [shown["paced p50"](line) for line in summary(results)] == ["747.2", None]
    assert [line["paced_p50_us"] for line in json.loads(render(results, "json"))["lines"]] == [pytest.approx(747.2, abs=0.05), None]


def test_events_are_published_raw_and_corrected_by_their_floor(tmp_path):
    results = [result_set(tmp_path, GPU)]
    for item in results[0].rows:
        item["event_floor_us"] = 1.5 if item["latency_kind"] == "device_us" else None

    (first, _) = json.loads(render(results, "json"))["lines"]

    assert (first["device_p50_us"], first["device_p50_corrected_us"]) == (pytest.approx(12.12, abs=0.01), first["device_p50_us"] - 1.5)
    assert (first["host_p50_corrected_us"], first["e2e_p50_corrected_us"]) == (None, None)
    assert dict(fitting(summary(results), 1000)[0])["device p50 corrected"](summary(results)[0]) == "10.6"


def test_preprocessing_and_diagnostics_are_numbers_of_their_own(tmp_path):
    given = {"host_us": 500, "span_us": 480, "enqueue_us": 90, "replay_us": 400, "preprocess_us": 12.5}
    results = [result_set(tmp_path, {"eager:fp32": given})]

    assert dict(fitting(summary(results), 1000)[0])["preprocess"](summary(results)[0]) == "12.5"
    (line,) = json.loads(render(results, "json"))["lines"]
    assert line["preprocess_us"] == 12.5
    assert [line[f"{kind}_p50_us"] for kind in ("span", "enqueue", "replay")] == pytest.approx([484.8, 90.9, 404], abs=0.2)
    assert "span_p95_us" not in line


def test_json_and_csv_carry_every_number(cpu):
    (first, *_) = json.loads(render(cpu, "json"))["lines"]
    table = list(csv.DictReader(io.StringIO(render(cpu, "csv"))))

    assert (first["variant"], first["host_n"], first["device_p50_us"]) == ("compile:fp32", 750, None)
    assert {"host_mean_us", "host_std_us", "host_p50_us", "host_p95_us", "host_p99_us", "host_min_us", "host_max_us"} <= first.keys()
    assert [item["verdict"] for item in table] == ["OK", "OK", "FALLBACK", "REFUSED"]


def test_markdown_is_a_table_of_markdown(cpu):
    printed = render(cpu, "markdown").splitlines()

    assert printed[0] == "**resnet18 on cpu, 11.17 M parameters**"
    assert printed[2].startswith("| variant | top-1 % | Δ | flips | p | host mean |")
    assert len({line.count("|") for line in printed[2:7]}) == 1


def test_two_models_are_two_tables(tmp_path):
    first = result_set(tmp_path, {"eager:fp32": {"host_us": 500}})
    (tmp_path / "b").mkdir()
    second = result_set(tmp_path / "b", {"eager:fp32": {"host_us": 300, "model": "mobilenetv3_small"}})

    printed = render([first, second])

    assert printed.index("resnet18 on cpu") < printed.index("mobilenetv3_small on cpu")


def test_a_model_that_is_no_classifier_has_no_top1(tmp_path):
    values = {"host_us": 500, "metric": "parity", "top1": None, "top1_reference": None, "n_flips": None, "mcnemar_p": None}

    assert "n/a" in render([result_set(tmp_path, {"eager:fp32": values})])


def test_the_exported_csv_has_every_row(cpu):
    assert len(rows_csv(cpu).splitlines()) == 1 + len(cpu[0].rows)


def test_an_unknown_format_is_refused(cpu):
    with pytest.raises(UnknownName, match="yaml"):
        render(cpu, "yaml")
