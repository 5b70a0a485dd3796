"""The final table's rows: which engine of which model, against which parent, and whether it is kept.

An engine is held against its parent inside one session only, round by round, by `accel.bench.comparison`: a set, or the sets of several
models that `accel bench` ran side by side. What no set holds is not measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

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
        parent: the variant that it has to beat; None for what others are held against.
        teacher: the model whose `parent` it is in a session that has both; elsewhere it is the own model's.
    """

    label: str
    what: str
    model: str
    variant: str | None
    parent: str | None
    teacher: str | None = None


EAGER, EAGER_FP16 = str(BASELINE), "eager:fp16"

ROLES = (
    Role("B1", "light model, FP32", "mobilenetv3_small", EAGER, None),
    Role("B2", "ResNet-18, FP32", "resnet18", EAGER, None),
    Role("O1", "B1 + FP16", "mobilenetv3_small", EAGER_FP16, EAGER),
    Role("O2", "B1 + FP16 + compile", "mobilenetv3_small", "compile:fp16", EAGER_FP16),
    Role("O3", "B1 + channels_last", "mobilenetv3_small", "eager:fp32+channels_last", EAGER),
    *(Role("D1", "distilled student, FP16", f"student_{letter}", EAGER_FP16, EAGER, "resnet18") for letter in "abc"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row; None stands for what was not measured.

    Attributes:
        parent: what the engine was held against, as it is called: `eager:fp32`, or `eager:fp32 of resnet18`.
        judged: of the engine against its parent.
        gate: whether accuracy, parity and precision passed.
        why: of the decision.
        training: of the very weights that were timed; where nothing was, the model's only one with seed 0.
        several: whether nothing was timed, and the model has more than one training with seed 0: by recipe, or by GPU.
        remembered: where nobody recorded the GPU memory of `training`, another seed of its recipe on its kind of GPU that has it.
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
    parent: str | None = None
    remembered: Training | None = None


def rows(sections: Sequence[Section], trainings: Sequence[Training]) -> list[Row]:
    """A row for every role, from one of the sets that have its variant (SHOWN); one without numbers where none has it."""
    others = [section.model for section in sections if section.model not in MODELS]
    best = [Role("best", "fastest engine", model, None, EAGER) for model in dict.fromkeys([*MODELS, *others])]
    judged = {id(section): _judged(section, sections) for section in sections}
    found = []
    for role in (*ROLES, *best):
        own = [section for section in sections if section.model == role.model]
        made = [_row(role, section, judged[id(section)], trainings) for section in own if _on_record(role, section)]
        found.append(_shown(role, made) if made else _unmeasured(role, own, trainings))
    return found


SHOWN = (
    "Where several sets have a row's engine, one is shown: the one that has most of the model's rows from B1 to D1, then one of a session "
    "with the teacher, then with most rounds, then without doubts (NOISY, UNSTABLE), then the newest. The fastest engine is that of the "
    "smallest mean among those that are kept, or among all if none is."
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

    return max(made, key=lambda row: (has(row), row.parent != role.parent, _evidence(row)))


def _evidence(row: Row) -> tuple[int, bool, str]:
    if row.line is None or row.section is None:
        return 0, False, ""
    return row.line.rounds, not {NOISY, UNSTABLE} & set(row.line.flags), max(str(item["timestamp_utc"]) for item in row.section.rows)


def _on_record(role: Role, section: Section) -> bool:
    if role.variant is None:
        return bool(rank(section).ranked)
    line = section.by_variant.get(role.variant)
    return line is not None and line.verdict not in NOT_RUN


def _row(role: Role, section: Section, judged: Mapping[Role, tuple[str, Judged]], trainings: Sequence[Training]) -> Row:
    ranking = rank(section)
    line = ranking.ranked[0] if role.variant is None else section.by_variant[role.variant]
    found, parent = None, role.parent
    if role.parent is not None and role.variant is None:
        # The winner is judged as the report's sentence does it, beside all that it won against.
        found = {item.other.variant: item.judged for item in ranking.against}.get(role.parent)
    elif role in judged:
        parent, found = judged[role]
    decision, why, gate = _decided(role, section, line, found, parent)
    training = _of_rows(section, line.variant, trainings)
    remembered = _remembered(training, trainings)
    return Row(role, line.variant, section, line, found, gate, decision, why, training, parent=parent, remembered=remembered)


def _decided(role: Role, section: Section, line: Line, judged: Judged | None, parent: str | None) -> tuple[str, str, bool | None]:
    """Decision, reason, and whether the gate passed."""
    refused = {name for row in section.rows if row["variant"] == line.variant for name in row["refusals"] or ()}
    if line.verdict != "OK":
        return *rule.unfit(line.verdict, line.reason, refused), False if rule.failed_gate(line.verdict, refused) else None
    if role.parent is None or parent is None or line.variant == role.parent:
        return BASE, "" if role.parent is None else f"no engine of this set is faster than {role.parent}", True
    if judged is None:
        return REFINE, f"not compared: {_unpaired(section, role.parent)}", True
    return *rule.against(judged, parent), True


def _unpaired(section: Section, parent: str) -> str:
    line = section.by_variant.get(parent)
    if line is None:
        return f"this set has no {parent}"
    return f"{parent} is {line.verdict} in this set" if line.verdict != "OK" else f"{parent} shares no round, machine or inputs with it"


def _judged(section: Section, sections: Sequence[Section]) -> dict[Role, tuple[str, Judged]]:
    """Role → its parent's name and the verdict, of all roles that the set can compare, judged together."""
    good, _ = pairing.sides(section.rows, HOST)
    pairs: dict[Role, tuple[str, pairing.Pair]] = {}
    for role in ROLES:
        if role.model != section.model or not role.parent or not role.variant:
            continue
        b = good.get((section.model, role.variant))
        for name, a in _parents(role, section, good, sections):
            pair = pairing.Pair(a, b) if b is not None else None
            if pair is not None and pair.log_ratios() and not pair.differences():
                pairs[role] = name, pair
                break
    verdicts = judge([estimate(pair.log_ratios() or []) for _, pair in pairs.values()], [pair.floor for _, pair in pairs.values()])
    return {role: (name, verdict) for (role, (name, _)), verdict in zip(pairs.items(), verdicts, strict=True)}


def _parents(
    role: Role, section: Section, good: Mapping[pairing.Key, pairing.Side], sections: Sequence[Section]
) -> Iterator[tuple[str, pairing.Side]]:
    """What the role may be held against in this set's session, the teacher's first."""
    parent, session = role.parent or "", section.description.get("session")
    for other in sections:
        if session and other.model == role.teacher and other.description.get("session") == session:
            of_teacher, _ = pairing.sides(other.rows, HOST)
            if (other.model, parent) in of_teacher:
                yield f"{parent} of {other.model}", of_teacher[other.model, parent]
    if (section.model, parent) in good:
        yield parent, good[section.model, parent]


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
    remembered = _remembered(only, trainings)
    return Row(role, role.variant, None, None, None, None, decision, why, only, several=len(alike) > 1, remembered=remembered)


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


def _remembered(training: Training | None, trainings: Sequence[Training]) -> Training | None:
    if training is None or training.peak_mib is not None:
        return None
    alike = [item for item in trainings if item.tested and item.fraction == training.fraction and item.alike(training)]
    return min((item for item in alike if item.peak_mib is not None), key=lambda item: item.seed, default=None)
