"""Hold two sets of results against each other, or the variants of one set against a baseline, with the limits that a CI asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accel.bench import fail_if as gates
from accel.bench import pairing
from accel.bench.columns import LATENCY_KINDS
from accel.bench.comparison import Judged, estimate, judge, largest_floor
from accel.bench.floors import percent
from accel.bench.pairing import Key, Pair, Side
from accel.bench.results import SET, read_description, read_rows
from accel.errors import AccelError, GateError, UnknownName, UsageError

BASELINE = "eager:fp32"


@dataclasses.dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes:
        rows: one mapping a pair, those of one precision first: `model`, `variant` (B), `against` (A; with ` of MODEL` where that is
            another one), `precisions`, `rounds`, `p50_us` and `against_p50_us` (medians of the rounds), `ratio` (B over A) with `ratio_lo`
            and `ratio_hi` (95 %), `p_holm`, `floor_pct`, `verdict`, `flags` (divided by spaces), `differs` (what was not the same
            machine, driver or input), `latency_kind`, `set_id` and `against_set_id`.
        notes: what was left out and why, which rounds had no partner, what differs.
        problem: the error to end with if a limit was crossed.
    """

    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    problem: AccelError | None


def compare(
    a: Path | str,
    b: Path | str | None = None,
    *,
    fail_if: str | Sequence[str] = (),
    kind: str = "host_us",
    baseline: str | None = None,
    across_machines: bool = False,
    aa: Path | str | None = None,
) -> Compared:
    """Compare B with A, or without B the variants of A with `baseline`.

    Args:
        a, b: `results.jsonl`, or the folder that `accel bench` wrote it in. Rounds of two files are paired by their numbers; of two models
            their files must be of one session (`accel bench MODEL_A MODEL_B`).
        fail_if: limits, as `p50>+5%`; see `accel.bench.fail_if.GRAMMAR`. What cannot be checked counts as crossed.
        kind: one of LATENCY_KINDS.
        baseline: the variant that the others of a set are compared with; `eager:fp32` if None.
        across_machines: compare although machine, driver or inputs differ, and say what does.
        aa: what `accel bench --aa` wrote: the floor is taken from it; else it is the `aa_floor_pct` on record, which a set has where
            such a set ran before on its machine, else 1.96 · 1 % / √rounds.

    Raises:
        UsageError: a malformed limit, files that are not there, nothing in common, or measurements that must not be compared.
        CorruptArtifact: a file is damaged. MissingExtra: scipy is absent.
    """
    limits = [gates.parse(text) for text in ([fail_if] if isinstance(fail_if, str) else fail_if)]
    if kind not in LATENCY_KINDS:
        raise UnknownName("latency kind", kind, LATENCY_KINDS)
    if b is not None and baseline is not None:
        raise UsageError("a baseline was named for two files", remedy="leave out --baseline, or name one file: of two, A is the baseline")
    pairs, notes, lost = _of_one(Path(a), kind, baseline or BASELINE) if b is None else _of_two(Path(a), Path(b), kind)
    notes += _unpaired(pairs)
    pairs = sorted((pair for pair in pairs if pair.rounds), key=lambda pair: "→" in pair.precisions)
    notes += [f"differs: {line}" for line in pairing.demand_comparable(pairs, across_machines)]
    measured = None if aa is None else list(pairing.aa_log_ratios(read_rows(Path(aa)), kind).values())
    floors = [pair.floor if measured is None else largest_floor(measured, len(pair.rounds)) for pair in pairs]
    judged = judge([estimate(pair.log_ratios() or []) for pair in pairs], floors)
    rows = tuple(_row(pair, found, kind) for pair, found in zip(pairs, judged, strict=True))
    crossed = [text for limit in limits for text in [*lost, *(limit.failure(pair) for pair in pairs)] if text]
    return Compared(rows, tuple(notes), _gate_error(list(dict.fromkeys(crossed))))


def _of_one(path: Path, kind: str, baseline: str) -> tuple[list[Pair], list[str], list[str]]:
    good, left_out = pairing.sides(read_rows(path), kind)
    pairs = pairing.against_baseline(good, left_out, baseline)
    notes = [f"{_name(key)} is left out: {why}" for key, why in left_out.items()]
    _demand_any(pairs, notes, f"{path} has no second variant to compare with {baseline}")
    return pairs, notes, []


