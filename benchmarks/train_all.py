#!/usr/bin/env python3
"""Make the trainings of trainings.toml on the GPUs of one host, each in a process of its own, in the time that there is.

    python benchmarks/train_all.py list final
    python benchmarks/train_all.py run final teachers --out runs --gpus 0,1 --per-gpu 3 --deadline 560 --collect collected
    python benchmarks/train_all.py collect --out runs --to collected
    python benchmarks/train_all.py unpack collected --to runs

What is named are groups (first, final, teachers, fractions, tune), jobs, or patterns of jobs (`student_?-s0`); teachers come by themselves.
What the longest row of trainings waits for begins first; with --in-order, what is named first. After DEADLINE seconds whatever runs gets
an interrupt and at most 20 more; the state of its last whole epoch stays. The same command again skips what is finished and resumes
what is not. summary.json in OUT is written after every job, and with --collect the files that travel as well. On a host with memory to
spare, an OUT in /dev/shm spares the wait for the disk after every epoch.

Exit code 0: all are finished; 1: a training failed; 2: the request is wrong; 3: some are not finished, run it again; 130: interrupted.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accel.errors import AccelError, UsageError
from benchmarks import collecting, trainings
from benchmarks.scheduling import FAILED, REFUSED, Host, Options, interruptible, say, write_summary
from benchmarks.trainings import DONE, Job

HEADINGS = ("job", "status", "epochs", "top-1", "bar", "val", "train_s", "images/s", "peak MiB", "wall_s", "gpu", "note")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text, a line each; a top-1 under its bar has an exclamation mark."""
    lines = [list(HEADINGS)]
    for row in rows:
        top1 = number(row["top1"], 2) + ("!" if row["reached"] is False else "")
        done = f"{row['epochs_done']}/{row['epochs']}"
        numbers = [top1, number(row["bar"], 1), number(row["val_top1"], 2), number(row["train_s"], 0), number(row["images_per_s"], 0)]
        numbers += [number(row["peak_mib"], 0), number(row["wall_s"], 0)]
        lines.append([row["job"], row["status"], done, *numbers, str(row["gpu"] or "-"), " ".join(row["note"].split())])
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines)


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def run(arguments: argparse.Namespace) -> int:
    jobs, ranks = chosen(arguments), collecting.ranked(*trainings.read_table(arguments.table))
    gpus = tuple(arguments.gpus.split(","))
    trainer = tuple(shlex.split(arguments.trainer)) if arguments.trainer else Options.trainer
    # Two trainings on one GPU share it; that each then takes half as long again is an assumption.
    pace = arguments.pace or 0.5 * (arguments.per_gpu + 1)
    further = dict(assignment(text) for text in arguments.set)
    options = Options(arguments.out, gpus, arguments.per_gpu, arguments.deadline, pace, trainer, further, arguments.in_order)

    def record(host: Host) -> None:
        write_summary(host)
        if arguments.collect is not None:
            try:
                collecting.collect(arguments.out, arguments.collect, ranks)
            except OSError as error:
                # The trainings that still run are worth more than this copy of the finished ones.
                say(f"not collected: {error}")

    with interruptible():
        host = Host(jobs, options, on_change=record)
        try:
            host.run()
        except KeyboardInterrupt:
            say("interrupted")
            return 130
        finally:
            record(host)
            sys.stdout.write(table(host.rows()))
    found = set(host.status.values())
    return 1 if found & {FAILED, REFUSED} else 3 if found - {DONE} else 0


def chosen(arguments: argparse.Namespace) -> list[Job]:
    return trainings.chosen(trainings.read_table(arguments.table)[0], arguments.jobs, arguments.without, in_order=arguments.in_order)


def show(arguments: argparse.Namespace) -> int:
    jobs = chosen(arguments)
    for job in jobs:
        print(f"{job.name:26} {job.seconds:5.0f} s  {','.join(sorted(job.groups)):24} {' '.join(job.teachers)}".rstrip())
    print(f"{len(jobs)} jobs, {sum(job.seconds for job in jobs):.0f} s one after another (estimates)")
    return 0


def collect(arguments: argparse.Namespace) -> int:
    ranks = collecting.ranked(*trainings.read_table(arguments.table))
    left_out = collecting.collect(arguments.out, arguments.to, ranks, part_mib=arguments.part_mib, total_mib=arguments.total_mib)
    for name in left_out:
        say(f"left out: {name}")
    return 0


def unpack(arguments: argparse.Namespace) -> int:
    print("\n".join(map(str, collecting.unpack(arguments.parts, arguments.to))))
    return 0


def assignment(text: str) -> tuple[str, Any]:
    """`epochs=2` → ("epochs", 2); the value is JSON, or a word as it is."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text!r} has no value", remedy="write --set epochs=2")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True, metavar="run | list | collect | unpack")
    # allow_abbrev is off: an option that is added later must not change what a shorter spelling means.
    made = {
        body: parts.add_parser(name, allow_abbrev=False)
        for name, body in {"run": run, "list": show, "collect": collect, "unpack": unpack}.items()
    }
    for body, part in made.items():
        part.set_defaults(body=body)
        if body is not unpack:
            part.add_argument("--table", type=Path, default=trainings.TABLE, metavar="FILE")
    for body in (run, show):
        made[body].add_argument("jobs", nargs="+", metavar="JOB", help="group, job, or pattern of jobs")
        made[body].add_argument("--without", action="append", default=[], metavar="JOB", help="group, job or pattern to leave out")
        made[body].add_argument("--in-order", action="store_true", help="as they are named here, not by the longest row")
    making = made[run]
    making.add_argument("--out", type=Path, required=True, metavar="DIR")
    making.add_argument("--gpus", default="0", metavar="0,1", help="numbers of GPUs, or cpu")
    making.add_argument("--per-gpu", type=int, default=1, metavar="K", help="trainings side by side on one GPU")
    making.add_argument("--deadline", type=float, metavar="SECONDS")
    making.add_argument("--pace", type=float, metavar="F", help="multiplies every estimate; default (K + 1) / 2")
    making.add_argument("--collect", type=Path, metavar="DIR", help="collect into DIR after every job")
    making.add_argument("--trainer", metavar="COMMAND", help="in the place of PYTHON -m accel train")
    making.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of every recipe, for trials")
    made[collect].add_argument("--out", type=Path, required=True, metavar="DIR")
    made[collect].add_argument("--to", type=Path, required=True, metavar="DIR")
    made[collect].add_argument("--part-mib", type=float, default=collecting.PART_MIB)
    made[collect].add_argument("--total-mib", type=float, default=collecting.TOTAL_MIB)
    made[unpack].add_argument("parts", type=Path, metavar="DIR", help="what collect wrote")
    made[unpack].add_argument("--to", type=Path, required=True, metavar="DIR")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    arguments = parsed(words)
    try:
        return int(arguments.body(arguments))
    except AccelError as error:
        say(f"train_all: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
