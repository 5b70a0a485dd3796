"""`accel export`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from accel.cli import tune
from accel.cli.options import DEFAULT_MODEL, CsvOption, DeviceOption, Format, FormatOption, ModelArgument, TrustedOption

BEST = "best"
"""Of `--to`: not a format but whichever engine `accel tune` finds."""

COLUMNS = ("engine", "status", "opset", "size_mb", "parity", "max_rel_err", "limit", "built_s", "file")


def export(
    model: ModelArgument = DEFAULT_MODEL,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="FORMAT", help="onnx, torchscript, aoti, trt, fused, repeatable; or best, which tunes."),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or fp16.")] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="The same as --precision fp16.")] = False,
    opset: Annotated[int | None, typer.Option(help="ONNX opset; 17 where none is given.")] = None,
    batch: Annotated[str | None, typer.Option(metavar="N|dynamic", help="Batch size of the engine; 1 where none is given.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where NAME.accel is written; default engines/.")] = None,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Of a factory: its .safetensors.")] = None,
    input: Annotated[str | None, typer.Option(metavar="SHAPE", help="Of a factory: its input, as 1x3x224x224.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the bundle; default the model's.")] = None,
    device: DeviceOption = None,
    flavor: Annotated[str | None, typer.Option(metavar="rtx", help="Of TensorRT: rtx builds for GeForce and RTX cards.")] = None,
    compute_capability: Annotated[
        str | None, typer.Option(metavar="X.Y,…", help="RTX, fused: the GPUs that it is built for, as 8.6,8.9; default the one here.")
    ] = None,
    workspace: Annotated[str | None, typer.Option(metavar="SIZE", help="TensorRT: scratch memory, as 4GiB; default the GPU's.")] = None,
    optimization_level: Annotated[int | None, typer.Option(metavar="0-5", help="TensorRT: how hard it searches; its default is 3.")] = None,
    timing_cache: Annotated[str | None, typer.Option(metavar="PATH|off", help="TensorRT: default one a version and GPU.")] = None,
    version_compatible: Annotated[bool, typer.Option("--version-compatible", help="TensorRT: also for later versions.")] = False,
    hardware_compatible: Annotated[bool, typer.Option("--hardware-compatible", help="TensorRT: also for other GPUs from 8.0 on.")] = False,
    tactic_sources: Annotated[str | None, typer.Option(metavar="NAME,…", help="TensorRT: as edge-mask-convolutions.")] = None,
    builds: Annotated[int, typer.Option(metavar="N", help="TensorRT: build N times, keep the fastest that is right.")] = 1,
    allow_mixed: Annotated[bool, typer.Option("--allow-mixed", help="TensorRT: keep a plan that is partly in another precision.")] = False,
    min_batch: Annotated[int | None, typer.Option(metavar="N", help="TensorRT, --batch dynamic: the smallest; 1.")] = None,
    opt_batch: Annotated[int | None, typer.Option(metavar="N", help="TensorRT, --batch dynamic: the one to be fastest at; 1.")] = None,
    max_batch: Annotated[int | None, typer.Option(metavar="N", help="TensorRT, --batch dynamic: the largest; 32.")] = None,
    embed_preprocess: Annotated[
        bool, typer.Option("--embed-preprocess", help="Normalise inside the engine: its input is uint8 pixels, N×H×W×C.")
    ] = False,
    tune_tiles: Annotated[
        bool, typer.Option("--tune", help="Fused: choose tiles and the schedule by timing them on the GPU here; --budget, default 60s.")
    ] = False,
    budget: tune.BudgetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Export anew what is there; replace a bundle of another model.")] = False,
    trusted: TrustedOption = False,
    format: FormatOption = Format.table,
    export_csv: CsvOption = None,
) -> None:
    """Export a model to engines, each held against the golden samples before it is kept."""
    from accel import api
    from accel.api.tune_steps import parse_budget
    from accel.cli.output import print_notes, print_rows
    from accel.cli.progress import drawn
    from accel.errors import UsageError
    from accel.exporters.options import BuildOptions, parse_list, parse_size

    if fp16 and precision not in (None, "fp16"):
        raise UsageError(f"--fp16 and --precision {precision} contradict each other", remedy="give one of them")
    what: dict[str, Any] = {"precision": "fp16" if fp16 else precision, "opset": opset, "batch": batch}
    what["embed_preprocess"] = embed_preprocess
    options = BuildOptions(
        workspace=None if workspace is None else parse_size(workspace),
        optimization_level=optimization_level,
        timing_cache=timing_cache,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        tactic_sources=() if tactic_sources is None else parse_list(tactic_sources),
        compute_capabilities=() if compute_capability is None else parse_list(compute_capability),
        builds=builds,
        allow_mixed=allow_mixed,
        min_batch=min_batch,
        opt_batch=opt_batch,
        max_batch=max_batch,
        tune=tune_tiles,
        **({"tune_s": parse_budget(budget)} if tune_tiles and budget is not None else {}),
    )
    how: dict[str, Any] = {"flavor": flavor, "options": options, "dry_run": dry_run, "force": force}
    where: dict[str, Any] = {"weights": weights, "input": input, "name": name, "device": device, "trusted": trusted}
    if BEST in (to or ()):
        demand_alone(to or [], {**what, **how, "options": options.given()})
        tune.run(model, format, export_csv, budget=budget, engines_dir=out, **where)
        return
    if budget is not None and not tune_tiles:
        raise UsageError("--budget is of a search, and none was asked for", remedy=f"add --to {BEST} or --tune, or leave --budget out")
    where["out"] = out
    with drawn() as progress:
        done = api.export(model, to or "onnx", **what, **where, **how, progress=progress)
    rows = [item.to_row() for item in done]
    print_rows(rows, COLUMNS, format, export_csv)
    print_notes([f"parity of {row['engine']} was not run: {row['reason']}" for row in rows if row.get("parity") == "not run"])


def demand_alone(to: list[str], given: dict[str, Any]) -> None:
    """Refuse `--to best` beside another format, or with what only a format that was named can be told.

    Raises:
        UsageError: names what does not go with it.
    """
    from accel.errors import UsageError
    from accel.exporters.options import flag_of

    if others := [name for name in to if name != BEST]:
        raise UsageError(f"--to {BEST} chooses the format itself, and {', '.join(others)} was named", remedy=f"give --to {BEST} alone")
    if typed := [name for name, value in given.items() if value]:
        names = ", ".join("--" + name.replace("_", "-") for name in typed if name != "options")
        said = ", ".join(filter(None, [names, *(flag_of(option) for option in given["options"])]))
        raise UsageError(f"--to {BEST} chooses the engine itself, and {said} was given", remedy="leave it out, or name the format")
