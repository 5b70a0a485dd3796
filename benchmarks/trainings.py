"""The trainings that `train_all.py` can make: a table in TOML, the jobs that it stands for, and how far each of them is."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomllib

from accel.errors import ConfigError, UnknownName
from accel.trainers.recipe import Recipe, default_recipe

TABLE = Path(__file__).with_name("trainings.toml")
KEYS = {"name", "like", "model", "groups", "teachers", "recipe", "seconds", "bar"}
INHERITED = ("model", "teachers", "seconds")
"""What `like` takes over as it is; `recipe` is merged, and a bar holds for the entry that has it."""

START_S = 60.0
"""Of a job's estimate, what a resumed run needs again: start and compilation."""

NAME = re.compile(r"[A-Za-z0-9._-]+")
DONE, UNFINISHED, NEW = "done", "unfinished", "new"


@dataclasses.dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        name: of its folder in OUT.
        overrides: field of Recipe → value, beside the seed and the teachers.
        teachers: names of the jobs whose checkpoints its recipe names.
        seconds: estimate, alone on one GPU.
        bar: top-1 on the test set that is needed; None where nothing is.
    """

    name: str
    model: str
    seed: int
    groups: frozenset[str]
    overrides: Mapping[str, Any]
    teachers: tuple[str, ...]
    seconds: float
    bar: float | None

    def recipe(self, further: Mapping[str, Any] | None = None) -> Recipe:
        """The whole recipe; teachers are named as folders beside the job's own, so no path of a machine gets into a checkpoint."""
        values = {**self.overrides, "seed": self.seed, "teacher": ",".join(self.teachers), **(further or {})}
        return default_recipe(self.model).replaced(values, f"the job {self.name}")


