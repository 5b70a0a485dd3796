"""The final table's rows: which engine of which model, against which parent, and whether it is kept.

An engine is held against its parent inside one set only, round by round, by `accel.bench.comparison`. What no set holds is not measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from accel.bench import decision as rule
from accel.bench import pairing
from accel.bench.comparison import Judged, estimate, judge
from accel.bench.decision import BASE, DROP, KEEP, REFINE, RULE
from accel.bench.stability import NOISY, UNSTABLE
from accel.bench.summary import Line
from accel.report.ranking import BASELINE, rank
from accel.report.sections import HOST, Section
from accel.report.trained import Training

__all__ = ["BASE", "DROP", "KEEP", "REFINE", "RULE", "SHOWN", "Role", "Row", "rows"]

NOT_RUN = ("MISSING", "REFUSED", "ERROR")

MODELS = (
    *("resnet18", "mobilenetv3_small", "shufflenetv2_x1", "mobilenetv2", "efficientnet_b0", "alexnet", "naivenet"),
    *("student_a", "student_b", "student_c"),
)
"""Those that have a row whether or not a set is of them."""


@dataclasses.dataclass(frozen=True)
class Role:
    """A row that is wanted.

    Attributes:
        variant: None for whichever ranks first.
        parent: the variant of the same model that it has to beat; None for what others are held against.
    """

    label: str
    what: str
    model: str
    variant: str | None
    parent: str | None


EAGER, EAGER_FP16 = str(BASELINE), "eager:fp16"

ROLES = (
    Role("B1", "light model, FP32", "mobilenetv3_small", EAGER, None),
    Role("B2", "ResNet-18, FP32", "resnet18", EAGER, None),
    Role("O1", "B1 + FP16", "mobilenetv3_small", EAGER_FP16, EAGER),
    Role("O2", "B1 + FP16 + compile", "mobilenetv3_small", "compile:fp16", EAGER_FP16),
    Role("O3", "B1 + channels_last", "mobilenetv3_small", "eager:fp32+channels_last", EAGER),
    *(Role("D1", "distilled student, FP16", f"student_{letter}", EAGER_FP16, EAGER) for letter in "abc"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row; None stands for what was not measured.

    Attributes:
        judged: of the engine against its parent.
        gate: whether accuracy, parity and precision passed.
        why: of the decision.
        training: of the very weights that were timed; where nothing was, the model's only one with seed 0.
        several: whether nothing was timed, and the model has more than one training with seed 0: by recipe, or by GPU.
    """

    role: Role
    variant: str | None
    section: Section | None
    line: Line | None
    judged: Judged | None
    gate: bool | None
    decision: str
    why: str
    training: Training | None
    several: bool = False


def rows(sections: Sequence[Section], trainings: Sequence[Training]) -> list[Row]:
    """A row for every role, from one of the sets that have its variant (SHOWN); one without numbers where none has it."""
    others = [section.model for section in sections if section.model not in MODELS]
    best = [Role("best", "fastest engine", model, None, EAGER) for model in dict.fromkeys([*MODELS, *others])]
    judged = {id(section): _judged(section) for section in sections}
    found = []
    for role in (*ROLES, *best):
        own = [section for section in sections if section.model == role.model]
        made = [_row(role, section, judged[id(section)], trainings) for section in own if _on_record(role, section)]
        found.append(_shown(role, made) if made else _unmeasured(role, own, trainings))
    return found


SHOWN = (
    "Where several sets have a row's engine, one is shown: the one that has most of the model's rows from B1 to D1, then with most rounds, "
    "then without doubts (NOISY, UNSTABLE), then the newest. The fastest engine is that of the smallest mean among those that are kept, or "
    "among all if none is."
)


def _shown(role: Role, made: Sequence[Row]) -> Row:
    """Of the rows of several sets the one that SHOWN says.

    The engine is chosen by its mean and the set is not: the smallest of an engine's means over several sessions would be too small.
    """
    if role.variant is None:
        fastest = min(made, key=lambda row: (row.decision != KEEP, _mean(row) or math.inf))
        alike = [row for row in made if (row.variant, row.decision) == (fastest.variant, fastest.decision)]
        return max(alike, key=_evidence)
    family = [other for other in ROLES if other.model == role.model]

    def has(row: Row) -> int:
        return sum(_on_record(other, row.section) for other in family) if row.section else 0

    return max(made, key=lambda row: (has(row), _evidence(row)))


def _evidence(row: Row) -> tuple[int, bool, str]:
    if row.line is None or row.section is None:
        return 0, False, ""
    return row.line.rounds, not {NOISY, UNSTABLE} & set(row.line.flags), max(str(item["timestamp_utc"]) for item in row.section.rows)


