"""Which error a run over several variants ends with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from accel.errors import AccelError, AccuracyGate, DatasetMissing, RuntimeUnavailable
from accel.runtimes import info
from accel.types import RUNTIME_ALIASES, Variant


@dataclasses.dataclass(frozen=True)
class Fault:
    """Why one variant has no good row: `verdict` is one of `accel.bench.columns.VERDICTS`; `exit_code` if it is not the verdict's own."""

    variant: str
    verdict: str
    reason: str
    remedy: str | None = None
    exit_code: int | None = None


_ENDS: dict[str, type[AccelError]] = {
    "INVALID": AccuracyGate,
    "ERROR": AccelError,
    "UNVERIFIED": DatasetMissing,
    "FALLBACK": RuntimeUnavailable,
    "MISSING": RuntimeUnavailable,
    "REFUSED": RuntimeUnavailable,
}
"""Verdict → error, the gravest first."""


def error_of(faults: Iterable[Fault], names: Sequence[str], *, nothing_ran: bool = False, model: str = "") -> AccelError | None:
    """The error to end with, or None if every fault is one that its row has said enough about.

    What `all` finds missing or refused fails nothing: the row names it. What was typed is a request, and a request not met is an error.

    Args:
        faults: of the variants that have no good row.
        names: what was typed: `all`, runtimes and variants.
        nothing_ran: no variant has a result of any kind; `all` of none is a request not met too.
        model: whose variants these are, where the message has to say so.
    """
    grave = [fault for fault in faults if nothing_ran or _was_asked(fault, names)]
    for verdict, kind in _ENDS.items():
        of_kind = [fault for fault in grave if fault.verdict == verdict]
        if of_kind:
            what = "\n".join(f"  {fault.variant} is {verdict}: {fault.reason}" for fault in of_kind)
            plural, whose = ("s", "have") if len(of_kind) > 1 else ("", "has"), f" of {model}" if model else ""
            error = kind(f"{len(of_kind)} variant{plural[0]}{whose} {plural[1]} no good result\n{what}", remedy=of_kind[0].remedy)
            error.exit_code = of_kind[0].exit_code or kind.exit_code
            return error
    return None


def _was_asked(fault: Fault, names: Sequence[str]) -> bool:
    if fault.verdict in ("INVALID", "ERROR", "UNVERIFIED"):
        return True
    if fault.variant in {str(Variant.parse(name)) for name in names if ":" in name}:
        return True
    # `--runtime onnxruntime` asks for what the machine can do of it: an FP16 that a CPU refuses is said in its row.
    runtime = fault.variant.partition(":")[0]
    if fault.verdict == "REFUSED" or runtime not in {RUNTIME_ALIASES.get(name, name) for name in names}:
        return False
    # Nor does it ask for packages beyond the runtime's own.
    return not set(Variant.parse(fault.variant).options) & set(info(runtime).beyond)
