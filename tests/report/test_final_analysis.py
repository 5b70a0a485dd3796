"""The analysis that is written by hand under a final table says what the sets of that table say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from accel.report import final
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
