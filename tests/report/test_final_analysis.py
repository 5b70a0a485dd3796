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
    assert len(found) == 74 == analysis.count("\n| `")
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
    others = [section for (_, begun), section in sets.items() if begun in ("20261130T083011Z", "20261130T083727Z")]
    assert len(others) == 6
    for section in others:
        assert min(section.by_variant, key=lambda variant, of=section: median(of, variant)) == "tensorrt:fp16"
    faster = [float(ratio) for ratio in re.findall(r"`tensorrt:fp16` .* FASTER: ([\d.]+) ", table)]
    assert len(faster) == 6
    assert f"in {min(faster)} to {max(faster)} of the time of FP32" in analysis
    slower = [
        median(section, "aoti:fp16+graph") / median(section, "tensorrt:fp16")
        for section in others
        if "aoti:fp16+graph" in section.by_variant
    ]
    assert f"takes {min(slower):.2f} to {max(slower):.2f} times as long as that" in analysis
    of_the_teacher = [float(ratio) for ratio in re.findall(r"^\| D1 .* FASTER: ([\d.]+) .* of `resnet18`", table, re.MULTILINE)]
    assert len(of_the_teacher) == 3
    assert f"in {min(of_the_teacher):.2f} to {max(of_the_teacher):.2f} of the time of their teacher's FP32" in analysis
    newest = {model: section for (model, begun), section in sets.items() if begun.startswith("20261130T12")}
    assert len(newest) == 5
    student, teacher = newest["student_c"], newest["resnet18"]
    grid = "fused:fp16+grid"
    assert f"({student.by_variant[grid].top1:.2f} % and {teacher.by_variant[grid].top1:.2f} %)" in analysis
    assert f"in {median(student, grid) / median(teacher, grid):.2f} of its time through the same engine" in analysis
    for engine, said in ((grid, "it needs {} µs of GPU time"), ("tensorrt:fp16", "TensorRT 8.6 needs {} beside it")):
        assert said.format(digits(median(student, engine, "device_us"))) in analysis
    small = newest["mobilenetv3_small"]
    assert 1.2 < median(small, "eager:fp32+channels_last", "device_us") / median(small, "eager:fp32", "device_us") < 1.3
    assert median(small, "eager:fp32+channels_last") > median(small, "eager:fp32")
    (half,) = re.findall(r"^\| O2 .* FASTER: ([\d.]+) .* of `eager:fp16`", table, re.MULTILINE)
    assert f"(O2) is kept too: {float(half):.2f} of FP16 in eager mode" in analysis
    still = [float(ratio) for ratio in re.findall(r"^\| O[13] .* AMBIGUOUS: ([\d.]+) .* of `eager:fp32`", table, re.MULTILINE)]
    assert len(still) == 2
    assert f"with medians of {still[0]:.2f} and {still[1]:.2f} of FP32 beside them" in analysis
    recent = [*newest.values(), *others]
    eager = [spread for section in recent for variant, spread in spreads(section).items() if variant.startswith("eager")]
    steady = [spread for section in recent for variant, spread in spreads(section).items() if not variant.startswith(("eager", "compile"))]
    assert f"by up to a factor of {max(eager):.2f}" in analysis
    assert f"repeat within {100 * (max(steady) - 1):.0f} %" in analysis
    assert spreads(newest["student_a"])[grid] == max(steady)
    assert spreads(newest["student_a"], "device_us")[grid] == pytest.approx(1.01, abs=0.002)
    assert len({(row["run_id"], row["variant"]) for section in newest.values() for row in section.rows}) == 109
    assert not [row for section in newest.values() for row in section.rows if row["refusals"]]


def spreads(section: Section, kind: str = HOST) -> dict[str, float]:
    return {line.variant: line.latency[kind].spread or 0 for line in section.by_variant.values()}


