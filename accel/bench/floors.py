"""The A/A floors of a machine: what `accel bench --aa` found that chance alone does, kept in the cache for the sets that follow.

One file a device and driver. It holds the log ratios and not only their floor, since a floor is smaller the more rounds a set has.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accel import locking
from accel.bench.clock import utc_now
from accel.bench.comparison import FEWEST_AA_PAIRS, largest_floor
from accel.bench.plan import MeasurementPlan
from accel.engines import strict
from accel.files import cache_dir, write_text

LogRatios = Mapping[str, Sequence[float]]
"""Latency kind → one log ratio for each pair of runs of one variant."""

ROUNDS_SHOWN = MeasurementPlan.rounds
"""How many rounds a floor is for where it is printed."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a floor holds for.

    Attributes:
        device: a GPU's UUID; else the model of the CPU, or the host's name where that is not known.
        driver: of the GPU; None on a CPU.
    """

    device: str
    driver: str | None

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Machine:
        """The machine that `environment.snapshot` described."""
        return cls(facts["gpu_uuid"] or facts["cpu_model"] or platform.node(), facts["driver"])

    @property
    def file(self) -> Path:
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.device} {self.driver or ''}").strip("-")
        return cache_dir() / "aa-floors" / f"{name}.json"


def read(machine: Machine) -> dict[str, LogRatios]:
    """What is known of `machine`, by model and variant; empty where no A/A set ran.

    Raises:
        CorruptArtifact: the file is there and cannot be read.
    """
    return {name: found["log_ratios"] for name, found in _variants(machine).items()}


def keep(machine: Machine, found: Mapping[str, LogRatios], *, set_id: str, plan: str) -> Path:
    """Keep what an A/A set found, in the place of what was known of the same variants; returns the file.

    Args:
        found: log ratios by model and variant.
        set_id, plan: of the A/A set, for whoever reads the file.

    Raises:
        CorruptArtifact: the file is there and cannot be read. DiskFull: it is as it was.
    """
    with locking.held(machine.file.with_suffix(".lock"), "keeping an A/A floor"):
        about = {"set_id": set_id, "plan": plan, "measured_utc": utc_now()}
        variants = {**_variants(machine), **{name: {**about, "log_ratios": ratios} for name, ratios in found.items()}}
        ratios = [item["log_ratios"] for item in variants.values()]
        kinds = dict.fromkeys(kind for item in ratios for kind in item)
        data = {
            "schema_version": 1,
            **dataclasses.asdict(machine),
            "rounds": ROUNDS_SHOWN,
            "floor_pct": {kind: percent(largest_floor([item[kind] for item in ratios if kind in item], ROUNDS_SHOWN)) for kind in kinds},
            "variants": variants,
        }
        write_text(machine.file, strict.pretty(data))
    return machine.file


def filled(rows: Iterable[Mapping[str, Any]], known: Mapping[str, LogRatios]) -> list[dict[str, Any]]:
    """`rows` with `aa_floor_pct`: the floor of the machine for as many runs as the row's variant has; None where nothing is known."""
    given = [dict(row) for row in rows]
    runs = Counter(_kind_of(row) for row in given)
    floors: dict[tuple[str, int], float | None] = {}
    for row in given:
        if row["latency_kind"] is None:
            continue
        key = row["latency_kind"], runs[_kind_of(row)]
        if key not in floors:
            of_kind = [ratios[key[0]] for ratios in known.values() if key[0] in ratios]
            floors[key] = percent(largest_floor(of_kind, key[1])) if of_kind else None
        row["aa_floor_pct"] = floors[key]
    return given


def percent(log_ratio: float) -> float:
    """By how many percent two latencies of this log ratio differ."""
    return 100 * math.expm1(log_ratio)


def _kind_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["model"], row["variant"], row["latency_kind"]


def _variants(machine: Machine) -> dict[str, dict[str, Any]]:
    file = machine.file
    if not file.is_file():
        return {}
    remedy = f"delete {file}, and run accel bench with --aa again"
    keys = {"schema_version": strict.is_schema_version_1, "device": strict.is_text, "driver": strict.or_null(strict.is_text)}
    keys |= {"rounds": strict.is_whole, "floor_pct": strict.is_object, "variants": strict.is_object}
    data = strict.check_keys(strict.read_object(file, remedy), keys, str(file), remedy)
    if Machine(data["device"], data["driver"]) != machine:
        # Two names that the file system cannot tell apart.
        return {}
    for name, found in data["variants"].items():
        strict.check_keys(found, _VARIANT, f"{file}: {name}", remedy)
    return dict(data["variants"])


def is_log_ratios(value: Any) -> bool:
    """Latency kinds, each with enough numbers for a floor."""
    return isinstance(value, dict) and all(
        isinstance(ratios, list) and len(ratios) >= FEWEST_AA_PAIRS and all(isinstance(ratio, float) for ratio in ratios)
        for ratios in value.values()
    )


_VARIANT = {"set_id": strict.is_text, "plan": strict.is_text, "measured_utc": strict.is_text, "log_ratios": is_log_ratios}
