"""Which runs may be compared with which: only good rows, of the same machine, driver and inputs, paired over rounds."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence

from accel.bench import stability
from accel.bench.columns import VERDICTS
from accel.bench.comparison import default_floor
from accel.bench.flags import clocks_differ
from accel.bench.results import Row
from accel.errors import CorruptArtifact, UsageError

MUST_AGREE = ("gpu_name", "driver", "cpu_model", "input_sha256", "batch", "l2_mode")
"""Columns, beside the kind of device, that differ only between measurements of different things."""

Key = tuple[str, str]
"""Model and variant."""
MEASURED = ("OK", "UNVERIFIED")
"""Verdicts of runs that may be held against runs of the same variant: how right its answers are does not matter there."""

Round = tuple[int, int]
"""Number of the set in its file, and the round."""


@dataclasses.dataclass(frozen=True)
class Side:
    """The runs of one variant for one latency kind; all of them are good."""

    model: str
    variant: str
    runs: Mapping[Round, Row]

    def middle(self, column: str) -> float | None:
        """The median over the runs; None if a run has no such number."""
        values = [run[column] for run in self.runs.values()]
        return None if None in values else float(statistics.median(values))


@dataclasses.dataclass(frozen=True)
class Pair:
    """Variant B against variant A, over the rounds that both took part in."""

    a: Side
    b: Side

    @property
    def rounds(self) -> list[Round]:
        return sorted(self.a.runs.keys() & self.b.runs.keys())

    def log_ratios(self, column: str = "p50_us") -> list[float] | None:
        """ln(B / A) of each round; None if a run has no such number, or a 0."""
        values = [(self.a.runs[number][column], self.b.runs[number][column]) for number in self.rounds]
        return [math.log(b / a) for a, b in values] if all(a and b for a, b in values) else None

    @property
    def precisions(self) -> str:
        """`fp32`, or `fp32 → fp16` for a ratio across precisions."""
        first, second = (next(iter(side.runs.values()))["precision"] for side in (self.a, self.b))
        return str(first) if first == second else f"{first} → {second}"

    @property
    def flags(self) -> tuple[str, ...]:
        """CLOCKS_DIFFER, and what `stability` says of either side's runs; sorted."""
        unsteady = {flag for side in (self.a, self.b) for flag in stability.run_flags(stability.of_runs(list(side.runs.values())))}
        apart = clocks_differ(self.a.middle("sm_clock_mean_mhz"), self.b.middle("sm_clock_mean_mhz"))
        return tuple(sorted(unsteady | ({"CLOCKS_DIFFER"} if apart else set())))

    @property
    def floor(self) -> float:
        """The A/A floor as a log ratio: the largest on record (`aa_floor_pct`), else the default for so many rounds."""
        recorded = [run["aa_floor_pct"] for side in (self.a, self.b) for run in side.runs.values() if run["aa_floor_pct"] is not None]
        return math.log1p(max(recorded) / 100) if recorded else default_floor(len(self.rounds))

    def differences(self) -> list[str]:
        """What makes the two incomparable: `driver: 580.159 | 590.44`, the values of A and those of B."""
        seen = {name: (_values(self.a, name), _values(self.b, name)) for name in ("device", *MUST_AGREE)}
        return [f"{name}: {', '.join(a)} | {', '.join(b)}" for name, (a, b) in seen.items() if a != b]


def sides(rows: Iterable[Row], kind: str, verdicts: Collection[str] = ("OK",)) -> tuple[dict[Key, Side], dict[Key, str]]:
    """The variants of a file that may be compared, and why the others may not.

    A variant is left out whole if one of its rows is not OK: INVALID, UNVERIFIED, ERROR and so on never enter a ratio.

    Args:
        verdicts: what counts as OK.

    Raises:
        CorruptArtifact: a run is on record twice.
    """
    grouped: dict[Key, list[Row]] = {}
    sets: dict[str, int] = {}
    for item in rows:
        sets.setdefault(item["set_id"], len(sets))
        grouped.setdefault((item["model"], item["variant"]), []).append(item)
    good, left_out = {}, {}
    for key, group in grouped.items():
        reason = _why_not(group, kind, verdicts)
        if reason:
            left_out[key] = reason
            continue
        runs: dict[Round, Row] = {}
        for item in (item for item in group if item["latency_kind"] == kind):
            number = sets[item["set_id"]], item["round"]
            if number in runs:
                what = f"round {item['round']} of {item['variant']} is on record twice in {item['set_id']}"
                raise CorruptArtifact(what, remedy="compare the results.jsonl that `accel bench` wrote")
            runs[number] = item
        good[key] = Side(*key, runs)
    return good, left_out