def test_what_it_says_of_the_repeated_session_holds(analysis: str, sets: dict[tuple[str, str], Section]) -> None:
    said = next(paragraph for paragraph in analysis.split("\n\n") if paragraph.startswith("**Repeated.**")).replace("\n", " ")
    apart: dict[str, list[float]] = {"fused": [], "tensorrt": [], "eager": []}
    for model in ("resnet18", "student_a", "student_b", "student_c"):
        first, again = sets[model, "20261130T083345Z"], sets[model, "20261130T120408Z"]
        assert first.rows[0]["gpu_uuid"] != again.rows[0]["gpu_uuid"]
        assert first.by_variant.keys() == again.by_variant.keys()
        for variant in first.by_variant:
            apart[variant.partition(":")[0]].append(abs(median(again, variant) / median(first, variant) - 1))
        grid = "fused:fp16+grid"
        assert abs(median(again, grid, "device_us") / median(first, grid, "device_us") - 1) < 0.006
        for section in (first, again):
            assert digits(median(section, grid)) in said
    assert f"within {100 * max(apart['fused']):.1f} %" in said
    assert f"up to {100 * max(apart['tensorrt']):.0f} % apart, and eager mode up to {100 * max(apart['eager']):.0f} %" in said


def test_the_chosen_engine_is_the_tables(table: str, analysis: str, sets: dict[tuple[str, str], Section]) -> None:
    (chosen,) = re.findall(r"^\*\*Chosen: `(\w+)` through `([^`]+)`\.\*\*", analysis, re.MULTILINE)
    shipped_and_trained = [ROOT / "accel" / "trainers" / "weights", TABLE.parent / "training"]
    rows = final.rows(list(sets.values()), find(shipped_and_trained))
    candidates = [(row.role.model, row.variant) for row in final.candidates(rows)]
    assert chosen == ("student_a", "fused:fp16+grid")
    assert candidates == [chosen, ("student_b", "fused:fp16+grid"), ("student_c", "fused:fp16+grid")]
    assert f"chosen, the smallest mean of all that are kept: best (`{chosen[0]}` `{chosen[1]}`)" in table
    best = final.candidates(rows)[0].line
    assert best is not None
    assert best.n_flips == 1
    assert "one of its predictions differs" in analysis
    for row in final.candidates(rows):
        assert row.line is not None
        assert f"{row.line.top1:.2f} %" in analysis
        assert f"{row.line.latency[HOST].mean_us:.1f}" in analysis.partition("**Chosen")[2]
    decisions = {(row.role.label, row.role.model): row.decision for row in rows if row.role.label not in ("best", "B1", "B2")}
    assert len(decisions) == 6
    assert {role for role, decision in decisions.items() if decision != final.KEEP} == {
        ("O1", "mobilenetv3_small"),
        ("O3", "mobilenetv3_small"),
    }
    assert {decisions[role] for role in (("O1", "mobilenetv3_small"), ("O3", "mobilenetv3_small"))} == {final.REFINE}
    assert min(row.line.rounds for row in rows if row.line) == 3  # the issue asks for three runs of each, with their spread
    assert all(row.line for row in rows)
    assert "not measured |" not in table.partition("| trained model |")[0]


def test_what_it_says_of_the_trainings_holds(analysis: str) -> None:
    pytest.importorskip("torch")
    said = next(paragraph for paragraph in analysis.split("\n\n") if paragraph.startswith("**Trained.**"))
    found = find([ROOT / "accel" / "trainers" / "weights", TABLE.parent / "training", ROOT / "results" / "h100" / "training"])
    whole = [item for item in found if item.tested and item.fraction == 1]
    pooled = {"student_c": "NVIDIA H200", "resnet18": "NVIDIA H200", "student_a": "", "student_b": ""}
    for model, (wanted, millions) in {
        "student_c": ("95.56 %", 4.4),
        "resnet18": ("95.65 %", 11.2),
        "student_b": ("94.84 %", 2.1),
        "student_a": ("92.92 %", 0.99),
    }.items():
        own = [item for item in whole if item.model == model and item.device.startswith(pooled[model])]
        assert sorted(item.seed for item in own) == list(range({"resnet18": 5, "student_c": 4}.get(model, 3)))
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
