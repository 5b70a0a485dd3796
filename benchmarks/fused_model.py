"""The model of the fused chain (tiles.py) against what was measured, `kernels_us` of fused_check.py's files, and a fit of two constants.

    python benchmarks/fused_model.py results/h200/fused/check.json

Needs no GPU. Every convolution behind the first is fitted: µs = between + slope · body, body as tiles.py has it. Told are the root mean
square of what is left, the same with each network left out of the fit that predicts it, and what measurements of convolutions of one cut
(the same numbers in the model) differ among themselves: no fit of this model can be better than that. Tiles are not in those files: they
are taken to be those that the model chooses today.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fused_networks import NETWORKS

from accel.exporters.fused.describing import predicted_us
from accel.exporters.fused.plan import Step, make

SMS = 132


@dataclasses.dataclass(frozen=True)
class Measured:
    """One kernel of a chain: what it added to those before it, and what the model says."""

    network: str
    index: int
    step: Step
    us: float

    @property
    def predicted_us(self) -> float:
        return predicted_us(self.step, "chain", SMS)


def read(files: Iterable[Path]) -> Iterator[Measured]:
    """The kernels of files of fused_check.py.

    Raises:
        SystemExit: a file is of networks or plans that are others today.
    """
    for file in files:
        for row in json.loads(file.read_text())["rows"]:
            if row.get("kernels_us") is None:
                continue
            name = row["network"]
            steps = make(NETWORKS[name](), sms=SMS).steps if name in NETWORKS else ()
            if [f"step_{index:02}_{step.name}" for index, step in enumerate(steps)] != list(row["kernels_us"]):
                raise SystemExit(f"{file}: the kernels of {name} are not those of its plan today")
            for index, (step, us) in enumerate(zip(steps, row["kernels_us"].values(), strict=True)):
                yield Measured(name, index, step, us)


def fit(points: Sequence[Measured]) -> tuple[float, float]:
    """between and slope, by least squares."""
    body = np.array([[1.0, point.step.body_us] for point in points])
    found, *_ = np.linalg.lstsq(body, np.array([point.us for point in points]), rcond=None)
    return float(found[0]), float(found[1])


def summary(kernels: Sequence[Measured]) -> dict[str, Any]:
    points = [kernel for kernel in kernels if kernel.step.cut and kernel.index > 0]
    between, slope = fit(points)
    others = {name: [point for point in points if point.network != name] for name in {point.network for point in points}}
    fits = {name: fit(rest) for name, rest in others.items() if len(rest) > 1}
    left_out = [
        point.us - fits[point.network][0] - fits[point.network][1] * point.step.body_us for point in points if point.network in fits
    ]
    alike: dict[Any, list[float]] = defaultdict(list)
    for point in points:
        alike[point.step.cut].append(point.us)
    among = [us - np.mean(of) for of in alike.values() if len(of) > 1 for us in of]
    free = sum(len(of) - 1 for of in alike.values() if len(of) > 1)
    return {
        "convolutions": len(points),
        "between_us": between,
        "slope": slope,
        "rms_now_us": _rms([point.us - point.predicted_us for point in points]),
        "rms_fitted_us": _rms([point.us - between - slope * point.step.body_us for point in points]),
        "rms_left_out_us": _rms(left_out) if left_out else None,
        "rms_alike_us": float(np.sqrt(np.square(among).sum() / free)) if free else None,
        "first_us": float(np.mean([kernel.us - kernel.predicted_us for kernel in kernels if kernel.index == 0])),
    }


def _rms(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="JSON that fused_check.py wrote")
    kernels = list(read(parser.parse_args().files))
    for kernel in kernels:
        tile = str(kernel.step.cut.tile) if kernel.step.cut else kernel.step.kind
        print(f"{kernel.network:<10} {kernel.step.name:<8} {tile:<32} {kernel.us:6.2f} µs, the model has {kernel.predicted_us:5.2f}")
    for name, value in summary(kernels).items():
        print(f"{name:<16} {value if value is None or isinstance(value, int) else round(value, 3)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
