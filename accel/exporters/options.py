"""What a builder is told beside precision and batch, and how it is spelled on the command line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from accel.errors import UsageError

OFF = "off"
LEVELS = (0, 5)
DYNAMIC_BATCHES = (1, 1, 32)
"""Smallest, best and largest batch of a dynamic engine where none is typed."""

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_SIZE = re.compile(r"(\d+)\s*(?:([kmg])i?b?)?", re.IGNORECASE)
_CAPABILITY = re.compile(r"\d{1,2}\.\d")


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """Options of formats that are built by an optimiser; FormatInfo.options says which of them a format takes.

    Attributes:
        workspace: bytes of scratch memory that a layer may use; None leaves it to the builder, which takes all of the GPU's.
        optimization_level: 0 to 5; None is the builder's own, 3.
        timing_cache: a file, or `off`; None keeps one for this version and GPU in the cache folder.
        version_compatible: the plan also runs under later versions of the same major.
        hardware_compatible: the plan also runs on other GPUs from compute capability 8.0 on.
        tactic_sources: where kernels may come from, as `edge-mask-convolutions`; None is the builder's own choice.
        compute_capabilities: GPUs that the plan is for, as `8.6`; empty is the GPU of this machine.
        builds: how many plans are built, of which the fastest right one is kept.
        allow_mixed: keep a plan whose layers are partly in another precision, and record how many.
        min_batch, opt_batch, max_batch: of a dynamic batch; None takes DYNAMIC_BATCHES.
        tune: of a fused engine: choose the tiles of its chain by timing them on the GPU. tune_s: about how long, in seconds.
    """

    workspace: int | None = None
    optimization_level: int | None = None
    timing_cache: str | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    tactic_sources: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    builds: int = 1
    allow_mixed: bool = False
    min_batch: int | None = None
    opt_batch: int | None = None
    max_batch: int | None = None
    tune: bool = False
    tune_s: float = 60.0

    def __post_init__(self) -> None:
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"a workspace of {self.workspace} bytes holds nothing", remedy="--workspace 1GiB, or leave it out")
        low, high = LEVELS
        if self.optimization_level is not None and not low <= self.optimization_level <= high:
            raise UsageError(f"the optimization level {self.optimization_level} does not exist", remedy=f"choose one from {low} to {high}")
        if self.builds < 1:
            raise UsageError(f"{self.builds} builds make no plan", remedy="--builds 1 or more")
        if self.builds > 1 and self.timing_cache not in (None, OFF):
            raise UsageError(
                f"{self.builds} builds share no timings, so that {self.timing_cache} would be neither read nor written",
                remedy="leave --timing-cache out (the build that is kept has its own beside it), or build once",
            )
        if self.tune_s <= 0:
            raise UsageError(f"tiles cannot be tuned in {self.tune_s:g} s", remedy="--budget 60s")
        for text in self.compute_capabilities:
            if not _CAPABILITY.fullmatch(text):
                raise UsageError(f"{text!r} is no compute capability", remedy="spell it as in --compute-capability 8.6,8.9,12.0")
        small, best, large = self.batches
        if not 1 <= small <= best <= large:
            raise UsageError(
                f"the batch sizes {small}, {best} and {large} are not in order", remedy="--min-batch 1 --opt-batch 1 --max-batch 32"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> BuildOptions:
        """The options that `given` wrote down."""
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        return cls(**values)

    @property
    def batches(self) -> tuple[int, int, int]:
        """Smallest, best and largest batch of a dynamic engine."""
        small, best, large = DYNAMIC_BATCHES
        small = small if self.min_batch is None else self.min_batch
        best = max(best, small) if self.opt_batch is None else self.opt_batch
        return small, best, max(large, best) if self.max_batch is None else self.max_batch

    def given(self) -> dict[str, Any]:
        """The options that differ from the defaults, as plain data."""
        values = ((field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self))
        return {name: list(value) if isinstance(value, tuple) else value for name, value, default in values if value != default}


def flag_of(option: str) -> str:
    """`--compute-capability` of the field `compute_capabilities`."""
    if option == "tune_s":
        return "--budget"
    return "--" + option.replace("capabilities", "capability").replace("_", "-")


def parse_size(text: str) -> int:
    """`4GiB`, `512M` or a number of bytes → bytes; every unit is a power of 1024.

    Raises:
        UsageError: any other spelling.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise UsageError(f"{text!r} is no size", remedy="spell it 4GiB, 512MiB or as a number of bytes")
    return int(found[1]) * _UNITS[(found[2] or "").lower()]


def parse_list(text: str) -> tuple[str, ...]:
    """`8.6, 8.9` → (`8.6`, `8.9`); each once, in order.

    Raises:
        UsageError: nothing is named.
    """
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise UsageError(f"{text!r} names nothing", remedy="name one or more, with commas between them")
    return words
