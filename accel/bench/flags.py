"""The closed lists of what makes a row worthless (refusals) and of what to keep in mind about it (flags), each with its remedy.

A refusal makes the row INVALID with exit code 3: no ratio and no ranking uses it. A flag leaves the number standing. Both follow
from the row's own columns wherever they can, so that a reader of the record finds the same ones again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from accel.bench.intervals import AUTOCORRELATED

Columns = Mapping[str, Any]

SW_POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80
"""NVML's clock-event reasons, the bits of `throttle_mask` that matter here."""

HARDWARE = {HW_SLOWDOWN: "HwSlowdown", HW_THERMAL: "HwThermalSlowdown", POWER_BRAKE: "HwPowerBrakeSlowdown"}

NVML_COLUMNS = (
    *("sm_clock_min_mhz", "sm_clock_mean_mhz", "sm_clock_max_mhz", "mem_clock_mhz", "temp_start_c", "temp_max_c", "power_mean_w"),
    *("power_limit_w", "throttle_mask", "viol_power_ns", "viol_thermal_ns", "other_pids", "mem_peak_mib"),
)
"""The columns that only NVML can fill."""

CLOCK_TOLERANCE, FLOOR_SHARE = 0.02, 0.02
MOST_COV_PCT, MOST_IQR_PCT, MOST_DRIFT_PCT = 2.5, 10.0, 1.0

MOST_OTHERS_CPUS, MOST_STOLEN_CPUS = 0.5, 0.02

EVENT_KINDS = ("device_us", "span_us")
"""Latency kinds that CUDA events measure: the floor of an empty pair of events is theirs alone."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a flag or refusal says of a row, and what to do about it."""

    meaning: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Refused:
    """One refusal of one row: a name from REFUSALS and what was found."""

    name: str
    reason: str

    @property
    def remedy(self) -> str:
        return REFUSALS[self.name].remedy


_ANOTHER = "run `accel doctor`, or choose another variant"

REFUSALS = {
    "CORRECTNESS": Rule("the engine's accuracy or parity failed its gate", "export it again, or in a wider precision"),
    "PRECISION": Rule("the precision or TF32 setting that computed is not the one asked for", _ANOTHER),
    "INPUTS_DIFFER": Rule("it was fed other inputs than what it is compared with", "bench the variants again, in one set with one seed"),
    "GPU_DIFFERS": Rule("it ran on another GPU than what it is compared with", "bench the variants again, in one set on one GPU"),
    "DRIVER_DIFFERS": Rule(
        "it ran with another driver than what it is compared with", "bench the variants again, in one set with one driver"
    ),
    "RECOMPILED": Rule("the model was compiled while it was timed", _ANOTHER),
    "CPU_NODES": Rule("a GPU was asked for and nodes of the graph computed on the CPU", _ANOTHER),
    "FOREIGN_STREAM": Rule(
        "a call leaves work on a stream that neither the events nor the wait know of: its latencies are those of a part of it",
        "let the runtime do all of its work on the stream that it is given, or choose another variant",
    ),
    "OTHER_PROCESS": Rule(
        "another process had a compute context on the GPU while this was timed: what it executes takes this one's time",
        "end the other process (see `nvidia-smi`) and bench again",
    ),
    "HW_SLOWDOWN": Rule(
        "the hardware slowed the GPU's clocks (heat, or its power supply)",
        "let the GPU cool or mend its power and cooling, and bench again",
    ),
    "SELF_CHECK": Rule("the harness failed its self-check on this machine", "run `accel selfcheck`: it says which check failed"),
}
"""Refusal → what it means and what mends it."""

FLAGS = {
    "NOISY": Rule("the rounds of the variant lie further apart than a stable one's", "close other programs, or ask for more --rounds"),
    "UNSTABLE": Rule(
        "the rounds of the variant disagree: its latency is no single number", "look for what else the machine does; bench again"
    ),
    "COV": Rule(f"the standard deviation is over {MOST_COV_PCT} % of the mean", "look at p50 and p95, not the mean; close other programs"),
    "WIDE_IQR": Rule(
        f"the middle half of the samples spans over {MOST_IQR_PCT:.0f} % of the median", "close other programs; look at the ECDF"
    ),
    "DRIFT": Rule(
        f"the last third of the samples differs from the first by over {MOST_DRIFT_PCT:.0f} %", "let the machine settle; bench again"
    ),
    "AUTOCORR": Rule(
        f"successive samples are correlated (over {AUTOCORRELATED}): fewer are independent than were taken",
        "none needed: the interval is the wider one, of a moving-block bootstrap",
    ),
    "NEAR_FLOOR": Rule(
        f"an empty pair of CUDA events reads over {100 * FLOOR_SHARE:.0f} % of the value", "trust host_us, or measure a larger batch"
    ),
    "ENQUEUE_BLOCKED": Rule(
        "the call waits for the GPU itself (or made over about 1,000 launches): device_us cannot be gated", "use span_us, which has no gate"
    ),
    "NOT_WARM": Rule("the latency, or the GPU's clock, had not settled when the warm-up ended", "ask for a longer --warmup"),
    "BUSY_HOST": Rule(
        f"other programs kept over {MOST_OTHERS_CPUS:g} processors busy while this was timed", "close other programs, and bench again"
    ),
    "STOLEN": Rule(
        f"the hypervisor ran something else on our processors for over {100 * MOST_STOLEN_CPUS:.0f} % of the time",
        "bench on a machine of your own; read device_us, which does not depend on it",
    ),
    "INPUT_DEPENDENT": Rule(
        "one input over and over takes the GPU over 2 % more or less than inputs in turn", "measure with inputs like those of the service"
    ),
    "SW_POWER_CAP": Rule("the power limit held the clocks down", "none if the service has the same limit; else bench at that limit"),
    "SW_THERMAL": Rule("the driver held the clocks down because of the temperature", "let the GPU cool, or improve its cooling"),
    "CLOCKS_DIFFER": Rule(
        f"its mean SM clock was over {100 * CLOCK_TOLERANCE:.0f} % below that of another variant in the table",
        "bench again with more rounds, on a GPU at a steady temperature",
    ),
    "NVML_UNAVAILABLE": Rule(
        "no clock, temperature, power or process of the GPU could be read", "pip install 'accel-engines[bench]'; check `nvidia-smi`"
    ),
    "PIDS_HIDDEN": Rule(
        "NVML does not show the processes on the GPU (a container or virtual machine hides them): another one may have run",
        "make sure that nothing else uses the GPU, or bench outside the container (docker: --pid=host)",
    ),
    "UNVERIFIED": Rule("measured, but its accuracy is not known", "name data with --data, or leave out --no-verify"),
}
"""Flag → what it means and what to do about it."""

