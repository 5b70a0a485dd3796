"""One line per variant: the rounds of a set pooled, with how far they lie apart. Every number is derived from the rows and samples."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from accel.bench.columns import LATENCY_KINDS
from accel.bench.flags import clocks_differ
from accel.bench.results import Row
from accel.bench.stability import NOISY, UNSTABLE
from accel.bench.stats import corrected, percentiles
from accel.types import Array

HEADLINE = "host_us"
"""The latency that a table is sorted by."""

DIAGNOSTICS = ("span_us", "enqueue_us", "replay_us")
"""Latency kinds that no table ranks by."""

_SHOWN = ("mean_us", "std_us", "min_us", "p50_us", "p95_us", "p99_us", "max_us")


@dataclasses.dataclass(frozen=True)
class Latency:
    """One latency kind over all rounds, in microseconds; None where too few samples support the number.

    Attributes:
        n: samples over all rounds.
        pooled: whether the statistics are those of all rounds' samples together; else the median of the rounds' own.
        spread: the largest p50 of a round over the smallest.
        event_floor_us: what a pair of CUDA events reads around nothing, median of the rounds; None for the host's clock.
        launch_floor_us: what a CUDA graph of one empty kernel takes by the same clock; None on a CPU, and for a latency without one.
    """

    n: int
    mean_us: float | None
    std_us: float | None
    min_us: float | None
    p50_us: float | None
    p95_us: float | None
    p99_us: float | None
    max_us: float | None
    spread: float
    pooled: bool
    launch_floor_us: float | None = None
    event_floor_us: float | None = None

    @property
    def p50_corrected_us(self) -> float | None:
        """The median less the floor of the events."""
        return corrected(self.p50_us, self.event_floor_us)

    @property
    def times_floor(self) -> float | None:
        """The median as a multiple of the launch floor."""
        return self.p50_us / self.launch_floor_us if self.p50_us is not None and self.launch_floor_us else None


@dataclasses.dataclass(frozen=True)
class Line:
    """What a table says of one variant; `latency` holds the kinds that were measured.

    Attributes:
        load_s, build_s, build_warm_s, first_call_ms, host_mem_peak_mib, mem_peak_mib: the largest of the runs (see `columns.STANDARD`).
        preprocess_us: of a batch of images, on the host, in no latency; the median of the runs.
        build_min_s: the quickest cold build; below `build_s` where a plan rebuilds in every run.
    """

    model: str
    variant: str
    device: str
    verdict: str
    reason: str | None
    remedy: str | None
    flags: tuple[str, ...]
    metric: str | None
    top1: float | None
    top1_reference: float | None
    drop: float | None
    n_flips: int | None
    mcnemar_p: float | None
    size_mb: float | None
    params: int | None
    export_s: float | None
    load_s: float | None
    build_s: float | None
    build_min_s: float | None
    build_warm_s: float | None
    first_call_ms: float | None
    host_mem_peak_mib: float | None
    mem_peak_mib: float | None
    preprocess_us: float | None
    rounds: int
    latency: Mapping[str, Latency]

    def to_dict(self) -> dict[str, Any]:
        """Flat: `host_p50_us`, `device_p95_us`, …, `host_spread`, `host_launch_floor_us`, `host_times_floor`, `device_p50_corrected_us`.

        Of the diagnostics the median alone: `span_p50_us`, `enqueue_p50_us`, `replay_p50_us`.
        """
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "latency"}
        data["flags"] = list(self.flags)
        shown = ("n", *_SHOWN, "spread", "launch_floor_us", "times_floor", "p50_corrected_us")
        for kind in LATENCY_KINDS:
            latency, short = self.latency.get(kind), kind.removesuffix("_us")
            names = ("p50_us",) if kind in DIAGNOSTICS else shown
            data.update({f"{short}_{name}": getattr(latency, name) if latency else None for name in names})
        return data


WORST = ("ERROR", "INVALID", "MISSING", "REFUSED", "FALLBACK", "UNVERIFIED", "OK")
"""A variant's verdict is the worst of its runs'."""


def lines(rows: Iterable[Row], samples: Mapping[str, Array]) -> list[Line]:
    """One line per (model, variant): OK ones by ascending host p50, then the others in the order recorded."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["variant"]), []).append(row)
    made = _with_clocks([_line(group, samples) for group in groups.values()], list(groups.values()))
    models = list(dict.fromkeys(line.model for line in made))

    def place(line: Line) -> tuple[int, bool, float]:
        host = line.latency.get(HEADLINE)
        return models.index(line.model), line.verdict != "OK", host.p50_us if host and host.p50_us is not None else float("inf")

    return sorted(made, key=place)


