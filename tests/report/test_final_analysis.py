"""The analysis that is written by hand under a final table says what the sets of that table say."""

from __future__ import annotations

import importlib
import re
import statistics
from pathlib import Path

import pytest

from accel import trainers
from accel.report import final
from accel.report.final_table import FRACTION_MODELS
from accel.report.sections import HOST, Section, open_sections
from accel.report.trained import find

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "results" / "h200" / "table.md"
CLOSE = "<!-- /accel:results -->"
RESTS_ON = re.compile(r"^\| `([\w]+)` \| `([^`]+)` \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| `(\w+)` \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def table() -> str:
    return TABLE.read_text(encoding="utf-8").partition(CLOSE)[0]


@pytest.fixture(scope="module")
def analysis() -> str:
    return TABLE.read_text(encoding="utf-8").partition(CLOSE)[2]


@pytest.fixture(scope="module")
def sets() -> dict[tuple[str, str], Section]:
    """Model and when it was begun → set, of all that the table is made of."""
    found = [open_sections([path.parent])[0] for path in TABLE.parent.glob("*/results.jsonl*")]
    return {(section.model, section.name.rpartition("-")[2]): section for section in found}


def median(section: Section, variant: str, kind: str = HOST) -> float:
    return section.by_variant[variant].latency[kind].p50_us or 0


def digits(value: float) -> str:
    """As the tables write it: a decimal below 1000 µs."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def test_every_figure_that_it_rests_on_is_that_of_its_set(analysis: str, sets: dict[tuple[str, str], Section]) -> None:
    found = RESTS_ON.findall(analysis)
    assert len(found) == 58 == analysis.count("\n| `")
    for model, variant, host, device, top1, begun in found:
        section = sets[model, begun]
        line = section.by_variant[variant]
        assert line.verdict == "OK"
        wanted = digits(median(section, variant)), digits(median(section, variant, "device_us")), f"{line.top1:.2f}"
        assert (host, device, top1) == wanted, (model, variant)


def test_what_it_says_of_all_sets_holds(analysis: str, sets: dict[tuple[str, str], Section]) -> None:
    timed = {(*key, line.variant): line for key, section in sets.items() for line in section.by_variant.values() if line.latency}
    assert [key for key, line in timed.items() if line.verdict != "OK"] == [("resnet18", "20261130T083345Z", "tensorrt:fp16")]
    refused = [row for row in sets["resnet18", "20261130T083345Z"].rows if row["refusals"]]
    assert {(row["variant"], row["round"], *row["refusals"]) for row in refused} == {("tensorrt:fp16", 2, "FOREIGN_STREAM")}
    assert "of 10,000 predictions at most 7 changed" in analysis
    assert max(line.n_flips or 0 for line in timed.values()) == 7
    assert {row["n_test"] for section in sets.values() for row in section.rows if row["n_flips"] is not None} == {10_000}
    both = [section for section in sets.values() if {"eager:fp16", "eager:fp32"} <= section.by_variant.keys()]
    for section in both:  # FP16 alone: no shorter call, though mostly less to do
        assert median(section, "eager:fp16") > median(section, "eager:fp32")
        less = median(section, "eager:fp16", "device_us") / median(section, "eager:fp32", "device_us")
        assert less < 0.7 or (section.model == "mobilenetv3_small" and less == pytest.approx(1.03, abs=0.045))
    assert {section.model for section in both} == {"resnet18", "mobilenetv3_small", "student_a", "student_b", "student_c"}
    for half, gives in ((True, False), (False, True)):  # NHWC costs ResNet-18 in FP16 and gives a tenth in FP32
        name = f"onnxruntime:fp{16 if half else 32}+graph"
        both_ways = [section for section in sets.values() if section.model == "resnet18" and f"{name}+nhwc" in section.by_variant]
        assert both_ways
        ratios = [median(section, f"{name}+nhwc") / median(section, name) for section in both_ways]
        assert all(0.88 < ratio < 0.92 if gives else ratio > 1.5 for ratio in ratios)


def test_what_it_says_of_the_newest_sets_holds(table: str, analysis: str, sets: dict[tuple[str, str], Section]) -> None:
    analysis = analysis.replace("\n", " ")
    newest = {model: section for (model, begun), section in sets.items() if begun.startswith("20261130T08")}
    assert len(newest) == 10
    others = [
        section for section in newest.values() if "tensorrt:fp16" in section.by_variant and "fused:fp16+grid" not in section.by_variant
    ]
    assert len(others) == 6
    for section in others:
        assert min(section.by_variant, key=lambda variant, of=section: median(of, variant)) == "tensorrt:fp16"
    faster = [float(ratio) for ratio in re.findall(r"`tensorrt:fp16` .* FASTER: ([\d.]+) ", table)]
    assert len(faster) == 6
    assert f"in {min(faster)} to {max(faster)} of the time of FP32" in analysis
    of_the_teacher = [float(ratio) for ratio in re.findall(r"^\| D1 .* AMBIGUOUS: ([\d.]+) .* of `resnet18`", table, re.MULTILINE)]
    assert len(of_the_teacher) == 3
    assert f"medians of D1 are {min(of_the_teacher):.2f} to {max(of_the_teacher):.2f} of the teacher's" in analysis
    slower = [
        median(section, "aoti:fp16+graph") / median(section, "tensorrt:fp16")
        for section in others
        if "aoti:fp16+graph" in section.by_variant
    ]
    assert f"takes {min(slower):.2f} to {max(slower):.2f} times as long as that" in analysis
    student, teacher = newest["student_c"], newest["resnet18"]
    grid = "fused:fp16+grid"
    times, points = (
        median(student, grid) / median(teacher, grid),
        (teacher.by_variant[grid].top1 or 0) - (student.by_variant[grid].top1 or 0),
    )
    assert f"within {points:.2f} points, in {times:.2f} of its time" in analysis
    small = newest["mobilenetv3_small"]
    assert 1.2 < median(small, "eager:fp32+channels_last", "device_us") / median(small, "eager:fp32", "device_us") < 1.3
    assert median(small, "eager:fp32+channels_last") > median(small, "eager:fp32")
    spreads = {line.variant: [] for section in newest.values() for line in section.by_variant.values()}
    for section in newest.values():
        for line in section.by_variant.values():
            spreads[line.variant].append(line.latency[HOST].spread or 0)
    eager = [spread for variant, found in spreads.items() if variant.startswith("eager") for spread in found]
    steady = [spread for variant, found in spreads.items() if not variant.startswith(("eager", "compile")) for spread in found]
    assert f"by up to a factor of {max(eager):.2f}" in analysis
    assert 1.12 < max(steady) < 1.13
    grid_line = newest["student_b"].by_variant[grid]
    assert grid_line.latency[HOST].spread == pytest.approx(1.12, abs=0.005)


def test_the_chosen_engine_is_the_tables(table: str, analysis: str, sets: dict[tuple[str, str], Section]) -> None:
    (chosen,) = re.findall(r"^\*\*Chosen: `(\w+)` through `([^`]+)`\.\*\*", analysis, re.MULTILINE)
    shipped_and_trained = [ROOT / "accel" / "trainers" / "weights", TABLE.parent / "training"]
    rows = final.rows(list(sets.values()), find(shipped_and_trained))
    candidates = [(row.role.model, row.variant) for row in final.candidates(rows)]
    assert candidates == [chosen, ("student_c", "fused:fp16+grid"), ("resnet18", "fused:fp16+grid")]
    assert f"chosen, the smallest mean of all that are kept: best (`{chosen[0]}` `{chosen[1]}`)" in table
    best = final.candidates(rows)[0].line
    assert best is not None
    assert best.n_flips == 0
    decisions = {(row.role.label, row.role.model): row.decision for row in rows if row.role.label not in ("best", "B1", "B2")}
    assert len(decisions) == 6
    assert set(decisions.values()) == {final.REFINE}
    smallest = min((row for row in rows if row.line), key=lambda row: row.line.latency[HOST].p50_us or 0 if row.line else 0)
    assert (smallest.role.model, smallest.variant, smallest.decision) == ("student_a", "fused:fp16+grid", final.REFINE)
    assert "not measured |" not in table.partition("| trained model |")[0]


def test_what_it_says_of_the_trainings_holds(analysis: str) -> None:
    pytest.importorskip("torch")
    said = next(paragraph for paragraph in analysis.split("\n\n") if paragraph.startswith("**Trained.**"))
    found = find([ROOT / "accel" / "trainers" / "weights", TABLE.parent / "training", ROOT / "results" / "h100" / "training"])
    whole = [item for item in found if item.tested and item.fraction == 1]
    pooled = {"student_c": "NVIDIA H200", "resnet18": "NVIDIA H200", "student_a": "", "student_b": ""}
    for model, (wanted, millions) in {
        "student_c": ("95.50 %", 4.4),
        "resnet18": ("95.62 %", 11.2),
        "student_b": ("94.84 %", 2.1),
        "student_a": ("92.92 %", 0.99),
    }.items():
        own = [item for item in whole if item.model == model and item.device.startswith(pooled[model])]
        assert sorted(item.seed for item in own) == [0, 1, 2]
        assert f"{statistics.fmean(item.top1 or 0 for item in own):.2f} %" == wanted
        location, _, _ = trainers.MODELS[model].partition(":")
        module = importlib.import_module(location)
        weights = sum(weight.numel() for weight in getattr(module, "build_deployed", module.build)().parameters())
        assert weights / 1e6 == pytest.approx(millions, rel=0.03)
        assert f"{wanted} with {millions:g} M" in said
    assert not [item for item in found if item.model.startswith("student") and not item.teachers]
    here = [item for item in found if item.tested and item.seed == 0 and item.device == "NVIDIA H200"]
    shares = {(item.model, item.fraction): item.top1 or 0 for item in here}
    models = sorted({model for model, fraction in shares if fraction < 1})
    assert models == sorted(FRACTION_MODELS)
    for fraction, missing in ((0.5, "2.13 to 3.25 points"), (0.25, "6.19 to 9.96")):
        lost = [shares[model, 1.0] - shares[model, fraction] for model in models]
        assert f"{min(lost):.2f} to {max(lost):.2f}" in missing
        assert missing in said
    assert 65 < max(shares[model, 0.1] for model in models) < 68
