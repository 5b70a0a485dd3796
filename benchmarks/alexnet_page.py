"""What alexnet_study.py says of what it measured: medians, ratios, and the page beside the document's claims."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks import studies
from benchmarks.studies import Record, number, spread

FP32, AMP = "fp32", "amp"
EAGER, TRACE, ONNX = VARIANTS = ("eager:fp32", "torchscript:fp32", "onnxruntime:fp32")
NOT_MEASURED, OK = "not measured", "OK"
NO_SENTENCE = "(not written yet)"

RUN = re.compile(r"(?P<variant>\S+) batch (?P<batch>\d+) #(?P<repeat>\d+)")
TRAINING = re.compile(r"training (?P<precision>\w+) seed (?P<seed>\d+)")
VERIFIED = re.compile(r"verify batch (?P<batch>\d+)")


class Claim(NamedTuple):
    """What the users' document says: by how many per cent `variant` (None: AMP in training) is faster than eager (than FP32)."""

    key: str
    what: str
    variant: str | None
    percent: float


CLAIMS = (
    Claim("onnx", "ONNX inference, against eager", ONNX, 12.6),
    Claim("trace", "TorchScript trace inference, against eager", TRACE, 9.15),
    Claim("amp", "AMP training, against FP32", None, 23.9),
)
CLAIM_HEADINGS = ("what", "document: faster by", "ours", "less time", "more images/s")
INFERENCE_HEADINGS = ("inference", "batch", "images", "s a pass", "µs an image", "× faster than eager", "top-1 %", "flips", "verdict")
TRAINING_HEADINGS = ("training", "seed", "train s", "images/s", "peak MiB", "last train loss", "top-1 %")


def training_part(precision: str, seed: int) -> str:
    return f"training {precision} seed {seed}"


def verify_part(batch: int) -> str:
    return f"verify batch {batch}"


def results(record: Record) -> dict[str, Any]:
    """Medians over repeats and seeds, and how many times faster each is than its baseline in the same repeat, or of the same seed."""
    seconds: dict[int, dict[str, dict[int, float]]] = {}
    trained: dict[str, dict[int, dict[str, Any]]] = {FP32: {}, AMP: {}}
    for part in record.rows:
        found = record.measured(part)
        if found is None:
            continue
        if run := RUN.fullmatch(part):
            of_batch = seconds.setdefault(int(run["batch"]), {variant: {} for variant in VARIANTS})
            of_batch[run["variant"]][int(run["repeat"])] = found["seconds"]
        elif training := TRAINING.fullmatch(part):
            trained[training["precision"]][int(training["seed"])] = found
    inference = {
        str(batch): {
            variant: {**studies.middle(list(values.values())), "faster": studies.ratios(by_variant[EAGER], values)}
            for variant, values in by_variant.items()
        }
        for batch, by_variant in sorted(seconds.items())
    }
    times = {name: {seed: row["train_s"] for seed, row in rows.items()} for name, rows in trained.items()}
    training = {name: studies.middle(list(values.values())) for name, values in times.items()}
    return {"inference_s": inference, "training_s": training, "amp_faster": studies.ratios(times[FP32], times[AMP])}


def claim_lines(record: Record) -> list[list[str]]:
    """A line for each claim and each thing of ours that it can be held against."""
    found, lines = results(record), []
    for claim in CLAIMS:
        ours: list[tuple[str, Mapping[str, Any] | None]] = [("training", found["amp_faster"])]
        if claim.variant is not None:
            ours = [against_eager(record, size, claim.variant, found["inference_s"]) for size in batches_of(record)]
        for where, ratio in ours or [(NOT_MEASURED, None)]:
            lines.append([claim.what, f"{claim.percent:g} %", where, *percents(ratio)])
    return lines