def read_table(path: Path = TABLE) -> tuple[list[Job], list[str]]:
    """The jobs in the order of the file, and the patterns of `carry`.

    Raises:
        ConfigError: the file cannot be read, or an entry is not as the head of trainings.toml says.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the table {path} cannot be read: {error}", remedy="name an existing TOML file with --table") from error
    entries: dict[str, dict[str, Any]] = {}
    jobs: dict[str, Job] = {}
    for entry in data.get("job", []):
        whole = _completed(entry, entries, path)
        entries[whole["name"]] = whole
        for seed in sorted({seed for seeds in whole["groups"].values() for seed in seeds}):
            job = _job(whole, seed)
            missing = [name for name in job.teachers if name not in jobs]
            if job.name in jobs or missing:
                what = f"the teachers {', '.join(missing)} come after it or not at all" if missing else "it is there twice"
                raise ConfigError(f"{path}: the job {job.name}: {what}", remedy="mend the table")
            jobs[job.name] = job
    return list(jobs.values()), list(data.get("carry", []))


def _completed(entry: Mapping[str, Any], earlier: Mapping[str, dict[str, Any]], path: Path) -> dict[str, Any]:
    name = str(entry.get("name"))
    like = earlier.get(entry["like"]) if "like" in entry else {}
    if like is None or not NAME.fullmatch(name) or set(entry) - KEYS:
        what = f"like = {entry['like']!r} names no earlier entry" if like is None else f"bad name or keys {sorted(set(entry) - KEYS)}"
        raise ConfigError(f"{path}: the entry {name}: {what}", remedy=f"use the keys {', '.join(sorted(KEYS))}")
    whole = {key: like[key] for key in INHERITED if key in like} | dict(entry)
    whole["recipe"] = {**like.get("recipe", {}), **entry.get("recipe", {})}
    if lacking := [key for key in ("model", "groups", "seconds") if key not in whole]:
        raise ConfigError(f"{path}: the entry {name} has no {', '.join(lacking)}", remedy="add them")
    return whole


def _job(entry: Mapping[str, Any], seed: int) -> Job:
    groups = frozenset(group for group, seeds in entry["groups"].items() if seed in seeds)
    teachers = tuple(entry.get("teachers", ()))
    name = f"{entry['name']}-s{seed}"
    return Job(name, entry["model"], seed, groups, entry["recipe"], teachers, float(entry["seconds"]), entry.get("bar"))


def chosen(jobs: Sequence[Job], words: Sequence[str], without: Sequence[str] = (), *, in_order: bool = False) -> list[Job]:
    """The jobs that `words` name, and the teachers that they need, in the order of the table.

    Args:
        words: groups, names, or patterns of names as `student_?-s0`.
        without: the same, of what is left out; a teacher that is needed stays.
        in_order: in the order of `words` instead, a teacher where its first pupil stands.

    Raises:
        UnknownName: a word that names nothing.
    """
    known = sorted({group for job in jobs for group in job.groups} | {job.name for job in jobs})

    def named(word: str) -> set[str]:
        found = {job.name for job in jobs if word in job.groups or fnmatch.fnmatchcase(job.name, word)}
        if not found:
            raise UnknownName("job or group", word, known)
        return found

    wanted = set().union(*map(named, words)) - set().union(*map(named, without))
    by_name = {job.name: job for job in jobs}
    waiting = list(wanted)
    while waiting:
        needed = set(by_name[waiting.pop()].teachers) - wanted
        wanted |= needed
        waiting += needed
    found = [job for job in jobs if job.name in wanted]
    if in_order:
        place = {job.name: next((at for at, word in enumerate(words) if job.name in named(word)), len(words)) for job in found}
        # From behind, so that a pupil's place is settled before its teachers ask for it.
        for job in reversed(found):
            for teacher in job.teachers:
                place[teacher] = min(place[teacher], place[job.name])
        found.sort(key=lambda job: place[job.name])
    return found


def state(folder: Path, wanted: Recipe) -> str:
    """DONE, UNFINISHED (a state that `--resume` takes) or NEW.

    Raises:
        ConfigError: the folder holds a finished training by another recipe; names what differs.
    """
    if (folder / "checkpoint.json").is_file():
        recorded = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))["recipe"]
        differing = {key: recorded.get(key) for key, value in wanted.to_dict().items() if recorded.get(key, value) != value}
        if differing:
            said = ", ".join(f"{key} {value!r} instead of {getattr(wanted, key)!r}" for key, value in differing.items())
            raise ConfigError(f"{folder} was trained by another recipe: {said}", remedy="remove the folder, or choose another --out")
        return DONE
    return UNFINISHED if (folder / "state.pt").is_file() else NEW


def epochs_done(folder: Path) -> int:
    """Whole epochs on record, of a finished run or of one under way."""
    return len(log_rows(folder))


def remaining_s(job: Job, folder: Path, recipe: Recipe) -> float:
    """What is left of the estimate: 0 for a finished job, the epochs to go and START_S for one that is resumed."""
    found = state(folder, recipe)
    if found != UNFINISHED:
        return 0.0 if found == DONE else job.seconds
    return min(job.seconds, START_S + job.seconds * max(0, recipe.epochs - epochs_done(folder)) / recipe.epochs)


def facts(folder: Path) -> dict[str, Any]:
    """What a run's files say of it: accuracy in percent, training time, images a second (the median epoch's); None where they do not."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except OSError:
        run = {}
    rates = [float(row["images_per_s"]) for row in log_rows(folder) if row.get("images_per_s")]
    found = {key: run.get(key) for key in ("top1", "val_top1", "train_s", "peak_mib", "device")}
    found["compile_s"] = run.get("compilation", {}).get("compile_s")
    return {**found, "images_per_s": statistics.median(rates) if rates else None, "epochs_done": epochs_done(folder)}


def log_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of log.csv, or of the unfinished log; empty without either."""
    for name in ("log.csv", "log.partial.csv"):
        if (folder / name).is_file():
            with open(folder / name, newline="", encoding="utf-8") as stream:
                return list(csv.DictReader(stream))
    return []


def chains(jobs: Iterable[Job], left_s: Mapping[str, float]) -> dict[str, float]:
    """Seconds from a job's begin to the end of the longest row of jobs that wait for one another; what has the longest goes first."""
    found: dict[str, float] = {}
    # A job stands after its teachers, so from behind every pupil is known before its teacher is asked.
    ordered = list(jobs)
    for job in reversed(ordered):
        pupils = [found[other.name] for other in ordered if job.name in other.teachers and other.name in found]
        found[job.name] = left_s[job.name] + max(pupils, default=0.0)
    return found
