"""From a worker's answer to result rows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from accel.bench import flags, model, proof
from accel.bench.candidates import Job
from accel.bench.clock import utc_now
from accel.bench.columns import LATENCY_KINDS
from accel.bench.launch import Answer
from accel.bench.plan import MeasurementPlan
from accel.bench.results import SAMPLES, Row, row
from accel.bench.stats import corrected, summarise
from accel.bench.telemetry import Watch
from accel.bench.verification import Verification
from accel.bench.warming import NOT_WARM
from accel.types import Array

_FACTS = ("tf32_matmul", "tf32_conv", "graph_nodes", "cpu_nodes", "recompiles")
_MACHINE = ("git_sha", "dirty", "gpu_name", "gpu_uuid", "driver", "cuda", "cpu_model", "governor", "load1", "kernel", "cpu_affinity")


_FLOOR = {"host_us": "launch_host", "paced_us": "launch_host", "device_us": "launch_device", "span_us": "launch_device"}
"""Latency kind → the floor of the self-check that it is to be held against."""


def _settings(facts: Mapping[str, Any]) -> list[str]:
    """What the runtime set by itself against its library's defaults, as `name=value`."""
    return [f"{name}={json.dumps(value)}" for name, value in facts.get("settings", {}).items()]


def _flags(made: Row, answer: Answer, watch: Watch) -> list[str]:
    """The flags of a measured row: what its columns bear out, what its worker said, and what was hidden from us."""
    found = {*made["flags"], *flags.flags(made), *(name for name in answer["flags"] if name not in flags.REFUSALS)}
    if watch.pids_hidden and "NVML_UNAVAILABLE" not in found:
        found.add("PIDS_HIDDEN")
    if watch.clock_moved(answer.get("timed_ns")):
        found.add(NOT_WARM)
    return sorted(found)


