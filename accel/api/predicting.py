"""What an engine takes pictures for: decoded, fitted and normalised as `LoadedEngine.predict` does, then the likeliest classes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accel import device as devices
from accel import optional, pictures
from accel.api import bundles, plots
from accel.api.loading import load
from accel.api.settings import resolve
from accel.engines import Bundle
from accel.errors import CorruptArtifact, DatasetMissing, PrecisionError, UsageError
from accel.pictures import Picture
from accel.preprocess import Preprocess
from accel.progress import Progress, silent
from accel.report import contact_sheet
from accel.runtimes.loaded import LoadedEngine
from accel.types import Array


@dataclasses.dataclass(frozen=True)
class Guess:
    """One class: its name (its number where the bundle has no names), its place among the logits, and its softmax probability."""

    label: str
    index: int
    probability: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One picture: its likeliest classes, the first the likeliest, or what is wrong with it."""

    file: str
    top: tuple[Guess, ...] = ()
    error: CorruptArtifact | None = None

    @property
    def shown(self) -> str:
        """`file` for people and tables: what is not UTF-8 in a name is escaped."""
        return self.file.encode("utf-8", "backslashreplace").decode("utf-8")

    def to_dict(self) -> dict[str, Any]:
        """`file` and `top`, or `file`, `error` and `remedy`."""
        if self.error is not None:
            return {"file": self.file, "error": self.error.message, "remedy": self.error.remedy}
        return {"file": self.file, "top": [dataclasses.asdict(guess) for guess in self.top]}

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a class: `file`, `rank` from 1, `label`, `index`, `probability`, `error`; a single one for an error."""
        blank = {"file": self.shown, "rank": None, "label": None, "index": None, "probability": None, "error": None}
        if self.error is not None:
            return [{**blank, "error": self.error.message}]
        return [{**blank, "rank": rank, **dataclasses.asdict(guess)} for rank, guess in enumerate(self.top, start=1)]


@dataclasses.dataclass(frozen=True)
class Predicted:
    """All pictures in their order.

    Attributes:
        model, variant, device: what answered.
        skipped: files in the folders that are no pictures by their names.
        drawn: pictures on the contact sheet, None without one.
    """

    model: str
    variant: str
    device: str
    pictures: tuple[Prediction, ...]
    skipped: int
    drawn: int | None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is no result and somebody should know."""
        said = [f"{len(self.pictures)} picture{'s' * (len(self.pictures) != 1)} by {self.model}, {self.variant} on {self.device}"]
        if self.skipped:
            said.append(f"{self.skipped} other file{'s' * (self.skipped != 1)} skipped: no picture{'s' * (self.skipped != 1)} by name")
        if self.drawn is not None and self.drawn < len(self.pictures):
            said.append(f"the contact sheet has the first {self.drawn} pictures")
        return tuple(said)

    def rows(self) -> list[dict[str, Any]]:
        """A mapping a class of a picture, as `Prediction.rows`."""
        return [row for picture in self.pictures for row in picture.rows()]

    @property
    def problem(self) -> CorruptArtifact | None:
        """What the command ends with: None if every picture was read."""
        failed = [picture for picture in self.pictures if picture.error is not None]
        return CorruptArtifact(f"{len(failed)} of {len(self.pictures)} pictures could not be read") if failed else None


@dataclasses.dataclass(frozen=True)
class _Item:
    """One picture on its way: what it is, then as the model sees it (uint8 height×width×C), or why not."""

    file: str
    picture: Any = None
    pixels: Array | None = None
    error: CorruptArtifact | None = None


