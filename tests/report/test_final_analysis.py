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
def sets() -> dict[str, Section]:
    """When it was begun → set, of all that the table is made of."""
    folders = [path.parent for path in TABLE.parent.glob("*/results.jsonl*")]
    return {path.name.rpartition("-")[2]: open_sections([path])[0] for path in folders}


def digits(value: float) -> str:
    """As the tables write it: a decimal below 1000 µs."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def test_every_figure_that_it_rests_on_is_that_of_its_set(analysis: str, sets: dict[str, Section]) -> None:
    found = RESTS_ON.findall(analysis)
    assert len(found) == 26 == analysis.count("\n| `")
    for model, variant, host, device, top1, begun in found:
        line = sets[begun].by_variant[variant]
        latency = line.latency
        assert (sets[begun].model, line.verdict) == (model, "OK")
        wanted = digits(latency[HOST].p50_us or 0), digits(latency["device_us"].p50_us or 0), f"{line.top1:.2f}"
        assert (host, device, top1) == wanted, (model, variant)


def test_what_it_says_in_words_holds(analysis: str, sets: dict[str, Section]) -> None:
    timed = [line for section in sets.values() for line in section.by_variant.values() if line.latency]
    assert {line.verdict for line in timed} == {"OK"}
    assert "of 10,000 predictions at most 7 changed" in analysis
    assert max(line.n_flips or 0 for line in timed) == 7
    assert {row["n_test"] for section in sets.values() for row in section.rows if row["n_flips"] is not None} == {10_000}
    both = [section.by_variant for section in sets.values() if {"eager:fp16", "eager:fp32"} <= section.by_variant.keys()]
    for variants in both:  # FP16 alone: no shorter call, though less to do
        half, full = (variants[name].latency for name in ("eager:fp16", "eager:fp32"))
        assert (half[HOST].p50_us or 0) > (full[HOST].p50_us or 0)
        assert (half["device_us"].p50_us or 0) < (full["device_us"].p50_us or 0)
    for half, gives in ((True, False), (False, True)):  # NHWC costs ResNet-18 in FP16 and gives a tenth in FP32
        name = f"onnxruntime:fp{16 if half else 32}+graph"
        both_ways = [
            section.by_variant for section in sets.values() if section.model == "resnet18" and f"{name}+nhwc" in section.by_variant
        ]
        assert both_ways
        ratios = [(at[f"{name}+nhwc"].latency[HOST].p50_us or 0) / (at[name].latency[HOST].p50_us or 1) for at in both_ways]
        assert all(0.88 < ratio < 0.92 if gives else ratio > 1.5 for ratio in ratios)
    assert {variants["eager:fp16"].model for variants in both} == {"resnet18", "mobilenetv3_small", "student_a", "student_b"}


def test_the_chosen_engine_is_the_tables(table: str, analysis: str, sets: dict[str, Section]) -> None:
    (chosen,) = re.findall(r"^\*\*Chosen: `(\w+)` through `([^`]+)`\.\*\*", analysis, re.MULTILINE)
    rows = final.rows(list(sets.values()), find([ROOT / "accel" / "trainers" / "weights"]))
    candidates = final.candidates(rows)
    assert [(row.role.model, row.variant) for row in candidates] == [chosen, ("resnet18", "fused:fp16+grid")]
    assert f"chosen, the smallest mean of all that are kept: best (`{chosen[0]}` `{chosen[1]}`)" in table
    assert candidates[0].line is not None
    assert candidates[0].line.n_flips == 0
    decisions = {(row.role.label, row.role.model): row.decision for row in rows if row.section is not None and row.role.label != "best"}
    assert decisions["D1", "student_a"] == final.DROP
    assert {decisions["O1", "mobilenetv3_small"], decisions["O2", "mobilenetv3_small"]} == {final.REFINE}
    assert ("O3", "mobilenetv3_small") not in decisions
    smallest = min((row for row in rows if row.line), key=lambda row: row.line.latency[HOST].p50_us or 0 if row.line else 0)
    assert (smallest.role.model, smallest.variant, smallest.decision) == ("student_a", "fused:fp16+grid", final.REFINE)


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