def _on_record(role: Role, section: Section) -> bool:
    if role.variant is None:
        return bool(rank(section).ranked)
    line = section.by_variant.get(role.variant)
    return line is not None and line.verdict not in NOT_RUN


def _row(role: Role, section: Section, judged: Mapping[tuple[str, str], Judged], trainings: Sequence[Training]) -> Row:
    ranking = rank(section)
    line = ranking.ranked[0] if role.variant is None else section.by_variant[role.variant]
    found = None
    if role.parent is not None and line.variant != role.parent:
        # The winner is judged as the report's sentence does it, beside all that it won against.
        of_winner = {item.other.variant: item.judged for item in ranking.against}
        found = of_winner.get(role.parent) if role.variant is None else judged.get((role.parent, line.variant))
    decision, why, gate = _decided(role, section, line, found)
    return Row(role, line.variant, section, line, found, gate, decision, why, _of_rows(section, line.variant, trainings))


def _decided(role: Role, section: Section, line: Line, judged: Judged | None) -> tuple[str, str, bool | None]:
    """Decision, reason, and whether the gate passed."""
    refused = {name for row in section.rows if row["variant"] == line.variant for name in row["refusals"] or ()}
    if line.verdict != "OK":
        return *rule.unfit(line.verdict, line.reason, refused), False if rule.failed_gate(line.verdict, refused) else None
    if role.parent is None or line.variant == role.parent:
        return BASE, "" if role.parent is None else f"no engine of this set is faster than {role.parent}", True
    if judged is None:
        return REFINE, f"not compared: {_unpaired(section, role.parent)}", True
    return *rule.against(judged, role.parent), True


def _unpaired(section: Section, parent: str) -> str:
    line = section.by_variant.get(parent)
    if line is None:
        return f"this set has no {parent}"
    return f"{parent} is {line.verdict} in this set" if line.verdict != "OK" else f"{parent} shares no round, machine or inputs with it"


def _judged(section: Section) -> dict[tuple[str, str], Judged]:
    """(parent, variant) → verdict, of all roles that the set can compare, judged together."""
    good, _ = pairing.sides(section.rows, HOST)
    wanted = [(role.parent, role.variant) for role in ROLES if role.model == section.model and role.parent and role.variant]
    pairs = {}
    for parent, variant in wanted:
        a, b = good.get((section.model, parent)), good.get((section.model, variant))
        pair = pairing.Pair(a, b) if a is not None and b is not None else None
        if pair is not None and pair.log_ratios() and not pair.differences():
            pairs[parent, variant] = pair
    verdicts = judge([estimate(pair.log_ratios() or []) for pair in pairs.values()], [pair.floor for pair in pairs.values()])
    return dict(zip(pairs, verdicts, strict=True))


def _unmeasured(role: Role, own: Iterable[Section], trainings: Sequence[Training]) -> Row:
    said = []
    for section in own:
        line = section.by_variant.get(role.variant or "")
        refused = rank(section).refused if role.variant is None else None
        if line is not None or refused:
            said.append(f"{line.verdict if line else refused} in {section.name}")
    why = f"not measured: {'; '.join(said) or 'no set has it'}"
    alike = [item for item in trainings if item.model == role.model and item.tested and item.fraction == 1 and item.seed == 0]
    decision = BASE if role.parent is None else REFINE
    only = alike[0] if len(alike) == 1 else None
    return Row(role, role.variant, None, None, None, None, decision, why, only, several=len(alike) > 1)


def candidates(rows: Sequence[Row]) -> list[Row]:
    """Of the rows that are kept, those that no other one matches in top-1 at a smaller mean; the fastest first."""
    kept = [(mean, row) for row in rows if row.decision == KEEP and (mean := _mean(row)) is not None]
    found: list[Row] = []
    for _, row in sorted(kept, key=lambda pair: pair[0]):
        best = found[-1].line.top1 if found and found[-1].line else None
        if not found or (row.line is not None and row.line.top1 is not None and (best is None or row.line.top1 > best)):
            found.append(row)
    return found


def _mean(row: Row) -> float | None:
    latency = row.line.latency.get(HOST) if row.line is not None else None
    return None if latency is None else latency.mean_us


def _of_rows(section: Section, variant: str, trainings: Sequence[Training]) -> Training | None:
    timed = {row["weights_sha256"] for row in section.rows if row["variant"] == variant} - {None}
    return next((item for item in trainings if {item.exported_sha256} == timed), None)
