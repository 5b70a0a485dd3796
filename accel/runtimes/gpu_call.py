"""A request whose arrays are on the GPU already: in and out without a copy through the host.

The engine has a stream of its own. It waits for the work that the caller has enqueued, and the call returns when the results
are there, so the caller needs no synchronisation of either kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from accel import device
from accel.errors import AccelError, UsageError
from accel.runtimes.inputs import FLOATING
from accel.runtimes.session import Session
from accel.runtimes.torch_arrays import as_tensor
from accel.types import DeviceArray


def check_device(engine_device: str, arrays: Mapping[str, Any]) -> None:
    """Refuse tensors that are on another device than the engine.

    Raises:
        UsageError: which one, where it is and where the engine is.
    """
    for name, array in arrays.items():
        place = str(getattr(array, "device", "")) if hasattr(array, "is_cuda") else "cuda"
        if engine_device == "cpu" or (place.startswith("cuda:") and place != engine_device):
            raise UsageError(
                f"input {name!r} is on {place}, the engine on {engine_device}",
                remedy=f"pass a numpy array, move it to {engine_device}, or load the engine on its device",
            )


def run_tensors(torch: Any, session: Session, tensors: Mapping[str, Any], rows: int, theirs: Any) -> dict[str, Any]:
    """Torch CUDA tensors by public name (any strides) → new float32 CUDA tensors by public name, `rows` each.

    Args:
        theirs: the stream that was current where the engine was called; a thread of the pool may be running this.
    """
    runtime, ours = session.runtime, torch.cuda.ExternalStream(session.stream, device=session.source.device)
    specs = {spec.name: spec for spec in runtime.outputs}
    results = {}
    # Allocated on the caller's stream, so that freeing them later is ordered with the caller's use of them.
    with torch.cuda.stream(theirs):
        for public, native in session.results.items():
            dtype = "float32" if specs[native].dtype in FLOATING else specs[native].dtype
            shape = (rows, *specs[native].fixed(1)[1:])
            results[public] = torch.empty(shape, dtype=getattr(torch, dtype), device=session.source.device)
    ours.wait_stream(theirs)
    homes = {public: as_tensor(torch, runtime.home.inputs[native]) for public, native in session.names.items()}
    with torch.cuda.stream(ours), session.entered():
        for part in _batches(rows, session.source.batch):
            for public, home in homes.items():
                # What the last, shorter batch leaves in the buffer is of the batch before; its results are not taken.
                home[: part.stop - part.start].copy_(tensors[public].detach()[part])
            runtime.enqueue(runtime.home)
            outputs = runtime.output(runtime.home)
            for public, native in session.results.items():
                results[public][part].copy_(as_tensor(torch, outputs[native])[: part.stop - part.start])
    device.synchronize(session.stream)
    device.confirm(runtime)
    return results


def run_arrays(session: Session, arrays: Mapping[str, Any], rows: int) -> dict[str, DeviceArray]:
    """Objects with DLPack or `__cuda_array_interface__` by public name → owned DeviceArrays in the engine's dtypes by public name.

    Raises:
        UsageError: one is on another GPU, not C-contiguous, not in the native dtype, or the rows are not whole batches.
    """
    runtime, batch = session.runtime, session.source.batch
    if rows % batch:
        raise UsageError(f"{rows} rows are not whole batches of {batch}", remedy="pass torch tensors, numpy arrays or whole batches")
    views = {public: _view(session, public, arrays[public]) for public in session.names}
    specs = {spec.name: spec for spec in runtime.outputs}
    results = {
        public: device.empty((rows, *specs[native].fixed(1)[1:]), specs[native].dtype, session.source.device)
        for public, native in session.results.items()
    }
    with session.entered():
        for part in _batches(rows, batch):
            step = part.start // batch
            for public, native in session.names.items():
                home = runtime.home.inputs[native]
                device.copy(home, views[public].ptr + step * home.nbytes, session.stream)
            runtime.enqueue(runtime.home)
            outputs = runtime.output(runtime.home)
            for public, native in session.results.items():
                source, target = outputs[native], results[public]
                window = DeviceArray(target.ptr + step * source.nbytes, source.shape, source.dtype, source.device, target)
                device.copy(window, source.ptr, session.stream)
    device.synchronize(session.stream)
    device.confirm(runtime)
    return results


def _view(session: Session, public: str, array: Any) -> DeviceArray:
    native = session.runtime.home.inputs[session.names[public]].dtype
    if session.stream is None:
        raise AccelError(f"input {public!r} is on a GPU and the engine has no stream", remedy="pass a numpy array")
    try:
        found = device.view(array, session.source.device, session.stream)
    except UsageError as error:
        raise UsageError(f"input {public!r}: {error.message}", remedy=error.remedy) from error
    if found.dtype != native:
        remedy = "convert it, or pass a torch tensor, which the engine converts by itself"
        raise UsageError(f"input {public!r}: expected {native}, received {found.dtype}", remedy=remedy)
    return found


def _batches(rows: int, batch: int) -> Iterator[slice]:
    for start in range(0, rows, batch):
        yield slice(start, min(start + batch, rows))