def predict(
    bundle: Path | str,
    images: Picture | Sequence[Picture],
    top_k: int = 5,
    *,
    runtime: str = "auto",
    device: str | None = None,
    trusted: bool = False,
    threads: int | None = None,
    plot: Path | str | None = None,
    each: Callable[[Prediction], None] | None = None,
    progress: Progress = silent,
) -> Predicted:
    """The likeliest classes of pictures of any size and kind; a picture that cannot be read has its `error`, and the rest go on.

    Args:
        bundle: a folder `NAME.accel`, or a model's name in the engines folder; a shipped model is exported first if need be.
        images: paths, bytes of files, Pillow images or uint8 RGB arrays (H×W×3), one or a sequence; a folder stands for the pictures
            below it, sorted by path.
        top_k: classes of each picture, at most the model's.
        runtime, device, trusted, threads: as `load`.
        plot: an .svg, .png or .pdf file for a contact sheet: every picture as the model sees it, beside its classes.
        each: called with each prediction as soon as it is there.

    Returns:
        The predictions in the order of the pictures. `problem` is set if one of them could not be read.

    Raises:
        DatasetMissing: there are no pictures. UsageError: the model is no classifier of pictures, or what was passed is no picture.
        PrecisionError: the engine's logits are not finite.
        Beside these whatever `load` raises.

    >>> found = accel.predict("engines/resnet18.accel", ["cat.jpg", "more/"], top_k=3)  # doctest: +SKIP
    >>> found.pictures[0].top[0]  # doctest: +SKIP
    Guess(label='cat', index=3, probability=0.97)
    """
    if top_k < 1:
        raise UsageError(f"top_k = {top_k}", remedy="ask for at least 1 class")
    figure = None if plot is None else plots.file(plot)
    optional.require("PIL.Image", extra=pictures.EXTRA)
    listed, skipped = _listed(images)
    settings = resolve({"device": None if device == "auto" else device})
    place = devices.parse(settings["device"])
    names = [] if runtime == "auto" else [runtime]
    opened = bundles.open_or_export(bundle, names, engines_dir=settings["engines_dir"], device=place, progress=progress)
    labels, prepare = classes_of(opened), preparation_of(opened)
    done: list[Prediction] = []
    cells: list[contact_sheet.Cell] = []
    with load(opened.path, runtime, place, threads, strict=False, trusted=trusted) as engine:
        for batch in _batches((_seen(item, prepare) for item in listed), engine.batch):
            for item, prediction in zip(batch, _predictions(engine, batch, labels, top_k), strict=True):
                done.append(prediction)
                if each is not None:
                    each(prediction)
                if figure is not None and len(cells) < contact_sheet.MOST:
                    cells.append(_cell(item, prediction))
            progress("predict", len(done), len(listed))
        variant = str(engine.variant)
    if figure is not None:
        of_all = f", the first {len(cells)} of {len(done)} pictures" if len(cells) < len(done) else ""
        contact_sheet.draw(figure, cells, title=f"{opened.name}, {variant} on {place}{of_all}")
    return Predicted(opened.name, variant, place, tuple(done), skipped, None if figure is None else len(cells))


def _listed(images: Any) -> tuple[list[_Item], int]:
    """What there is to predict, and the number of other files in the folders."""
    found: list[_Item] = []
    skipped, folders = 0, []
    for number, picture in enumerate(pictures.one_by_one(images)):
        if isinstance(picture, str | os.PathLike) and Path(picture).is_dir():
            inside = pictures.below(Path(picture))
            found += [_Item(str(file), file) for file in inside.files]
            found += [_Item(folder, error=problem) for folder, problem in inside.problems.items()]
            skipped += inside.others
            folders.append(str(picture))
        else:
            found.append(_Item(_name(picture, number), picture))
    if not found:
        where = f"{', '.join(folders)} ({skipped} other files)" if folders else "what was passed"
        raise DatasetMissing(f"there are no pictures in {where}", remedy=f"name pictures, or a folder with {', '.join(pictures.SUFFIXES)}")
    return found, skipped


def _name(picture: Any, number: int) -> str:
    if isinstance(picture, str | os.PathLike):
        return str(picture)
    own = getattr(picture, "filename", "") if pictures.is_pillow(picture) else ""
    return str(own) or f"image {number}"


