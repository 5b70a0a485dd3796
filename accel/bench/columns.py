"""The columns of a result row, as measurement.md lists them: one row per variant, run and latency kind; None where not measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEMA_VERSION = 2
"""2 told what comes before the first answer apart: `export_s`, `load_s`, `build_s`, `build_warm_s`, `host_mem_peak_mib`."""

_GROUPS = {
    "identity": "schema_version set_id run_id round order_index timestamp_utc git_sha dirty seed",
    "workload": "model weights_sha256 input_sha256 input_shape batch n_distinct_inputs",
    "variant": "engine runtime runtime_version engine_sha256 options_json precision tf32_matmul tf32_conv export_s load_s build_s "
    "build_warm_s first_call_ms graph_nodes cpu_nodes recompiles size_mb params",
    "protocol": "latency_kind sync_mode l2_mode warmup_n n blocks timed_wall_s cpu_affinity threads",
    "statistics": "mean_us std_us min_us p50_us p50_lo_us p50_hi_us p95_us p95_lo_us p95_hi_us p99_us p99_lo_us p99_hi_us max_us ci_method",
    "quality": "cov_pct iqr_rel_pct rho1 drift_pct n_outliers event_floor_us launch_floor_us aa_floor_pct",
    "gpu": "gpu_name gpu_uuid driver cuda cudnn sm_clock_min_mhz sm_clock_mean_mhz sm_clock_max_mhz mem_clock_mhz temp_start_c temp_max_c "
    "power_mean_w power_limit_w throttle_mask viol_power_ns viol_thermal_ns other_pids mem_peak_mib",
    "host": "cpu_model governor load1 kernel host_mem_peak_mib",
    "outcome": "top1 top1_reference n_test n_flips mcnemar_p max_abs_err max_rel_err stability flags verdict raw_path",
}

STANDARD = tuple(name for group in _GROUPS.values() for name in group.split())
"""measurement.md's list, in its order, and the cold start's.

`engine` is the bundle's entry, None where the variant runs the module itself. `export_s` is how long its file took to make, once; None
without a file, or where nobody recorded it. `load_s` is from the start of the worker's process until the library and the engine or module
are in memory (where the runtime reads and builds in one step, the library alone), less what the harness does for itself; None where the
runtime does not tell, and then it is in the build. A run has `build_s` or `build_warm_s`: what open took after that (compile, warm up,
capture). Warm is a build that found compiled code in a cache, or may have: every run of a variant after its first, unless the plan gives
each run empty caches. `host_mem_peak_mib` is the most memory that the worker held resident until its first call was answered.
"""

ADDED = (
    "variant",
    "p50_corrected_us",
    "preprocess_us",
    "host_others_cpus",
    "host_stolen_cpus",
    "device",
    "metric",
    "reason",
    "remedy",
    "exit_code",
    "refusals",
    "fallback",
    "plan",
    "python",
    "interpreter",
    "versions_json",
    "command",
)
"""What a row needs to be read alone: which variant, why its verdict, and the machine, versions and command that made it.

`p50_corrected_us` is `p50_us` less `event_floor_us`, what events read around nothing; None for the host's clock. `preprocess_us` is the
median time of the bundle's own preprocessing of a batch of images on the host, which no latency contains; None for a model that takes none.
`host_others_cpus` is how many processors' worth of work other programs did while the passes ran, `host_stolen_cpus` how much of ours the
hypervisor of a virtual machine gave to others meanwhile; None outside Linux, and for passes that took under half a second in all.
"""

COLUMNS = STANDARD + ADDED

LATENCY_KINDS = ("host_us", "device_us", "span_us", "enqueue_us", "replay_us", "e2e_us", "paced_us")

VERDICTS = {
    "OK": "measured, and verified on the same bytes",
    "UNVERIFIED": "measured, but its accuracy is not known",
    "FALLBACK": "measured, but not what was asked for: the backend fell back (see the reason)",
    "INVALID": "must not be used: correctness, precision or the conditions of the measurement failed",
    "REFUSED": "not run: this device has no kernels for it",
    "MISSING": "not run: a package, engine file or device is missing",
    "ERROR": "not run to its end: the worker failed",
}
"""Verdict → meaning; only OK rows may be ranked."""


def upgraded(data: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded row with today's columns, None where it was written before a column was; it keeps its `schema_version`.

    In version 1 `build_s` held the load as well, and that of later rounds, which found the caches of the first, had the same name.
    """
    row = {name: data.get(name) for name in COLUMNS}
    if data["schema_version"] == 1 and data.get("round"):
        row["build_s"], row["build_warm_s"] = None, row["build_s"]
    return row