@dataclasses.dataclass(frozen=True)
class RowMaker:
    """All that the rows of one set share.

    Attributes:
        machine: what `environment.snapshot` found.
        floors_us: of the self-check; `launch_host` and `launch_device` are a CUDA graph of one empty kernel. Empty where none was made.
    """

    job: Job
    plan: MeasurementPlan
    set_id: str
    machine: Mapping[str, Any]
    floors_us: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def not_run(self, verification: Verification) -> Row:
        """The one row of a variant that is not timed."""
        return row(**self._common(verification))

    def failed(self, verification: Verification, round_index: int, order_index: int) -> Row:
        """The row of a run whose worker failed; `verification.failure` says how."""
        return self.not_run(verification) | self._place(verification, round_index, order_index)

    def measured(
        self,
        verification: Verification,
        round_index: int,
        order_index: int,
        answer: Answer,
        samples: Mapping[str, Array],
        watch: Watch,
        first: Row | None = None,
    ) -> tuple[list[Row], dict[str, Array]]:
        """One row per latency kind, and the samples under the keys that the rows name.

        Args:
            answer: the worker's; `timed_ns`, if it has one, is when its passes began and ended on the host's clock.
            watch: what was seen of the GPU meanwhile.
            first: the first measured row of the set: what is compared with it must have had its inputs, GPU and driver.
        """
        facts: Mapping[str, Any] = answer["facts"]
        common = {**self._common(verification), **self._place(verification, round_index, order_index)}
        common |= {key: facts.get(key) for key in _FACTS}
        for key in ("tf32_matmul", "tf32_conv"):
            common[key] = proof.tf32(facts.get(key))
        common |= watch.columns(answer.get("timed_ns"))
        common |= {
            "options_json": [*verification.candidate.variant.options, *_settings(facts)],
            "runtime_version": facts.get("runtime_version") or verification.candidate.runtime_version,
            **self._cold_start(answer, round_index),
            "input_sha256": answer["input_sha256"],
            "input_shape": answer["input_shape"],
            "sync_mode": answer["sync_mode"],
            "cudnn": answer["cudnn"],
            "load1": answer["load1"],
            **answer.get("host", {}),
            "preprocess_us": answer["preprocess_us"],
            "warmup_n": answer["warmup_n"],
            "cpu_affinity": answer["cpu_affinity"],
            "python": answer["python"],
            "interpreter": answer["executable"],
            "versions_json": answer["versions"],
        }
        common |= self._outcome(verification, facts, answer["flags"], row(**common), first)
        rows, kept = [], {}
        for kind in (kind for kind in LATENCY_KINDS if kind in samples):
            key = f"{common['variant']}/{common['run_id']}/{kind}"
            kept[key] = samples[kind]
            statistics = dataclasses.asdict(summarise(samples[kind]))
            wall = round(answer["wall_s"][kind], 4)
            place = {"latency_kind": kind, "blocks": answer["blocks"], "timed_wall_s": wall, "raw_path": f"{SAMPLES}#{key}"}
            place["event_floor_us"] = answer["event_floor_us"].get(kind)
            place["p50_corrected_us"] = corrected(statistics["p50_us"], place["event_floor_us"])
            place["launch_floor_us"] = self.floors_us.get(_FLOOR.get(kind, ""))
            made = row(**{**common, **statistics, **place})
            rows.append(made | {"flags": _flags(made, answer, watch)})
        return rows, kept

    def _cold_start(self, answer: Answer, round_index: int) -> dict[str, Any]:
        """Verifying, an earlier run or an earlier set may have filled the caches: a runtime that can tell is believed."""
        warm = answer["facts"].get("build_cached") or (round_index > 0 and not self.plan.rebuild)
        load, resident = answer["load_s"], answer["host_mem_peak_mib"]
        return {
            "load_s": None if load is None else round(load, 4),
            "build_warm_s" if warm else "build_s": round(answer["build_s"], 4),
            "first_call_ms": round(answer["first_call_ms"], 4),
            "host_mem_peak_mib": None if resident is None else round(resident, 1),
        }

    def _place(self, verification: Verification, round_index: int, order_index: int) -> dict[str, Any]:
        return {"run_id": f"{self.set_id}/r{round_index}", "round": round_index, "order_index": order_index}

    def _common(self, verification: Verification) -> dict[str, Any]:
        candidate, job, on_gpu = verification.candidate, self.job, self.job.device != "cpu"
        variant, result, failure = candidate.variant, verification.result, verification.failure
        outcome = result.to_dict() if result else {}
        keys = ("top1", "top1_reference", "n_test", "n_flips", "mcnemar_p", "max_abs_err", "max_rel_err", "metric")
        described = model.columns(job.bundle, candidate.entry)
        if not candidate.identity:
            # It was never resolved to bytes: what the module weighs says nothing about it.
            described |= {"engine_sha256": None, "size_mb": None}
        return {
            **described,
            **{key: self.machine.get(key) for key in _MACHINE},
            **{key: outcome.get(key) for key in keys},
            "set_id": self.set_id,
            "timestamp_utc": utc_now(),
            "seed": self.plan.seed,
            "batch": self.plan.batch,
            "n_distinct_inputs": self.plan.inputs,
            "variant": str(variant),
            "runtime": variant.runtime,
            "runtime_version": candidate.runtime_version,
            "precision": variant.precision,
            "options_json": list(variant.options),
            "l2_mode": self.plan.l2 if on_gpu else None,
            "threads": job.threads,
            "device": job.device,
            "plan": self.plan.describe(),
            "python": self.machine["python"],
            "versions_json": self.machine["versions"],
            "command": job.settings.command,
            "flags": ["UNVERIFIED"] if failure and failure.verdict == "UNVERIFIED" else [],
            "verdict": failure.verdict if failure else "OK",
            "reason": failure.reason if failure else None,
            "remedy": failure.remedy if failure else None,
            "exit_code": failure.exit_code if failure else 0,
            "refusals": list(failure.refusals) if failure else [],
        }

    def _outcome(
        self, verification: Verification, facts: Mapping[str, Any], seen: Sequence[str], found: Row, first: Row | None
    ) -> dict[str, Any]:
        """What this very run changes in the verdict."""
        fallback = facts.get("fallback") or None
        variant = verification.candidate.variant
        refused = [*proof.mismatches(facts, variant, self.job.device), *proof.recompiled(facts), *flags.disturbed(found)]
        refused += [flags.Refused(name, flags.REFUSALS[name].meaning) for name in seen if name in flags.REFUSALS]
        if first is not None:
            refused += flags.differences(found, first)
        if refused:
            return {**flags.invalid(refused), "fallback": fallback}
        if fallback:
            remedy = facts.get("fallback_remedy") or "run `accel doctor`: it says what is missing"
            return {"verdict": "FALLBACK", "reason": fallback, "remedy": remedy, "fallback": fallback}
        return {}
