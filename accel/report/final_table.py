"""The final table in Markdown: engines with their decisions, trained models, and what a part of the train set is worth."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accel.bench.report import COLUMNS
from accel.bench.stability import NOISY, UNSTABLE
from accel.errors import UsageError
from accel.report import about, final
from accel.report.final import Row
from accel.report.markdown import code, escaped
from accel.report.ranking import host
from accel.report.sections import Section
from accel.report.trained import Training

ABSENT, UNKNOWN, SEVERAL = "not measured", "not on record", "several, below"
HONEST = (
    "CIFAR-10 from scratch, last EMA epoch, no test-time augmentation. "
    "held-out = on 5,000 train images, of a run of the same recipe that learned from the rest. "
    "train\\_s is the epochs alone: neither compilation nor evaluation; peak MiB that of the seed that took most. "
    "Seeds of several kinds of GPU are one line unless two kinds trained the same seed."
)
FRACTIONS = (0.1, 0.25, 0.5, 1.0)
TRAIN_IMAGES = 50_000
"""Of CIFAR-10 and CIFAR-100; a split's are no part of these tables."""

FRACTION_MODELS = ("resnet18", "mobilenetv2", "efficientnet_b0", "naivenet")
FACTS = ("machine", "plan", "commit", "measured")
"""What is said of each set, of `about.environment`."""

NEW = "# The final table\n\n{}\n{}\n"
"""The file before its first table, with its markers; what is written around them stays."""


def region(path: Path) -> str:
    """The name of the markers of the table that `path` holds: `final-h200` for results/h200/table.md, there and wherever it is shown."""
    return f"final-{path.resolve().parent.name}"


def body(sections: Sequence[Section], trainings: Sequence[Training]) -> str:
    """All three tables, without a heading.

    Raises:
        UsageError: two trainings that differ claim one cell. MissingExtra: scipy is absent.
    """
    rows = final.rows(sections, trainings)
    shown = [section for section in sections if any(row.section is section for row in rows)]
    out = [_summary(rows), "", _chosen(rows), "", *_engines(rows, shown), "", f"* {escaped(final.RULE)}", *_reasons(rows, shown), ""]
    out += [f"* [{number}] {_set(section)}" for number, section in enumerate(shown, 1)]
    numbered = set(map(id, shown))
    if further := [code(section.name) for section in sections if id(section) not in numbered]:
        out.append(f"* no row is from: {', '.join(further)}. {final.SHOWN}")
    out += ["", *_models(trainings), "", *_fractions(trainings)]
    return "\n".join(out) + "\n"


def _summary(rows: Sequence[Row]) -> str:
    named = {decision: [_named(row) for row in rows if row.decision == decision] for decision in (final.KEEP, final.DROP)}
    said = [f"{decision}: {', '.join(names) or 'none'}" for decision, names in named.items()]
    open_ = sum(row.decision == final.REFINE for row in rows)
    return f"{'; '.join(said)}; to refine: {open_} of {len(rows)} rows."


def _chosen(rows: Sequence[Row]) -> str:
    mean, top1 = COLUMNS["host mean"], COLUMNS["top-1 %"]
    candidates = [row for row in final.candidates(rows) if row.line and row.section]
    found = [f"{_named(row)}, {mean(row.line)} µs, top-1 {top1(row.line)} %" for row in candidates if row.line]
    if not found:
        return "chosen: none, because none is kept."
    further = f"; for a higher top-1 at the next smallest mean: {'; '.join(found[1:])}" if found[1:] else ""
    sessions = {row.section.description.get("session") or row.section.name for row in candidates if row.section}
    sets = " Sets are of different sessions: their means are put in order, and no ratio is taken." if len(sessions) > 1 else ""
    return f"chosen, the smallest mean of all that are kept: {found[0]}{further}.{sets}"


def _named(row: Row) -> str:
    return f"{row.role.label} ({' '.join(code(name) for name in (row.role.model, row.variant) if name)})"


Cell = Callable[[Row], "str | None"]


def _of_line(name: str) -> Cell:
    return lambda row: COLUMNS[name](row.line) if row.line is not None else None


def _spread(row: Row) -> str | None:
    latency = host(row.line) if row.line is not None else None
    if latency is None or row.line is None:
        return None
    doubts = [flag for flag in (NOISY, UNSTABLE) if flag in row.line.flags]
    return " ".join([f"{latency.spread:.3f} ({row.line.rounds})", *doubts])


def _gate(row: Row) -> str | None:
    return None if row.gate is None else "passed" if row.gate else "failed"