_COMPARED = {"input_sha256": "INPUTS_DIFFER", "gpu_uuid": "GPU_DIFFERS", "driver": "DRIVER_DIFFERS"}


def disturbed(row: Columns) -> list[Refused]:
    """What the state of the machine says against a measured row; what its runtime's facts say is in proof.py."""
    found = []
    if row["other_pids"]:
        said = f"another process was on the GPU while this was timed (PID {', '.join(map(str, row['other_pids']))})"
        found.append(Refused("OTHER_PROCESS", said))
    bits = [name for bit, name in HARDWARE.items() if (row["throttle_mask"] or 0) & bit]
    if bits:
        found.append(Refused("HW_SLOWDOWN", f"the hardware slowed the clocks while this was timed ({', '.join(bits)})"))
    return found


def differences(row: Columns, other: Columns) -> list[Refused]:
    """Why two measured rows must not be compared; a fact that neither has (a GPU's on a CPU) is no difference."""
    return [
        Refused(name, f"{column} is {row[column]} and that of {other['variant']} ({other['run_id']}) is {other[column]}")
        for column, name in _COMPARED.items()
        if row[column] != other[column]
    ]


def invalid(refused: Iterable[Refused]) -> dict[str, Any]:
    """The outcome columns of a refused row; empty if nothing is held against it."""
    found = list(refused)
    if not found:
        return {}
    return {
        "verdict": "INVALID",
        "reason": "; ".join(item.reason for item in found),
        "remedy": "; ".join(dict.fromkeys(item.remedy for item in found)),
        "exit_code": 3,
        "refusals": [item.name for item in found],
    }


def flags(row: Columns) -> list[str]:
    """The flags that the columns of a measured row bear out, sorted; what a worker alone can know comes beside them."""
    return sorted(name for name, holds in _HOLDS.items() if holds(row))


def clocks_differ(mhz: float | None, other_mhz: float | None) -> bool:
    """Whether two mean SM clocks differ by more than CLOCK_TOLERANCE of the larger; an unknown one does not."""
    return mhz is not None and other_mhz is not None and abs(mhz - other_mhz) > CLOCK_TOLERANCE * max(mhz, other_mhz)


def on_gpu(row: Columns) -> bool:
    return str(row["device"]).startswith("cuda")


def _over(column: str, limit: float) -> Callable[[Columns], bool]:
    # A record of an older accel lacks the newest columns.
    return lambda row: row.get(column) is not None and abs(row[column]) > limit


def _bit(bit: int) -> Callable[[Columns], bool]:
    return lambda row: bool((row["throttle_mask"] or 0) & bit)


def _near_floor(row: Columns) -> bool:
    floor, value = row["event_floor_us"], row["p50_us"]
    return row["latency_kind"] in EVENT_KINDS and floor is not None and value is not None and floor > FLOOR_SHARE * value


_HOLDS: dict[str, Callable[[Columns], bool]] = {
    "NOISY": lambda row: row["stability"] == "NOISY",
    "UNSTABLE": lambda row: row["stability"] == "UNSTABLE",
    "COV": _over("cov_pct", MOST_COV_PCT),
    "WIDE_IQR": _over("iqr_rel_pct", MOST_IQR_PCT),
    "DRIFT": _over("drift_pct", MOST_DRIFT_PCT),
    # Only a positive correlation makes an interval too narrow.
    "AUTOCORR": lambda row: row["rho1"] is not None and row["rho1"] > AUTOCORRELATED,
    "NEAR_FLOOR": _near_floor,
    "BUSY_HOST": _over("host_others_cpus", MOST_OTHERS_CPUS),
    "STOLEN": _over("host_stolen_cpus", MOST_STOLEN_CPUS),
    "SW_POWER_CAP": _bit(SW_POWER_CAP),
    "SW_THERMAL": _bit(SW_THERMAL),
    "NVML_UNAVAILABLE": lambda row: on_gpu(row) and all(row[column] is None for column in NVML_COLUMNS),
}
