"""Plans made into engines, one a process for each file and device: an ICudaEngine is shared, an execution context belongs to a thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accel.engines import compat
from accel.errors import AccelError, CorruptArtifact, IncompatibleArtifact
from accel.files import sha256_file
from accel.runtimes.leases import Leases
from accel.trt import Library, PlanHeader, read_header
from accel.types import EngineSource

_SAID_LINES = 3


_ENGINES = Leases()


@contextlib.contextmanager
def leased(library: Library, source: EngineSource) -> Iterator[Any]:
    """The ICudaEngine of the plan of `source`, deserialised by the first that asks and given back by the last.

    Raises:
        IncompatibleArtifact: the plan's header or the library says that it is for something else; with expected, found and the command.
        CorruptArtifact: it is no plan.
    """
    file = plan_of(source)
    known = next(iter(source.entry.files.values()), "") if source.entry is not None else ""
    key = (library.flavor.name, known or sha256_file(file), source.device)
    with _ENGINES.held(key, lambda: _deserialise(library, source, file)) as (_, engine):
        yield engine


def count() -> int:
    """How many engines are held now."""
    return len(_ENGINES)


def plan_of(source: EngineSource) -> Path:
    if source.file is None:
        raise AccelError(f"{source.variant} was given no file to run", remedy="resolve it with runtimes.engine_source")
    return source.file


def rebuild_command(source: EngineSource) -> str:
    """What makes the plan anew from the ONNX file of its bundle."""
    if source.entry is None or source.file is None:
        return "build the plan again on this machine"
    return compat.again(source.entry, source.file.parents[1])


def said(heard: Sequence[str]) -> str:
    """The last lines of TensorRT's log, for the end of a message."""
    lines = list(dict.fromkeys(line.strip() for line in heard))[-_SAID_LINES:]
    return f"; its log says: {' | '.join(lines)}" if lines else "; its log says nothing"


def check_header(library: Library, source: EngineSource, file: Path) -> PlanHeader | None:
    """Hold the plan's first bytes against the library; a layout that we do not know says nothing.

    Raises:
        IncompatibleArtifact: the plan is of another library or version. CorruptArtifact: it is shorter than any header.
    """
    header = read_header(file)
    if header is None:
        return None
    fitting = header.flavor == library.flavor.name
    if fitting and _is_version_compatible(source):
        fitting = library.version[0] >= header.version[0]
    elif fitting:
        fitting = compat.same_version(library.version, header.version)
    if not fitting:
        raise IncompatibleArtifact(
            f"{file} was built by {header}; this environment has {library.title}",
            remedy=f"install the version that built it, or build it again here: {rebuild_command(source)}",
        )
    return header


def _is_version_compatible(source: EngineSource) -> bool:
    return source.entry is not None and bool(source.entry.target.get("version_compatible"))


def _deserialise(library: Library, source: EngineSource, file: Path) -> tuple[Any, Any]:
    header = check_header(library, source, file)
    with library.listening() as heard:
        runtime = library.trt.Runtime(library.log)
        if _is_version_compatible(source):
            # Such a plan brings its own runtime along, as code; whoever loads a plan has vouched for code already.
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        kind = CorruptArtifact if header is None else IncompatibleArtifact
        raise kind(
            f"{library.title} cannot use {file} on {source.device}{said(heard)}",
            remedy=f"build it again here: {rebuild_command(source)}",
        )
    # A TensorRT runtime has to outlive its engines.
    return runtime, engine