def _of_two(first: Path, second: Path, kind: str) -> tuple[list[Pair], list[str], list[str]]:
    """The pairs, the notes, and the variants that A has good runs of and B recorded without success: they pass no limit."""
    (a, out_of_a), (b, out_of_b) = (pairing.sides(read_rows(path), kind) for path in (first, second))
    all_a, all_b = {**a, **out_of_a}, {**b, **out_of_b}
    together = _session(first) is not None and _session(first) == _session(second)
    models = _models(all_a), _models(all_b)
    apart = bool(all_a and all_b) and not set(models[0]) & set(models[1])
    if apart and not together:
        raise UsageError(
            f"{first} is of {', '.join(models[0])} and {second} of {', '.join(models[1])}, and they were not timed side by side",
            remedy=f"time them in one session: accel bench {' '.join([*models[0], *models[1]])}",
        )
    pairs = pairing.across_models(a, b) if apart else pairing.same_variants(a, b)
    notes = [
        *(
            f"{_name(key)} is left out of {path}: {why}"
            for path, out in ((first, out_of_a), (second, out_of_b))
            for key, why in out.items()
        ),
        *_missing(first, a, all_b, second, apart),
        *_missing(second, b, all_a, first, apart),
    ]
    _demand_any(pairs, notes, f"{first} and {second} have no variant in common that can be compared")
    notes.append(
        "the two sets were timed side by side, in one session"
        if together
        else "the two files were not measured together: rounds are paired by number, and what changed in between is part of a ratio"
    )
    lost = [
        f"{_name(key)}: has no good runs in {second} ({why})"
        for key, why in out_of_b.items()
        if any(_alike(key, other, apart) for other in a)
    ]
    return pairs, notes, lost


def _models(side: Mapping[Key, Any]) -> list[str]:
    return list(dict.fromkeys(model for model, _ in side))


def _session(path: Path) -> str | None:
    """Which sets were timed side by side with this one; None where its description does not say, or is not there."""
    described = (path if path.is_dir() else path.parent) / SET
    return read_description(described).get("session") if described.is_file() else None


def _alike(key: Key, other: Key, across_models: bool) -> bool:
    return key[1] == other[1] if across_models else key == other


def _missing(have: Path, side: Mapping[Key, Side], other: Mapping[Key, Any], lack: Path, across_models: bool) -> list[str]:
    names = [_name(key) for key in side if not any(_alike(key, found, across_models) for found in other)]
    return [f"in {have} and not in {lack}: {', '.join(names)}"] if names else []


def _demand_any(pairs: Sequence[Pair], notes: Sequence[str], what: str) -> None:
    if not any(pair.rounds for pair in pairs):
        raise UsageError(
            "\n  ".join([what, *notes]), remedy="compare sets of the same variants, each verified and measured without a fault"
        )


def _row(pair: Pair, found: Judged, kind: str) -> dict[str, Any]:
    first, second = (next(iter(side.runs.values())) for side in (pair.a, pair.b))
    item = found.estimate
    return {
        "model": pair.b.model,
        "variant": pair.b.variant,
        "against": _against(pair),
        "precisions": pair.precisions,
        "rounds": item.rounds,
        "p50_us": pair.b.middle("p50_us"),
        "against_p50_us": pair.a.middle("p50_us"),
        "ratio": item.ratio,
        "ratio_lo": item.lo,
        "ratio_hi": item.hi,
        "p_holm": found.p_holm,
        "floor_pct": percent(found.floor),
        "verdict": found.verdict,
        "flags": " ".join(pair.flags),
        "differs": pair.differences(),
        "latency_kind": kind,
        "set_id": second["set_id"],
        "against_set_id": first["set_id"],
    }


def _unpaired(pairs: Sequence[Pair]) -> list[str]:
    found = []
    for pair in pairs:
        alone = len(pair.a.runs.keys() ^ pair.b.runs.keys())
        if alone:
            found.append(f"{pair.b.variant} against {_against(pair)}: {len(pair.rounds)} rounds are paired, {alone} have no partner")
    return found


def _gate_error(crossed: Sequence[str]) -> GateError | None:
    if not crossed:
        return None
    what = "\n".join(f"  {text}" for text in crossed)
    return GateError(f"{len(crossed)} limit{'s were' if len(crossed) > 1 else ' was'} crossed\n{what}")


def _against(pair: Pair) -> str:
    return pair.a.variant if pair.a.model == pair.b.model else _name((pair.a.model, pair.a.variant))


def _name(key: Key) -> str:
    return f"{key[1]} of {key[0]}"
