"""The road of one request: host array → pinned → device → engine → device → pinned → owned array.

A service and the `e2e_us` measurement both take it, so that what is timed is what is served.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from accel.device import driver, host
from accel.device.memory import PinnedArray
from accel.device.stream import synchronize
from accel.types import Array, Binding, DeviceArray, Runtime


def confirm(runtime: Runtime) -> None:
    """Ask a runtime that has a `check` whether what it answered holds; call it when its stream was waited for.

    Raises:
        AccelError: it does not.
    """
    check = getattr(runtime, "check", None)
    if check is not None:
        check()


class Staging:
    """Pinned buffers for one runtime on one stream; on a CPU the home arrays themselves.

    Args:
        home: the runtime's own static input buffers, `runtime.home` after open.
        stream: the stream that the runtime was opened on; None on a CPU.
    """

    def __init__(self, home: Binding, stream: int | None) -> None:
        self._home, self._stream = home, stream
        self._pinned = {name: PinnedArray(a.shape, a.dtype, a.device) for name, a in home.inputs.items() if a.device != "cpu"}
        self._results: dict[str, PinnedArray] = {}

    def run(self, runtime: Runtime, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """One request: convert and upload `arrays`, run, and return owned results (floating ones as float32).

        The names and shapes of `arrays` are the runtime's inputs; they are not checked here.

        Raises:
            AccelError: the runtime says that its answer is void.
        """
        self.upload(arrays)
        runtime.enqueue(self._home)
        results = self.download(runtime.output(self._home))
        confirm(runtime)
        return results

    def upload(self, arrays: Mapping[str, Array]) -> None:
        """Convert each array to its native dtype and enqueue the copy into home; call it again only after a download."""
        for name, target in self._home.inputs.items():
            if target.device == "cpu":
                host.convert_into(target.owner, arrays[name], target.dtype)
                continue
            pinned = self._pinned[name]
            host.convert_into(pinned.array, arrays[name], target.dtype)
            driver.check(driver.bindings().cuMemcpyHtoDAsync(target.ptr, pinned.ptr, pinned.nbytes, self._stream), "copying to the GPU")

    def download(self, outputs: Mapping[str, DeviceArray]) -> dict[str, Array]:
        """Owned host copies of `outputs`, floating ones as float32, once the stream has finished them."""
        if self._stream is None:
            return {name: host.public_copy(np.asarray(array.owner), array.dtype) for name, array in outputs.items()}
        for name, array in outputs.items():
            pinned = self._results.get(name)
            if pinned is None or pinned.array.shape != array.shape:
                pinned = self._results[name] = PinnedArray(array.shape, array.dtype, array.device)
            driver.check(driver.bindings().cuMemcpyDtoHAsync(pinned.ptr, array.ptr, pinned.nbytes, self._stream), "copying from the GPU")
        synchronize(self._stream)
        return {name: host.public_copy(self._results[name].array, array.dtype) for name, array in outputs.items()}
