"""The TensorRT that is installed: one code path for 8.6, 10, 11 and TensorRT-RTX, which asks the module by name what it has."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import logging
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from accel import interrupts
from accel.errors import MissingExtra, UnknownName, UsageError

logger = logging.getLogger(__name__)

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""Name of a `DataType` → key of types.ITEMSIZE; the rest (FP8, INT4) cannot be an input or output of ours."""


@dataclasses.dataclass(frozen=True)
class Flavor:
    """One of NVIDIA's two libraries.

    Attributes:
        name: of the runtime and of the export format.
        title: as it is written.
        modules: import names, the first that is there counts.
        distributions: packages whose version is the library's.
        extra: of accel-engines, that installs it.
        magic: the first bytes of its plans.
        ahead_of_time: it builds for GPUs that are named, and needs none; else for the GPU that it builds on.
    """

    name: str
    title: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    extra: str
    magic: bytes
    ahead_of_time: bool = False


FLAVORS = {
    flavor.name: flavor
    for flavor in (
        Flavor(
            "tensorrt",
            "TensorRT",
            ("tensorrt", "tensorrt_bindings"),
            ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
            "trt",
            b"ftrt",
        ),
        Flavor(
            "tensorrt-rtx",
            "TensorRT-RTX",
            ("tensorrt_rtx", "tensorrt_rtx_bindings"),
            ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu13-bindings"),
            "rtx",
            b"vtrt",
            ahead_of_time=True,
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Library:
    """An imported TensorRT.

    Attributes:
        trt: the module.
        version: as far as the module tells it, `(8, 6, 0)` or `(1, 7, 1, 116)`.
        log: its process-wide logger; pass it wherever TensorRT wants one.
    """

    flavor: Flavor
    trt: Any
    version: tuple[int, ...]
    log: Any

    @property
    def title(self) -> str:
        """`TensorRT 8.6.0`"""
        return f"{self.flavor.title} {'.'.join(map(str, self.version))}"

    def dtype_name(self, dtype: Any) -> str:
        """The key of types.ITEMSIZE for a `trt.DataType`.

        Raises:
            UsageError: there is none.
        """
        name = str(dtype).rpartition(".")[2]
        if name not in DTYPES:
            raise UsageError(
                f"{self.title} has a tensor of type {name}", remedy=f"export it with inputs and outputs in {', '.join(DTYPES)}"
            )
        return DTYPES[name]

    @contextlib.contextmanager
    def listening(self, *, waits: bool = False) -> Iterator[list[str]]:
        """Errors and warnings that TensorRT logs inside the block, in a list that fills as they come.

        The builder logs from threads of its own, so what another thread does meanwhile is in the list too.

        Args:
            waits: the block only waits for another thread's call, and hears Ctrl-C at once. Else Ctrl-C is raised at the block's end:
                TensorRT drops what its logger raises.
        """
        with contextlib.nullcontext() if waits else interrupts.deferred(), self.log.listening() as heard:
            yield heard


def load(flavor: str) -> Library:
    """The installed library of `flavor` (a key of FLAVORS).

    Raises:
        UnknownName: no such flavor. MissingExtra: it is not installed, or cannot be imported.
    """
    if flavor not in FLAVORS:
        raise UnknownName("flavor of TensorRT", flavor, list(FLAVORS))
    return _load(flavor)


@functools.cache
def _load(name: str) -> Library:
    flavor = FLAVORS[name]
    for module_name in flavor.modules:
        try:
            trt = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name != module_name:
                raise MissingExtra(module_name, flavor.extra, f"cannot be imported: it needs {error.name}, which is absent") from error
            continue
        except (ImportError, OSError) as error:
            raise MissingExtra(module_name, flavor.extra, f"is installed but cannot be imported ({error})") from error
        version = tuple(int(part) for part in str(trt.__version__).split(".") if part.isdigit())
        return Library(flavor, trt, version, _make_log(trt))
    raise MissingExtra(flavor.modules[0], extra=flavor.extra)


def _make_log(trt: Any) -> Any:
    """TensorRT keeps the first logger of a process for good, so there is one for each library."""
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,
        severity.VERBOSE: logging.DEBUG,
    }

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._lock = threading.Lock()
            self._listeners: list[list[str]] = []
            self.recent: deque[str] = deque(maxlen=50)

        def log(self, level: Any, text: str) -> None:
            rank = levels.get(level, logging.DEBUG)
            # An error reaches the user in the exception that follows it; logged twice it would be read as two.
            logger.debug("%s", text)
            if rank >= logging.WARNING:
                with self._lock:
                    self.recent.append(text)
                    for heard in self._listeners:
                        heard.append(text)

        @contextlib.contextmanager
        def listening(self) -> Iterator[list[str]]:
            heard: list[str] = []
            with self._lock:
                self._listeners.append(heard)
            try:
                yield heard
            finally:
                with self._lock:
                    self._listeners = [other for other in self._listeners if other is not heard]

    return Log()