def classes_of(bundle: Bundle) -> tuple[str, ...]:
    """The classes in the order of the logits; their numbers where they have no names."""
    shape = bundle.outputs[0].shape
    if len(bundle.outputs) != 1 or len(shape) != 2 or not isinstance(shape[1], int):
        outputs = ", ".join(f"{spec.name} {'x'.join(map(str, spec.shape))}" for spec in bundle.outputs)
        raise UsageError(f"{bundle.path} is no classifier: its output is {outputs}", remedy="call the engine that accel.load returns")
    if bundle.labels and len(bundle.labels) != shape[1]:
        raise CorruptArtifact(f"{bundle.path} has {len(bundle.labels)} labels for {shape[1]} classes", remedy="export it again")
    return bundle.labels or tuple(str(number) for number in range(shape[1]))


def preparation_of(bundle: Bundle) -> Preprocess:
    """The bundle's preprocessing, held against its input."""
    if not bundle.preprocess or len(bundle.inputs) != 1:
        raise UsageError(
            f"{bundle.path} does not say how a picture becomes its input",
            remedy="preprocess yourself and call the engine that accel.load returns",
        )
    prepare = Preprocess.from_dict(bundle.preprocess)
    size = (prepare.height, prepare.width)
    makes = (1, *size, len(prepare.mean)) if bundle.inputs[0].is_pixels else (1, len(prepare.mean), *size)
    if not bundle.inputs[0].accepts(makes):
        raise CorruptArtifact(
            f"{bundle.path} preprocesses pictures to {makes[1:]}, and its input is {bundle.inputs[0].shape}", remedy="export it again"
        )
    return prepare


def _seen(item: _Item, prepare: Preprocess) -> _Item:
    if item.error is not None:
        return item
    try:
        return dataclasses.replace(item, picture=None, pixels=prepare.fit(pictures.read(item.picture, item.file)))
    except CorruptArtifact as error:
        return dataclasses.replace(item, picture=None, error=error)


def _batches(items: Iterator[_Item], size: int) -> Iterator[list[_Item]]:
    """In order, `size` readable pictures at a time; broken ones go with them."""
    batch: list[_Item] = []
    for item in items:
        batch.append(item)
        if sum(item.pixels is not None for item in batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _predictions(engine: LoadedEngine, batch: Sequence[_Item], labels: tuple[str, ...], top_k: int) -> Iterator[Prediction]:
    whole = [item.pixels for item in batch if item.pixels is not None]
    logits = iter(engine.predict(np.stack(whole)) if whole else ())
    for item in batch:
        if item.pixels is None:
            yield Prediction(item.file, error=item.error)
            continue
        yield Prediction(item.file, guesses(engine, item.file, next(logits), labels, top_k))


def guesses(engine: LoadedEngine, file: str, logits: Array, labels: Sequence[str], top_k: int) -> tuple[Guess, ...]:
    """The likeliest classes of one row of logits, at most as many as there are.

    Args:
        file: what the error calls the picture.

    Raises:
        PrecisionError: the logits are not finite.
    """
    found = probabilities(logits)
    if not np.isfinite(found).all():
        raise PrecisionError(
            f"{engine.variant} on {engine.device} answers {file} with logits that are not finite",
            remedy="accel verify says which variants are right; name another with --runtime",
        )
    # Stable, so that of equals the class with the lower number comes first, everywhere.
    order = np.argsort(-found, kind="stable")[:top_k]
    return tuple(Guess(labels[index], int(index), float(found[index])) for index in order)


def probabilities(logits: Array) -> Array:
    """Softmax over one row of logits, in float64."""
    wide = np.asarray(logits, np.float64)
    powers = np.exp(wide - wide.max())
    return np.asarray(powers / powers.sum())


def _cell(item: _Item, prediction: Prediction) -> contact_sheet.Cell:
    bars = [(guess.label, guess.probability) for guess in prediction.top]
    return contact_sheet.Cell(item.file, item.pixels, bars, "" if item.error is None else item.error.message)