def against_eager(record: Record, batch: int, variant: str, found: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
    """Where, and how many times faster; nothing where one of the two did not pass verification."""
    if any(verdict(record, batch, name) != OK for name in (EAGER, variant)):
        return f"batch {batch}, not verified", None
    return f"batch {batch}", found.get(str(batch), {}).get(variant, {}).get("faster")


def verdict(record: Record, batch: int, variant: str) -> str:
    """What `accel verify` said of it."""
    found = record.measured(verify_part(batch))
    return NOT_MEASURED if found is None else str(found["variants"].get(variant, {}).get("verdict", NOT_MEASURED))


def percents(ratio: Mapping[str, Any] | None) -> tuple[str, str]:
    """From `times faster`: per cent less time, and per cent more in the same time."""
    if ratio is None or ratio["median"] is None:
        return NOT_MEASURED, NOT_MEASURED
    faster = ratio["median"]
    return f"{100 * (1 - 1 / faster):.1f} %", f"{100 * (faster - 1):.1f} %"


def batches_of(record: Record) -> list[int]:
    """The batch sizes that were tried."""
    return sorted({int(match["batch"]) for part in record.rows if (match := RUN.fullmatch(part) or VERIFIED.fullmatch(part))})


def inference_lines(record: Record) -> list[list[str]]:
    found, lines = results(record)["inference_s"], []
    for batch in batches_of(record):
        verified = (record.measured(verify_part(batch)) or {"variants": {}})["variants"]
        for variant in VARIANTS:
            rows = [row for part in record.rows if (row := of_run(record, part, variant, batch)) is not None]
            flips = verified.get(variant, {}).get("n_flips")
            values = found.get(str(batch), {}).get(variant)
            head = [variant, str(batch)]
            if not rows or values is None:
                lines.append([*head, studies.ABSENT, NOT_MEASURED, *[studies.ABSENT] * 4, verdict(record, batch, variant)])
                continue
            top1 = sorted({row["top1"] for row in rows if row["top1"] is not None})
            lines.append(
                [
                    *head,
                    number(rows[0]["images"], 0),
                    spread(values, 3),
                    number(1e6 * values["median"] / rows[0]["images"], 1),
                    spread(values["faster"], 3),
                    " to ".join(f"{value:.2f}" for value in top1) or studies.ABSENT,
                    number(flips, 0),
                    verdict(record, batch, variant),
                ]
            )
    return lines


def of_run(record: Record, part: str, variant: str, batch: int) -> dict[str, Any] | None:
    match = RUN.fullmatch(part)
    wanted = match is not None and (match["variant"], int(match["batch"])) == (variant, batch)
    return record.measured(part) if wanted else None


def training_lines(record: Record) -> list[list[str]]:
    lines = []
    for part in record.rows:
        match, row = TRAINING.fullmatch(part), record.measured(part)
        if match is None:
            continue
        name = match["precision"] if match["precision"] == FP32 else f"AMP ({record.settings['amp']})"
        if row is None:
            lines.append([name, match["seed"], NOT_MEASURED, *[studies.ABSENT] * 4])
            continue
        resumed = f" (resumed {row['resumed']}×)" if row["resumed"] else ""
        numbers = [number(row["train_s"], 1) + resumed, number(row["images_per_s"], 0), number(row["peak_mib"], 0)]
        lines.append([name, match["seed"], *numbers, number(row["train_loss"], 4), number(row["top1"], 2)])
    return sorted(lines, key=lambda line: (int(line[1]), line[0] != FP32))


def reasons(record: Record) -> list[str]:
    return [f"{part}: not run: {row['not_run'].splitlines()[0]}" for part, row in record.rows.items() if "not_run" in row]


def said(record: Record) -> str:
    recipe, settings = record.settings["recipe"], record.settings
    trial = "A TRIAL (--quick), whose numbers say nothing. " if settings["quick"] else ""
    manner = "with torch.compile" if recipe["compile"] and settings["device"] != "cpu" else "without torch.compile"
    training = "" if settings["checkpoint"] else f" Trained for {recipe['epochs']} epochs in batches of {recipe['batch_size']}, {manner}."
    return (
        f"{trial}{recipe['model']} on {recipe['dataset']}, FP32 throughout inference.{training} A pass is all test images, from float32 "
        "images in host memory to logits in host memory, through accel.load's own path. × faster: time of the baseline over time, in the "
        "same repeat (median; lowest and highest in brackets). FP32 is IEEE in training, without TF32; the traced module has its "
        "BatchNorm folded."
    )


def shown(record: Record) -> list[str]:
    """The study as text, a line each."""
    tables = [(INFERENCE_HEADINGS, inference_lines(record)), (TRAINING_HEADINGS, training_lines(record))]
    tables += [(CLAIM_HEADINGS, claim_lines(record))]
    out = [said(record)]
    for headings, lines in tables:
        out += ["", *(studies.text_table(headings, lines).splitlines() if lines else [f"{headings[0]}: {NOT_MEASURED}"])]
    return [*out, "", *reasons(record), *studies.conditions(record)]


def page(record: Record, before: str) -> str:
    """The page in Markdown.

    Args:
        before: the page as it is, whose sentences between the `why` marks are kept.
    """
    out = ["# AlexNet: eager, trace and ONNX; FP32 and AMP", "", said(record), "", "## Beside the document's claims", ""]
    out += studies.markdown_table(CLAIM_HEADINGS, claim_lines(record))
    out += ["", '"Faster by" can mean less time or more images in the same time; both are given.', "", "Why ours differ:", ""]
    for claim in CLAIMS:
        out.append(f"* {claim.what}: <!-- why {claim.key} -->{sentence(before, claim.key)}<!-- end -->")
    for title, headings, lines in (
        ("Inference over the test set", INFERENCE_HEADINGS, inference_lines(record)),
        ("Training", TRAINING_HEADINGS, training_lines(record)),
    ):
        out += ["", f"## {title}", "", *(studies.markdown_table(headings, lines) if lines else [f"{NOT_MEASURED.capitalize()}."])]
    out += ["", "## How", "", *(f"* {line}" for line in [*reasons(record), *studies.conditions(record)])]
    return "\n".join(out) + "\n"


def sentence(before: str, key: str) -> str:
    """What somebody wrote behind the mark of a claim."""
    match = re.search(rf"<!-- why {key} -->(.*?)<!-- end -->", before, re.DOTALL)
    return match[1] if match else NO_SENTENCE