def _with_clocks(made: Sequence[Line], groups: Sequence[Sequence[Row]]) -> list[Line]:
    """Flag what ran at a lower clock than another variant of its model: the faster clock is not the faster engine."""
    clocks = [_mean([row["sm_clock_mean_mhz"] for row in group if row["sm_clock_mean_mhz"] is not None]) for group in groups]
    found = []
    for line, clock in zip(made, clocks, strict=True):
        others = [other for candidate, other in zip(made, clocks, strict=True) if candidate.model == line.model and other is not None]
        behind = clock is not None and clock < max(others) and clocks_differ(clock, max(others))
        found.append(dataclasses.replace(line, flags=tuple(sorted({*line.flags, "CLOCKS_DIFFER"}))) if behind else line)
    return found


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _line(rows: Sequence[Row], samples: Mapping[str, Array]) -> Line:
    worst = min(rows, key=lambda row: WORST.index(row["verdict"]))
    kinds = dict.fromkeys(row["latency_kind"] for row in rows if row["latency_kind"] is not None)
    reference, top1 = worst["top1_reference"], worst["top1"]
    copied = ("model", "variant", "device", "verdict", "reason", "remedy", "metric", "top1", "n_flips", "mcnemar_p", "size_mb", "params")

    def of_runs(column: str, which: Callable[[Sequence[float]], float] = max) -> float | None:
        known = [row[column] for row in rows if row[column] is not None]
        return which(known) if known else None

    return Line(
        **{name: worst[name] for name in copied},
        flags=tuple(sorted({flag for row in rows for flag in _flags(row)})),
        top1_reference=reference,
        drop=None if top1 is None or reference is None else round(reference - top1, 9),
        export_s=of_runs("export_s"),
        load_s=of_runs("load_s"),
        build_s=of_runs("build_s"),
        build_min_s=of_runs("build_s", min),
        build_warm_s=of_runs("build_warm_s"),
        first_call_ms=of_runs("first_call_ms"),
        host_mem_peak_mib=of_runs("host_mem_peak_mib"),
        mem_peak_mib=of_runs("mem_peak_mib"),
        preprocess_us=of_runs("preprocess_us", statistics.median),
        rounds=len({row["round"] for row in rows if row["latency_kind"] is not None}),
        latency={kind: _latency([row for row in rows if row["latency_kind"] == kind], samples) for kind in kinds},
    )


def _flags(row: Row) -> list[str]:
    """Those of a row that mark its variant: whether the runs agree is judged for each latency kind, and a table says it of the headline."""
    of_runs = () if row["latency_kind"] == HEADLINE else (NOISY, UNSTABLE)
    return [flag for flag in row["flags"] or () if flag not in of_runs]


def _latency(rows: Sequence[Row], samples: Mapping[str, Array]) -> Latency:
    medians = [row["p50_us"] for row in rows]
    spread = max(medians) / min(medians) if min(medians) > 0 else float("nan")
    floor = next((row["launch_floor_us"] for row in rows if row["launch_floor_us"] is not None), None)
    floors = [row["event_floor_us"] for row in rows if row["event_floor_us"] is not None]
    measured: dict[str, Any] = {"spread": spread, "launch_floor_us": floor, "event_floor_us": statistics.median(floors) if floors else None}
    keys = [str(row["raw_path"]).partition("#")[2] for row in rows]
    if all(key in samples for key in keys):
        pooled = percentiles(np.concatenate([samples[key].astype(np.int64) for key in keys]))
        return Latency(**dataclasses.asdict(pooled), pooled=True, **measured)
    values = {name: [row[name] for row in rows if row[name] is not None] for name in _SHOWN}
    middle: dict[str, Any] = {name: statistics.median(found) if found else None for name, found in values.items()}
    return Latency(n=sum(row["n"] for row in rows), **middle, pooled=False, **measured)
