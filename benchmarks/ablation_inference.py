"""Inference figures for training_ablation.py out of a set that `accel bench` has measured, in another session than the trainings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accel.bench.clock import utc_now
from accel.bench.results import Row, read_rows
from accel.errors import ConfigError, CorruptArtifact, UsageError

TAKEN = "taken_from"
"""Of the inference part: where its figures are from; absent where the study measured them itself."""


def p50_by_round(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """p50 of a call (µs, host clock) by variant and round, of runs whose verdict is OK."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if _counts(row):
            found.setdefault(row["variant"], {})[str(row["round"])] = row["p50_us"]
    return found


def taken(folder: Path, model: str, variants: Sequence[str], machine: Mapping[str, Any]) -> dict[str, Any]:
    """The inference part of a record, from the set in `folder`.

    Args:
        machine: of the record, which the set's must be like: kind of GPU, driver's major version, torch's version.

    Raises:
        UsageError: there is no set, it is of another model or batch, or lacks a variant. CorruptArtifact: it cannot be read.
        ConfigError: it was measured on another machine; names what differs.
    """
    recorded = _only_set(folder)
    if (other := recorded[0]["model"]) != model:
        raise UsageError(f"{folder} is a set of {other}; the study is of {model}", remedy=f"name a set of {model}")
    rows = [row for row in recorded if row["variant"] in variants and _counts(row)]
    lacking = [variant for variant in variants if variant not in {row["variant"] for row in rows}]
    if lacking:
        raise UsageError(_lacks(folder, recorded, lacking), remedy=_measure(model, variants))
    if batches := sorted({row["batch"] for row in rows} - {1}):
        raise UsageError(f"{folder} was measured at batch {batches[0]}; the study is of batch 1", remedy=_measure(model, variants))
    _demand_alike(folder, rows, machine, _measure(model, variants))
    p50 = p50_by_round(rows)
    last = max(rows, key=lambda row: str(row["timestamp_utc"]))
    kept = ("gpu_name", "driver", "cpu_model", "cpu_affinity", "python", "git_sha", "command")
    of = {
        "folder": str(folder),
        "began_utc": min(str(row["timestamp_utc"]) for row in rows),
        "ended_utc": last["timestamp_utc"],
        **{key: last[key] for key in kept},
        "versions": last["versions_json"] or {},
        "taken_utc": utc_now(),
    }
    return {
        "at_utc": last["timestamp_utc"],
        "gpu_uuid": last["gpu_uuid"],
        "set": last["set_id"],
        "p50_us": {variant: p50[variant] for variant in variants},
        TAKEN: of,
    }


def origin(part: Mapping[str, Any] | None, trainings: Iterable[Mapping[str, Any]]) -> str | None:
    """Where the figures of an inference part are from, in one paragraph; None where the study measured them itself.

    Args:
        trainings: the parts that were measured.
    """
    if part is None or TAKEN not in part:
        return None
    of, others = part[TAKEN], list(trainings)
    where = f"the card {part['gpu_uuid']} ({of['gpu_name']}, driver {of['driver']}; " if of["gpu_name"] else "a CPU ("
    said = (
        f"The inference figures are of another session than the trainings: of the set {part['set']} ({of['folder']}), which `accel bench` "
        f"recorded from {of['began_utc']} to {of['ended_utc']} on {where}{of['cpu_model']}, CPUs {of['cpu_affinity']}; Python "
        f"{of['python']}, torch {of['versions'].get('torch')}; commit {of['git_sha'] or 'not known'})."
    )
    if others:
        cards = ", ".join(sorted({str(row["gpu_uuid"] or "no card") for row in others}))
        when = sorted(str(row["at_utc"]) for row in others)
        said += f" The trainings are of {cards}, recorded from {when[0]} to {when[-1]}."
    return f"{said} Ratios are formed within one session; a time of the one is not to be held against a time of the other."


def _counts(row: Row) -> bool:
    return bool(row["latency_kind"] == "host_us" and row["verdict"] == "OK")


def _only_set(folder: Path) -> list[Row]:
    """What a set has recorded; not nothing."""
    try:
        rows = read_rows(folder)
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptArtifact(f"{folder} cannot be read as a set ({error})", remedy="restore the folder, or name another set") from error
    if not rows:
        raise UsageError(f"{folder} has recorded nothing", remedy="name another set")
    names = sorted({f"{row['set_id']} of {row['model']}" for row in rows})
    if len(names) > 1:
        raise UsageError(f"{folder} holds several sets ({', '.join(names)})", remedy="name the folder of one set")
    return rows


def _lacks(folder: Path, recorded: Sequence[Row], lacking: Sequence[str]) -> str:
    said = []
    for variant in lacking:
        verdicts = sorted({str(row["verdict"]) for row in recorded if row["variant"] == variant})
        said.append(f"{variant} ({'it is there as ' + ', '.join(verdicts) if verdicts else 'it is not in it'})")
    return f"{folder} has no OK latency (host clock) of {'; '.join(said)}"


def _measure(model: str, variants: Sequence[str]) -> str:
    asked = " ".join(f"--runtime {variant}" for variant in variants)
    return f"name another set, or measure one on such a machine: accel bench {model} {asked}"


def _demand_alike(folder: Path, rows: Sequence[Row], machine: Mapping[str, Any], remedy: str) -> None:
    """All rows must be of one card, and of the record's kind of machine."""
    wanted = _kind(machine["gpu_name"], machine["driver"], machine["versions"])
    differing = []
    for row in rows:
        for key, found in _kind(row["gpu_name"], row["driver"], row["versions_json"] or {}).items():
            said = f"{key} is {found} there and {wanted[key]} in the record"
            if found != wanted[key] and said not in differing:
                differing.append(said)
    if differing:
        raise ConfigError(f"{folder} was measured otherwise than the trainings: {'; '.join(differing)}", remedy=remedy)
    if len(cards := sorted({str(row["gpu_uuid"]) for row in rows})) > 1:
        raise ConfigError(f"{folder} was measured on several cards: {', '.join(cards)}", remedy=remedy)


def _kind(gpu: str | None, driver: str | None, versions: Mapping[str, str]) -> dict[str, str | None]:
    """What must agree for two sessions to be put on one page."""
    torch = versions.get("torch")
    return {"GPU": gpu, "driver's major version": driver and driver.partition(".")[0], "torch": torch and torch.partition("+")[0]}