def aa_pairs(side: Side) -> list[tuple[Row, Row]]:
    """The runs of a variant as pairs against itself: rounds 0 and 1 of a set, 2 and 3, and so on; a run without its partner is in none."""
    runs = side.runs
    return [(runs[number, at], runs[number, at + 1]) for number, at in sorted(runs) if at % 2 == 0 and (number, at + 1) in runs]


def aa_log_ratios(rows: Iterable[Row], kind: str) -> dict[Key, list[float]]:
    """ln(p50 of the later run / p50 of the earlier) of each pair of `aa_pairs`, for every variant that has one."""
    good, _ = sides(rows, kind, MEASURED)
    found = {key: [math.log(later["p50_us"] / earlier["p50_us"]) for earlier, later in aa_pairs(side)] for key, side in good.items()}
    return {key: ratios for key, ratios in found.items() if ratios}


def against_baseline(good: Mapping[Key, Side], left_out: Mapping[Key, str], baseline: str) -> list[Pair]:
    """Every variant against `baseline`, model by model.

    Raises:
        UsageError: a model has no good runs of `baseline`.
    """
    pairs = []
    for model in dict.fromkeys(model for model, _ in good):
        base = good.get((model, baseline))
        if base is None:
            why = left_out.get((model, baseline), "it is not in the set")
            others = ", ".join(variant for other, variant in good if other == model)
            raise UsageError(f"the baseline {baseline} of {model} cannot be used: {why}", remedy=f"--baseline with one of: {others}")
        pairs += [Pair(base, side) for (other, variant), side in good.items() if other == model and variant != baseline]
    return pairs


def same_variants(a: Mapping[Key, Side], b: Mapping[Key, Side]) -> list[Pair]:
    """Every variant that both files have."""
    return [Pair(side, b[key]) for key, side in a.items() if key in b]


def across_models(a: Mapping[Key, Side], b: Mapping[Key, Side]) -> list[Pair]:
    """Every variant that both files have, of whichever models: for sets whose rounds were interleaved."""
    return [Pair(side, other) for (_, variant), side in a.items() for (_, same), other in b.items() if same == variant]


def demand_comparable(pairs: Sequence[Pair], across_machines: bool) -> list[str]:
    """What differs between the two sides of any pair; empty if nothing does.

    Raises:
        UsageError: something differs and `across_machines` is False.
    """
    found = list(dict.fromkeys(line for pair in pairs for line in pair.differences()))
    if found and not across_machines:
        what = "\n".join(f"  {line}" for line in found)
        raise UsageError(
            f"what is to be compared was not measured on the same machine, driver and inputs\n{what}",
            remedy="measure both in one place, or add --across-machines",
        )
    return found


def _why_not(group: Sequence[Row], kind: str, verdicts: Collection[str]) -> str | None:
    for item in group:
        if item["verdict"] not in verdicts:
            return f"{item['verdict']}: {item['reason'] or VERDICTS.get(item['verdict'], 'no reason is on record')}"
    medians = [item["p50_us"] for item in group if item["latency_kind"] == kind]
    if not medians:
        return f"{kind} was not measured"
    return None if all(medians) else f"a p50 of {kind} is 0 or missing"


def _values(side: Side, name: str) -> list[str]:
    values = {run[name] for run in side.runs.values()}
    if name == "device":
        # Which GPU of a machine is not asked: its name is.
        values = {str(value).partition(":")[0] for value in values}
    return sorted("not known" if value is None else str(value) for value in values)
