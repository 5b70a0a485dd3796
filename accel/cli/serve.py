"""`accel serve`"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from accel.cli.options import BundleArgument, DeviceOption, TrustedOption


def serve(
    bundle: BundleArgument,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; only this machine by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    max_concurrency: Annotated[
        int | None,
        typer.Option(
            "--max-concurrency", min=1, metavar="N", help="Requests at once; others get 503. Default: one a CPU but one, 2 a GPU."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Of one request, which then gets 504.")] = 30.0,
    runtime: Annotated[str, typer.Option("--runtime", metavar="V", help="auto, a runtime or a variant (onnxruntime:fp16).")] = "auto",
    device: DeviceOption = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="Intra-op threads of a request on a CPU.")] = None,
    trusted: TrustedOption = False,
) -> None:
    """Serve a bundle over HTTP: Open Inference Protocol V2, /predict for pictures, /metrics. SIGTERM drains."""
    from accel import api
    from accel.cli.progress import drawn

    how: dict[str, Any] = {"runtime": runtime, "device": device, "threads": threads, "trusted": trusted}
    with drawn() as progress:
        api.serve(bundle, host, port, max_concurrency=max_concurrency, timeout_s=timeout, **how, progress=progress)
