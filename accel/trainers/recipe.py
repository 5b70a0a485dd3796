"""A training recipe: every number that a run depends on, as flat TOML from which the run repeats."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel.errors import ConfigError, UnknownName
from accel.files import write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CHOICES = {
    "split": ("full", "45k/5k"),
    "optimizer": ("sgd", "adamw", "muon"),
    "schedule": ("cosine", "triangular"),
    "flip": ("alternating", "random", "none"),
    "amp": ("bf16", "fp16", "off"),
    "compile_mode": ("default", "reduce-overhead"),
    "loader": ("gpu", "workers"),
}
"""The fields that take one word out of a closed list."""

LIMITS: dict[str, tuple[float, float]] = {
    "limit": (0, float("inf")),
    "image_size": (0, 4096),
    "train_fraction": (0.0001, 1),
    "epochs": (1, float("inf")),
    "batch_size": (1, float("inf")),
    "accumulate": (1, float("inf")),
    "lr": (0, float("inf")),
    "momentum": (0, 1),
    "bias_lr": (0, float("inf")),
    "muon_lr": (0, float("inf")),
    "muon_momentum": (0, 1),
    "clip_norm": (0, float("inf")),
    "weight_decay": (0, float("inf")),
    "bias_weight_decay": (0, float("inf")),
    "whitening_epochs": (0, float("inf")),
    "warmup_epochs": (0, float("inf")),
    "label_smoothing": (0, 1),
    "crop_padding": (0, 31),
    "cutout": (0, 1024),
    "randaugment": (0, 14),
    "randaugment_magnitude": (0, 30),
    "mixup": (0, float("inf")),
    "cutmix": (0, float("inf")),
    "upscale": (0, 1024),
    "rotation": (0, 180),
    "translation": (0, 1),
    "scaling": (0, 0.9),
    "shear": (0, 45),
    "kd_temperature": (0.01, float("inf")),
    "kd_alpha": (0, 1),
    "ema_decay": (0, 1),
    "seed": (0, 2**63 - 1),
}
"""Smallest and largest value of each number."""

NEEDS = {"kd_temperature": "teacher", "kd_alpha": "teacher", "randaugment_magnitude": "randaugment"}
"""Fields that do nothing unless another is set."""

FOLDER = Path(__file__).parent / "recipes"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What one training run does.

    Attributes:
        model: a key of `accel.trainers.MODELS`.
        dataset: a name that `accel.datasets.load` knows, or `imagefolder:DIR`; only its train set is learned from. DIR holds `train`
            and may hold `val`, which takes the place of a test set; in both there is one folder of images for each class.
        image_size: side in pixels that the images of an `imagefolder:` are fitted into; 0 for a dataset that has a size of its own.
        loader: `gpu` keeps the train images on the device and augments an epoch at once; `workers` reads, decodes and resizes each
            batch in processes of its own (a DataLoader's) and augments it on the device.
        split: `full` learns from the whole train set and measures the test set once, after the last epoch; `45k/5k` holds
            the same tenth of the train set back in every run, measures it after every epoch and leaves the test set alone.
        limit: use only the first N images of the train set, for trials; 0 uses all. Of an `imagefolder:` they are N of all classes, the
            same in every run.
        train_fraction: of every class the share that is learned from, drawn by the seed after limit and split; 1 learns from all.
        epochs: passes over the train images; the last, partial batch of each shuffled pass is dropped.
        batch_size: images that go through the network at a time; of several processes, through all of theirs together.
        accumulate: batches whose mean gradient makes one update; the last update of an epoch takes what is left.
        optimizer: `sgd` with Nesterov's correction; `adamw`; `muon` for the filters of convolutions without bias and groups, which a
            BatchNorm follows, and `sgd` for the rest.
        schedule: after `warmup_epochs` (linear) down to 0, by half a `cosine` or, `triangular`, in a straight line.
        lr: highest learning rate, of all that Muon does not update.
        bias_lr: the same for tensors of one dimension (BatchNorm and biases); 0 gives them `lr` too.
        momentum: of SGD; AdamW's first beta (the second is 0.999).
        muon_lr, muon_momentum: of Muon alone.
        clip_norm: largest norm of all gradients together, to which longer ones are scaled down; 0 leaves them.
        weight_decay: L2, on tensors of two or more dimensions only: not on BatchNorm and not on biases.
        bias_weight_decay: L2 on these.
        whitening_epochs: for how long the bias of a whitening convolution, one whose weights are frozen, learns; its rate comes down to 0
            by then. 0: as long as all others.
        warmup_epochs: may be a fraction; never more than a quarter of the epochs, so that a short trial still cools down.
        label_smoothing: share of the target spread over all classes.
        crop_padding: pixels of reflected border that a random crop may reach into; 0 crops nothing.
        flip: `alternating` mirrors each image every second epoch, starting at random; `random` tosses a coin; `none`.
        cutout: side in pixels of the square set to the mean colour, clipped at the border; 0 leaves it out.
        randaugment: random operations an image (`accel.trainers.randaugment` names the 14); 0 leaves them out.
        randaugment_magnitude: how strong they are, 0 to 30.
        mixup, cutmix: alpha of the Beta distribution of an image's own share; 0 leaves it out; with both, a coin decides for each image.
        upscale: side in pixels to which batches are enlarged (bilinear) before the affine map and the network, which must
            enlarge what it is tested on in the same way itself; 0 leaves them.
        rotation, shear: largest random angle, in degrees; scaling: largest change of size, and translation: largest shift, both as shares.
        teacher: shipped models or checkpoint folders, with commas between, whose mean answer is followed; empty trains on the labels alone.
        kd_temperature: T, by which both sides' logits are divided.
        kd_alpha: the loss is kd_alpha · T² · KL + (1 - kd_alpha) · cross-entropy.
        ema_decay: of the weights and BatchNorm statistics that are kept, per step; 0 keeps the last step's.
        amp: autocast dtype; `off` computes in FP32, and so does a CPU for which nobody asked for another.
        compile: torch.compile on a GPU; a CPU always runs eagerly.
        compile_mode: `reduce-overhead` replays CUDA graphs, for thin networks whose steps wait for the host's launches.
        channels_last: NHWC in memory.
        deterministic: only algorithms of torch that give the same bits in every run on the same machine.
        seed: of initial weights, order, augmentation and dropout.
    """

    model: str
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_epochs: float
    label_smoothing: float
    cutout: int
    ema_decay: float
    dataset: str = "cifar10"
    image_size: int = 0
    loader: str = "gpu"
    split: str = "full"
    limit: int = 0
    train_fraction: float = 1.0
    accumulate: int = 1
    optimizer: str = "sgd"
    schedule: str = "cosine"
    bias_lr: float = 0.0
    momentum: float = 0.9
    muon_lr: float = 0.24
    muon_momentum: float = 0.6
    clip_norm: float = 0.0
    bias_weight_decay: float = 0.0
    whitening_epochs: int = 0
    randaugment: int = 0
    randaugment_magnitude: float = 9.0
    mixup: float = 0.0
    cutmix: float = 0.0
    upscale: int = 0
    rotation: float = 0.0
    translation: float = 0.0
    scaling: float = 0.0
    shear: float = 0.0
    crop_padding: int = 4
    flip: str = "alternating"
    teacher: str = ""
    kd_temperature: float = 4.0
    kd_alpha: float = 0.9
    amp: str = "bf16"
    compile: bool = True
    compile_mode: str = "default"
    channels_last: bool = True
    deterministic: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(f"{key} = {getattr(self, key)!r} is not one of {', '.join(allowed)}", remedy=f"set {key} to one of these")
        for key, (low, high) in LIMITS.items():
            # Written this way round so that NaN is refused too.
            if not low <= getattr(self, key) <= high:
                raise ConfigError(f"{key} = {getattr(self, key)!r} is outside [{low}, {high}]", remedy=f"set {key} inside it")

    def replaced(self, values: Mapping[str, Any], where: str = "the overrides") -> Recipe:
        """This recipe with other values; a value of None leaves the field as it is.

        Raises:
            ConfigError: an unknown field, a wrong type or a value out of range; names the field and `where`.
        """
        checked = {key: _typed(key, value, where) for key, value in values.items() if value is not None}
        return dataclasses.replace(self, **checked)

    def demand_effect(self, typed: Mapping[str, Any]) -> None:
        """Refuse a value that somebody typed and that this recipe would ignore.

        Raises:
            ConfigError: names the field, and the one that it needs.
        """
        for key, needed in NEEDS.items():
            if typed.get(key) is not None and not getattr(self, needed):
                raise ConfigError(f"{key} = {typed[key]!r} does nothing without {needed}", remedy=f"give {needed} too, or leave {key} out")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        return "".join(f"{key} = {_toml_value(value)}\n" for key, value in self.to_dict().items())


