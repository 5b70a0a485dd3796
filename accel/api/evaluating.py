"""How right a checkpoint is, class by class."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

from accel import device as devices
from accel import trainers
from accel.api import plots
from accel.api.models import find
from accel.api.settings import resolve
from accel.bench.verification import matched_labels
from accel.datasets import open_samples
from accel.engines import Bundle, module, trust
from accel.engines.manifest import MANIFEST_FILE
from accel.errors import UsageError
from accel.preprocess import Preprocess
from accel.progress import Progress, silent
from accel.trainers.evaluate import BATCH, confusion
from accel.types import Array, Checkpoint
from accel.verify.predict import batches

LOG_FILE = "log.csv"


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What was found.

    Attributes:
        classes: names in the order of the logits.
        confusion: images of class i (row) that were taken for class j (column).
    """

    checkpoint: Checkpoint
    data: str
    data_sha256: str
    device: str
    classes: tuple[str, ...]
    confusion: Array

    @property
    def top1(self) -> float:
        """In percent."""
        return 100 * int(self.confusion.trace()) / int(self.confusion.sum())

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a class: `class`, `images`, `right`, `top1` (percent, None without images), `mistaken_for` (most often, or None)."""
        found = []
        for number, name in enumerate(self.classes):
            counts = self.confusion[number].copy()
            images, right = int(counts.sum()), int(counts[number])
            counts[number] = 0
            worst = self.classes[int(counts.argmax())] if counts.any() else None
            found.append(
                {"class": name, "images": images, "right": right, "top1": 100 * right / images if images else None, "mistaken_for": worst}
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.checkpoint.name,
            "sha256": self.checkpoint.sha256,
            "data": self.data,
            "data_sha256": self.data_sha256,
            "device": self.device,
            "images": int(self.confusion.sum()),
            "top1": self.top1,
            "classes": self.rows(),
            "confusion": self.confusion.tolist(),
        }


def evaluate(
    checkpoint: Path | str = "resnet18",
    *,
    data: str | None = None,
    device: str | None = None,
    trusted: bool = False,
    plot: Path | str | None = None,
    progress: Progress = silent,
) -> Evaluated:
    """Run a checkpoint in FP32 (IEEE, no test-time augmentation) over labelled images.

    Args:
        checkpoint: a shipped name, a checkpoint folder or a bundle.
        data: `cifar10`, `imagefolder:DIR`, `npz:FILE` or `pkg.mod:iterable`; None is the test set of what the model was trained on.
        trusted: run code of a bundle that somebody else exported, or that a checkpoint names.
        plot: an .svg, .png or .pdf file for the confusion matrix and, where the checkpoint has its log, the curves of its training.

    Raises:
        UsageError, UnknownName: no such checkpoint, data without labels or of other classes, or another kind of plot.
        BundleMissing, DatasetMissing, DeviceUnavailable, MissingExtra, CorruptArtifact, UntrustedArtifact.
    """
    figure = None if plot is None else plots.file(plot)
    settings = resolve({"device": device})
    path = Path(checkpoint).expanduser()
    if (path / MANIFEST_FILE).is_file():
        bundle = Bundle.open(path)
        trust.demand_module(bundle, trusted)
        if data is None and not trusted:
            trust.demand_test_data(bundle)
        found = bundle.checkpoint
    else:
        found = find(str(checkpoint))
        if path.exists():
            trust.demand_checkpoint(found if data is None else dataclasses.replace(found, dataset=""), trusted, trainers.MODELS.values())
    spec = data or found.dataset
    if not spec:
        raise UsageError(f"{found.name} names no dataset of its own", remedy="name labelled images with --data")
    chosen = devices.parse(settings["device"])
    samples = open_samples(spec)
    labels = matched_labels(samples, found.labels)
    prepare = Preprocess.from_dict(found.preprocess).for_images(found.input) if found.preprocess else None
    network = module.build_module(found).to(chosen)
    matrix = confusion(network, batches(samples, prepare, BATCH, found.input), labels, found.num_classes, progress)
    names = found.labels or tuple(str(number) for number in range(found.num_classes))
    evaluated = Evaluated(found, samples.name, samples.sha256, chosen, names, matrix)
    if figure is not None:
        from accel.report.training import draw

        draw(figure, matrix, names, _log_of(found), title=f"{found.name} on {samples.name}: top-1 {evaluated.top1:.2f} %")
    return evaluated


def _log_of(checkpoint: Checkpoint) -> list[dict[str, str]]:
    path = checkpoint.path / LOG_FILE
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