def _against(row: Row) -> str | None:
    if row.role.parent is None or row.variant == row.role.parent:
        return "–"
    if row.judged is None:
        return None
    found = row.judged.estimate
    wide = "" if found.lo is None or found.hi is None else f" ({found.lo:.3f} to {found.hi:.3f})"
    return f"{row.judged.verdict}: {found.ratio:.3f}{wide} of {' of '.join(map(code, (row.parent or row.role.parent).split(' of ')))}"


def _trained(form: Callable[[Training], str]) -> Cell:
    return lambda row: form(row.training) if row.training is not None else SEVERAL if row.several else UNKNOWN


def _peak(training: Training) -> str:
    return UNKNOWN if training.peak_mib is None else f"{training.peak_mib:,.0f}"


def _peak_of_row(row: Row) -> str | None:
    if row.remembered is None:
        return _trained(_peak)(row)
    return f"{_peak(row.remembered)} (seed {row.remembered.seed})"


CELLS: dict[str, Cell] = {
    "top-1 %": _of_line("top-1 %"),
    "mean µs": _of_line("host mean"),
    "p95 µs": _of_line("host p95"),
    "spread (rounds)": _spread,
    "MB": _of_line("MB"),
    "gate": _gate,
    "against its parent": _against,
    "decision": lambda row: row.decision,
    "train_s": _trained(lambda training: f"{training.train_s:.0f}"),
    "trained on": _trained(lambda training: escaped(training.device)),
    "peak MiB": _peak_of_row,
    "epochs": _trained(lambda training: str(training.epochs)),
}


def _engines(rows: Sequence[Row], sections: Sequence[Section]) -> list[str]:
    numbers = {id(section): f"[{number}]" for number, section in enumerate(sections, 1)}
    lines = []
    for row in rows:
        engine = "fastest" if row.variant is None else code(row.variant)
        cells = [cell(row) or ABSENT for cell in CELLS.values()]
        lines.append([row.role.label, escaped(row.role.what), code(row.role.model), engine, *cells, numbers.get(id(row.section), "none")])
    return [
        *_table(["", "what", "model", "engine", *CELLS, "set"], lines, left=4),
        "",
        "Latencies are host's (call + synchronize) at batch 1 over all rounds (the median of the rounds' own where a set's raw samples are "
        "not here); spread = largest / smallest median of a round. Against its parent = ratio of the medians, paired over rounds, with its "
        "95 % interval; below 1 is faster. No ratio is taken across sessions: a student's parent is ResNet-18's FP32 where both were "
        "timed side by side, else its own. top-1 is the engine's own. train\\_s, peak MiB (GPU memory while training) and epochs are those "
        "of the very weights that were timed, and of the model's training with seed 0 where nothing was timed; peak MiB with a seed is "
        "that of another seed of the recipe on the same kind of GPU, because nobody recorded theirs.",
    ]


def _reasons(rows: Sequence[Row], sections: Sequence[Section]) -> list[str]:
    """Why a row is not kept; those with one reason share a line."""
    numbers = {id(section): f" [{number}]" for number, section in enumerate(sections, 1)}
    shared: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.why and row.decision != final.KEEP:
            shared.setdefault((row.decision, row.why), []).append(_named(row) + numbers.get(id(row.section), ""))
    return [f"* {decision}, {escaped(why)}: {', '.join(names)}" for (decision, why), names in shared.items()]


def _set(section: Section) -> str:
    known = about.environment(section)
    return "; ".join([code(section.name), *(f"{name} {escaped(known[name])}" for name in FACTS if name in known)])


def _models(trainings: Sequence[Training]) -> list[str]:
    """Trainings on the whole train set: one line a recipe, its seeds together; kinds of GPU apart where two trained the same seed."""
    whole = [item for item in trainings if item.tested and item.fraction == 1]
    groups = _pooled(_grouped(whole))
    held = [item for item in trainings if item.split != "full" and item.fraction == 1 and item.seed == 0 and item.val_top1 is not None]
    lines = []
    for group in groups:
        by_seed = _unique(group, lambda item: item.seed)
        first = by_seed[min(by_seed)]
        tuned = _unique([item for item in held if item.alike(first)], lambda item: item.fraction).get(1.0)
        lines.append(
            [
                code(first.model),
                str(first.epochs),
                f"{first.top1:.2f}" if first.seed == 0 else ABSENT,
                _mean([item.top1 for item in by_seed.values() if item.top1 is not None]),
                ABSENT if tuned is None else f"{tuned.val_top1:.2f}",
                ", ".join(f"{item.train_s:.0f}" for _, item in sorted(by_seed.items())),
                _peak(max(by_seed.values(), key=lambda item: item.peak_mib or 0)),
                _gpus(by_seed),
                str(len(first.teachers)) if first.teachers else "–",
            ]
        )
    missing = [model for model in final.MODELS if model not in {item.model for item in whole}]
    headings = ["trained model", "epochs", "top-1 %, seed 0", "mean ± std (seeds)", "held-out top-1 %", "train_s of each seed", "peak MiB"]
    out = _table([*headings, "GPU", "teachers"], lines, left=1)
    out += ["", HONEST]
    return [*out, *([f"Not trained: {', '.join(map(code, missing))}."] if missing else [])]