_TYPES = {field.name: str(field.type) for field in dataclasses.fields(Recipe)}


def default_recipe(model: str) -> Recipe:
    """The recipe of `model` by itself: what its shipped weights were trained by, or a start that nobody tuned where none are shipped.

    A student's has no teacher. How the shipped ones were distilled is in benchmarks/trainings.toml and in their own recipe.toml.
    """
    path = FOLDER / f"{model}.toml"
    if not path.is_file():
        raise UnknownName("recipe", model, [found.stem for found in FOLDER.glob("*.toml")])
    return read_recipe(path)


def write_recipe(recipe: Recipe, path: Path) -> None:
    write_text(path, recipe.to_toml())


def read_recipe(path: Path, base: Recipe | None = None) -> Recipe:
    """Read flat TOML; keys that the file leaves out come from `base`.

    Raises:
        ConfigError: the file is absent or no TOML, or a key is unknown, missing (without `base`) or of the wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"the recipe {path} cannot be read ({error.strerror})", remedy="name an existing file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {path} is not TOML: {error}", remedy="mend that line") from error
    checked = {key: _typed(key, value, f"{path}, line {_line_of(key, text)}") for key, value in values.items()}
    try:
        if base is not None:
            return dataclasses.replace(base, **checked)
        missing = [field.name for field in dataclasses.fields(Recipe) if field.name not in checked and field.default is dataclasses.MISSING]
        if missing:
            raise ConfigError(f"it has no {', '.join(missing)}", remedy="add them")
        return Recipe(**checked)
    except ConfigError as error:
        key = error.message.split(" ", 1)[0]
        line = f", line {_line_of(key, text)}" if key in checked else ""
        raise ConfigError(f"{path}{line}: {error.message}", remedy=error.remedy) from error


def _typed(key: str, value: Any, where: str) -> Any:
    if key not in _TYPES:
        raise ConfigError(f"{where}: a recipe has no key {key!r}", remedy=f"use one of: {', '.join(_TYPES)}")
    want = _TYPES[key]
    if want == "float" and type(value) is int:
        return float(value)
    if type(value).__name__ != want:
        raise ConfigError(f"{where}: {key} = {value!r} is of type {type(value).__name__}, not {want}", remedy=f"give {key} as {want}")
    return value


def _line_of(key: str, text: str) -> int:
    pattern = re.compile(rf"\s*(\[+\s*)?[\"']?{re.escape(key)}[\"']?\s*[=.\]]")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
