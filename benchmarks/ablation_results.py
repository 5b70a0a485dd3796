"""What training_ablation.py says of what it measured: medians, ratios, the table and the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel.files import write_text
from benchmarks import ablation_inference, studies
from benchmarks.studies import ABSENT, Record, number, spread

BASELINE, INFERENCE, EAGER = "baseline", "inference", "eager:fp32"
VALUES = ("images_per_s", "peak_mib", "host_mib", "data_wait", "data_cost", "compile_s")
HEADINGS = ("configuration", "images/s", "×", "GPU MiB", "×", "host MiB", "data wait %", "×", "data cost %", "compile s")
LATENCY_HEADINGS = ("inference, batch 1", "host p50 µs", "× faster")
MEANING = (
    "data wait: the share of an epoch in which the loop waited for images to be read; the GPU may have been at work meanwhile. "
    "data cost: by how much shorter an epoch is that makes no batches; below 0 is noise. host MiB: of the training process, without its "
    "workers."
)


def results(record: Record) -> dict[str, Any]:
    """Medians over the repeats and the ratios to the baseline of the same repeat; None where nothing was measured."""
    by_name: dict[str, dict[int, dict[str, Any]]] = {BASELINE: {}}
    for part in record.rows:
        name, mark, repeat = part.rpartition(" #")
        if not mark:
            continue
        repeats = by_name.setdefault(name, {})
        found = record.measured(part)
        if found is not None:
            compile_s = found["compilation"]["compile_s"] if found["compilation"]["used"] else None
            repeats[int(repeat)] = {**found, "compile_s": compile_s}
    summarised = {}
    for name, repeats in by_name.items():
        values = {key: {repeat: found[key] for repeat, found in repeats.items() if found[key] is not None} for key in VALUES}
        base = {key: {repeat: found[key] for repeat, found in by_name[BASELINE].items()} for key in VALUES}
        summarised[name] = {
            key: {**studies.middle(list(values[key].values())), "ratio": studies.ratios(values[key], base[key])} for key in VALUES
        }
    return {"training": summarised, "inference": latencies(record.measured(INFERENCE))}


def latencies(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """µs by variant, and eager's as a multiple of it in the same round."""
    if found is None:
        return None
    rounds = {variant: {int(key): value for key, value in values.items()} for variant, values in found["p50_us"].items()}
    return {
        variant: {**studies.middle(list(values.values())), "faster": studies.ratios(rounds[EAGER], values)}
        for variant, values in rounds.items()
    }


def lines(record: Record) -> list[list[str]]:
    """A line for each configuration that was begun; `not run` without a number."""
    return [_line(name, values) for name, values in results(record)["training"].items()]


def _line(name: str, values: Mapping[str, Any]) -> list[str]:
    if not values["images_per_s"]["n"]:
        return [name, "not run", *[ABSENT] * (len(HEADINGS) - 2)]
    middles = {key: values[key]["median"] for key in VALUES}
    shares = {key: None if middles[key] is None else 100 * middles[key] for key in ("data_wait", "data_cost")}
    return [
        name,
        number(middles["images_per_s"], 0),
        spread(values["images_per_s"]["ratio"], 2),
        number(middles["peak_mib"], 0),
        number(values["peak_mib"]["ratio"]["median"], 2),
        number(middles["host_mib"], 0),
        number(shares["data_wait"], 1),
        number(values["data_wait"]["ratio"]["median"], 2),
        number(shares["data_cost"], 1),
        number(middles["compile_s"], 1),
    ]


def latency_lines(record: Record) -> list[list[str]]:
    found = results(record)["inference"]
    return [[variant, number(value["median"], 1), spread(value["faster"], 2)] for variant, value in (found or {}).items()]


def origin(record: Record) -> list[str]:
    """Where the inference figures are from, if they are of a set that was measured in another session."""
    trainings = [row for part, row in record.rows.items() if part != INFERENCE and record.done(part)]
    said = ablation_inference.origin(record.measured(INFERENCE), trainings)
    return [] if said is None else ["", said]


def reasons(record: Record) -> list[str]:
    """Why a part has no numbers."""
    return [f"{part}: not run: {row['not_run'].splitlines()[0]}" for part, row in record.rows.items() if "not_run" in row]


def said(record: Record) -> str:
    """What the numbers are, in one paragraph."""
    recipe, settings = record.settings["recipe"], record.settings
    repeats = max((int(part.rpartition(" #")[2]) + 1 for part in record.rows if " #" in part), default=0)
    images = f"the first {recipe['limit']}" if recipe["limit"] else "all"
    trial = "A TRIAL (--quick), whose numbers say nothing: " if settings["quick"] else ""
    return (
        f"{trial}{recipe['model']} on {recipe['dataset']} ({images} train images an epoch, batch {recipe['batch_size']}, AMP in "
        f"{settings['amp']}). Repeats: {repeats}, each with {settings['pairs']} timed epochs with the loader and as many without. "
        "× is to the baseline of the same repeat: the median, and in brackets the lowest and the highest. FP32 is IEEE, without TF32."
    )


def shown(record: Record) -> list[str]:
    """The study as text, a line each."""
    latency = latency_lines(record)
    below = studies.text_table(LATENCY_HEADINGS, latency).splitlines() if latency else ["inference: not measured"]
    table = studies.text_table(HEADINGS, lines(record)).splitlines()
    return [said(record), "", *table, "", MEANING, "", *below, *origin(record), "", *reasons(record), *studies.conditions(record)]


def write_page(out: Path, record: Record) -> None:
    """OUT/ablation.md: the same in Markdown."""
    latency = latency_lines(record)
    below = studies.markdown_table(LATENCY_HEADINGS, latency) if latency else ["Inference: not measured."]
    page = ["# Training ablation", "", said(record), "", *studies.markdown_table(HEADINGS, lines(record)), "", MEANING, "", *below]
    page += [*origin(record), ""]
    page += [f"* {line}" for line in [*reasons(record), *studies.conditions(record)]]
    write_text(out / "ablation.md", "\n".join(page) + "\n")