def _fractions(trainings: Sequence[Training]) -> list[str]:
    """A line for every recipe and GPU that learned from a part; models that are wanted here have one without, too."""
    tested = [item for item in trainings if item.tested and item.seed == 0]
    parts = {item.model for item in tested if item.fraction < 1}
    shares = sorted({*FRACTIONS, *(item.fraction for item in tested)})
    shown = [*FRACTION_MODELS, *sorted(parts - set(FRACTION_MODELS))]
    lines = []
    for model in shown:
        groups = _grouped([item for item in tested if item.model == model])
        # The whole set alone, of another GPU, is in the table of the trainings.
        for group in [group for group in groups if any(item.fraction < 1 for item in group)] or groups:
            cells = _unique(group, lambda item: item.fraction)
            lines.append([code(model), escaped(group[0].device), str(group[0].epochs), *(_part(cells.get(share)) for share in shares)])
        if not groups:
            lines.append([code(model), ABSENT, ABSENT, *[ABSENT] * len(shares)])
    headings = ["share of the train set", "GPU", "epochs", *(f"{100 * share:g} %" for share in shares)]
    note = (
        "Top-1 on the test set, million images learned from (images of the share × epochs), and the seconds that the epochs took, with "
        "seed 0 and one recipe for all shares of a line. Seconds of trainings that shared their GPU with others say little of each other."
    )
    return [*_table(headings, lines, left=1), "", note]


def _part(training: Training | None) -> str:
    if training is None:
        return ABSENT
    images = TRAIN_IMAGES * training.fraction * training.epochs / 1e6
    return f"{training.top1:.2f} %, {images:.2g} M, {training.train_s:.0f} s"


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread} ({len(values)})"


def _grouped(trainings: Sequence[Training]) -> list[list[Training]]:
    """Runs of one recipe together, in the order of the models."""
    groups: list[list[Training]] = []
    for item in sorted(trainings, key=lambda item: final.MODELS.index(item.model) if item.model in final.MODELS else len(final.MODELS)):
        group = next((group for group in groups if item.alike(group[0])), None)
        if group is None:
            groups.append([item])
        else:
            group.append(item)
    return groups


def _pooled(groups: Sequence[list[Training]]) -> list[list[Training]]:
    """Groups of one recipe as one, unless two of them have a seed in common: where a seed leads is the recipe's, whichever GPU ran it."""
    pooled: list[list[Training]] = []
    for group in groups:
        family = [item for other in groups if other[0].same_recipe(group[0]) for item in other]
        if len({item.seed for item in family}) < len(family):
            pooled.append(group)
        elif group[0] is family[0]:
            pooled.append(family)
    return pooled


def _gpus(by_seed: Mapping[float, Training]) -> str:
    """The GPU that trained a line's seeds, or each with its seeds."""
    seeds: dict[str, list[str]] = {}
    for seed, item in sorted(by_seed.items()):
        seeds.setdefault(item.device, []).append(f"{seed:g}")
    if len(seeds) == 1:
        return escaped(next(iter(seeds)))
    return ", ".join(f"{escaped(device)} (seed{'s' * (len(those) > 1)} {', '.join(those)})" for device, those in seeds.items())


def _unique(group: Sequence[Training], key: Callable[[Training], float]) -> dict[float, Training]:
    found: dict[float, Training] = {}
    for item in group:
        rival = found.setdefault(key(item), item)
        if rival is not item:
            what = f"two trainings of {item.model} with seed {item.seed} on {item.device} claim one cell: {rival.name} and {item.name}"
            raise UsageError(what, remedy="leave one out of --training")
    return found


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]], *, left: int) -> list[str]:
    rule = [":--" if column < left else "--:" for column in range(len(headings))]
    return [
        "| " + " | ".join(map(escaped, headings)) + " |",
        "|" + "|".join(rule) + "|",
        *("| " + " | ".join(line) + " |" for line in lines),
    ]
