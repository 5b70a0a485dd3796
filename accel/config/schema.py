"""Every setting as one row: key, kind, default, help."""

from __future__ import annotations

import dataclasses
from typing import Any

from accel.errors import ConfigError

KINDS: dict[str, tuple[type, ...]] = {"str": (str,), "path": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}
_EXPECTED = {"str": "a string", "path": "a path", "int": "an integer", "float": "a number", "bool": "true or false"}
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        kind: a key of KINDS; a `path` of a file is relative to that file.
        default: None means "left to what the setting controls", as a recipe's own learning rate.
        minimum: of a number, inclusive.
        words: what may stand in the place of a number.
    """

    key: str
    kind: str
    default: Any
    help: str
    minimum: float | None = None
    words: tuple[str, ...] = ()

    def check(self, value: Any, where: str) -> Any:
        """`value` if it is of the kind and in range; `where` begins the error's sentence.

        Raises:
            ConfigError: names `where`, what was expected and what was found.
        """
        if isinstance(value, str) and value in self.words:
            return value
        # bool is an int in Python, but `iterations = true` is a mistake.
        right = isinstance(value, KINDS[self.kind]) and (self.kind == "bool" or not isinstance(value, bool))
        # A gate of NaN would pass whatever comes: no comparison with it is true.
        if not right or value != value:
            raise ConfigError(f"{where} must be {self.expected}, not {value!r}", remedy=self.help)
        if self.minimum is not None and value < self.minimum:
            raise ConfigError(f"{where} must be at least {self.minimum:g}, not {value!r}", remedy=self.help)
        return float(value) if self.kind == "float" else value

    def parse(self, text: str, where: str) -> Any:
        """Read the text of an environment variable; raises ConfigError as `check` does."""
        value: Any = text
        try:
            if text in self.words:
                pass
            elif self.kind == "bool":
                value = _parse_bool(text)
            elif self.kind in ("int", "float"):
                value = KINDS[self.kind][0](text)
        except ValueError as error:
            raise ConfigError(f"{where} must be {self.expected}, not {text!r}", remedy=self.help) from error
        return self.check(value, where)

    @property
    def expected(self) -> str:
        return " or ".join([_EXPECTED[self.kind], *self.words])


def _parse_bool(text: str) -> bool:
    word = text.strip().lower()
    if word not in (*_TRUE, *_FALSE, ""):
        raise ValueError(text)
    return word in _TRUE


SCHEMA: tuple[Setting, ...] = (
    Setting("device", "str", "auto", "where engines run: auto, cpu, cuda or cuda:N"),
    Setting("seed", "int", 0, "seed of training, of the measured inputs and of the order of variants", minimum=0),
    Setting("offline", "bool", False, "never open a connection"),
    Setting("cache_dir", "path", "", "datasets and trust records; empty: the platform's cache folder"),
    Setting("engines_dir", "path", "engines", "where accel export writes NAME.accel"),
    Setting("runs_dir", "path", "runs", "where accel train writes checkpoints and logs"),
    Setting("results_dir", "path", "results/local", "where accel bench writes its result sets"),
    Setting("export.precision", "str", "fp32", "precision of accel export where none is typed: fp32 or fp16"),
    Setting("export.opset", "int", None, "ONNX opset; unset: the exporter's own (17 for shipped models)", minimum=7),
    Setting("export.batch", "str", "1", "batch size of exported engines, or dynamic"),
    Setting("train.epochs", "int", None, "epochs; unset: as the recipe says", minimum=1),
    Setting("train.batch_size", "int", None, "images a step; unset: as the recipe says", minimum=1),
    Setting("train.lr", "float", None, "peak learning rate; unset: as the recipe says", minimum=0),
    Setting("train.weight_decay", "float", None, "weight decay; unset: as the recipe says", minimum=0),
    Setting("train.label_smoothing", "float", None, "label smoothing; unset: as the recipe says", minimum=0),
    Setting("track.to", "str", "none", "where accel train and accel bench log beside their own files: none or mlflow"),
    Setting("track.uri", "str", "", "MLflow's store; empty: MLFLOW_TRACKING_URI, else the database mlflow.db in runs_dir"),
    Setting("verify.data", "str", "", "images to verify on; empty: the dataset that the model was trained on"),
    Setting("verify.max_drop", "float", 0.5, "points of top-1 that a variant may lose against the reference", minimum=0),
    Setting("verify.min_top1", "float", None, "lowest top-1 in percent; unset: 85 for CIFAR-10, none otherwise", minimum=0),
    Setting("bench.warmup", "int", None, "untimed calls before each measurement; unset: 200, on a CPU 20", minimum=0),
    Setting(
        "bench.iterations",
        "int",
        None,
        "timed calls a variant, round and latency; unset: 2000, on a CPU 200; auto: 500 to 2000, found in the first round",
        minimum=1,
        words=("auto",),
    ),
    Setting("bench.rounds", "int", None, "fresh processes a variant; unset: 3", minimum=1),
    Setting("bench.max_rounds", "int", None, "fresh processes a variant whose rounds disagree; unset: 5, on a CPU no more", minimum=1),
    Setting("bench.threads", "int", None, "intra-op threads on a CPU; unset: the runtime's default", minimum=1),
)

PREFIXES: dict[str, Setting] = {
    "bench.python": Setting("bench.python.RUNTIME", "path", None, "interpreter of the workers of one runtime; unset: this one"),
}
"""Tables whose keys are free: the name is a runtime's, which this layer does not know."""

BY_KEY: dict[str, Setting] = {setting.key: setting for setting in SCHEMA}
