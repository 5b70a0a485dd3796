"""Running a generated program on the CPU: the source compiled by g++ with emulator.hpp in place of the GPU's instructions."""

from __future__ import annotations

import atexit
import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel.exporters.fused.program import Program

COMPILER = ("g++", "-std=c++17", "-O0", "-w", "-fPIC", "-ffp-contract=off")
HEADER = Path(__file__).with_name("emulator.hpp")
POISON = 0xFF
"""Of every byte of the arena and the logits before a run: NaN in FP16 and FP32."""


class Emulator:
    """A program compiled for the CPU, and one context of it: arena and state stay between launches."""

    def __init__(self, program: Program, folder: Path) -> None:
        self.program = program
        source, library = folder / f"{program.schedule}.cpp", folder / f"{program.schedule}.so"
        source.write_text(program.source, encoding="utf-8")
        _run([*COMPILER, "-shared", "-include", str(_header()), str(source), "-o", str(library)])
        self._library = ctypes.CDLL(str(library))
        self._arena = _aligned(program.arena_bytes)
        self._state = _aligned(program.state_bytes)
        self._state[:] = 0
        self._weights = _aligned(len(program.weights))
        self._weights[:] = np.frombuffer(program.weights, np.uint8)

    @property
    def error_word(self) -> int:
        return int(self._state[:4].view(np.uint32)[0])

    def run(self, image: NDArray[Any], *, backwards: bool = False, ctas: int | None = None) -> NDArray[np.float32]:
        """Logits of one image of the program's shape and dtype. AssertionError: what the emulator found, with the kernel.

        `ctas` launches fewer than planned, so that a barrier is never complete.
        """
        assert image.shape == self.program.input_shape, image.shape
        logits = _aligned(int(np.prod(self.program.output_shape)) * 4)
        given = _aligned(image.nbytes)
        given[:] = np.frombuffer(np.ascontiguousarray(image).tobytes(), np.uint8)
        logits[:] = POISON
        self._arena[:] = POISON
        buffers = [given, self._weights, self._arena, logits, self._state]
        addresses = (ctypes.c_void_p * 5)(*(buffer.ctypes.data for buffer in buffers))
        sizes = (ctypes.c_size_t * 5)(*(buffer.nbytes for buffer in buffers))
        for kernel in self.program.kernels:
            message = ctypes.create_string_buffer(512)
            function = ctypes.cast(getattr(self._library, kernel.name), ctypes.c_void_p)
            failed = self._library.emulate(
                function,
                ctypes.c_int(ctas or kernel.grid),
                ctypes.c_size_t(kernel.shared),
                int(kernel.cooperative or kernel.cluster > 1),
                int(kernel.dependent),
                int(backwards),
                addresses,
                sizes,
                message,
                ctypes.c_size_t(len(message)),
            )
            assert not failed, f"{kernel.name}: {message.value.decode()}"
        return logits.view(np.float32).reshape(self.program.output_shape).copy()

    def results(self) -> Mapping[str, NDArray[np.float16]]:
        """Of the last run, layer → channels × height × width, the padding among them."""
        found = {}
        for name, (offset, shape) in self.program.outputs.items():
            size = int(np.prod(shape)) * 2
            found[name] = self._arena[offset : offset + size].view(np.float16).reshape(shape).transpose(2, 0, 1).copy()
        return found


def available() -> bool:
    return shutil.which("g++") is not None


@functools.lru_cache
def _header() -> Path:
    """The header's place beside its compiled form, which all programs of this process share."""
    folder = Path(tempfile.mkdtemp(prefix="accel-emulator-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    copy = folder / HEADER.name
    shutil.copyfile(HEADER, copy)
    _run([*COMPILER, "-x", "c++-header", str(copy), "-o", f"{copy}.gch"])
    return copy


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


def _aligned(size: int) -> NDArray[np.uint8]:
    raw = np.empty(size + 256, np.uint8)
    start = -raw.ctypes.data % 256
    return raw[start : start + size]
