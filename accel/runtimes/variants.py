"""From what was typed (`all`, `onnxruntime`, `onnxruntime:fp16`) to the variants that it means for one bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from accel.engines import Bundle
from accel.runtimes.table import RUNTIMES, check, info
from accel.types import RUNTIME_ALIASES, Variant

_SHOWN = ("fp32", "fp16")
"""Precisions that a runtime's bare name and `all` run; the others are run when they are named."""


def variants(bundle: Bundle, names: Sequence[str], device: str) -> list[Variant]:
    """Expand `names` in order, each variant once.

    `all` is every runtime with what the bundle has for it; a runtime's name is all of that runtime; anything with a colon is
    one variant, whether the bundle has it or not. FP16 entries appear on a CPU too, for `refusal` to speak about.

    Raises:
        UnknownName, UsageError: a name, precision or option that the table does not have.
        BundleMissing: a runtime was named and the bundle has nothing that it runs.
    """
    found: dict[Variant, None] = {}
    for name in names:
        if ":" in name:
            variant = Variant.parse(name)
            check(variant)
            found[variant] = None
        elif name == "all":
            for runtime in RUNTIMES:
                found.update(dict.fromkeys(_of_runtime(bundle, runtime, device)))
        else:
            runtime = RUNTIME_ALIASES.get(name, name)
            had = list(_of_runtime(bundle, runtime, device))
            if not had:
                _explain_absence(bundle, runtime)
            found.update(dict.fromkeys(had))
    return list(found)


def _of_runtime(bundle: Bundle, runtime: str, device: str) -> Iterator[Variant]:
    row = info(runtime)
    kind = device.partition(":")[0]
    for precision in _SHOWN:
        entries = [entry for entry in bundle.entries if (entry.format, entry.precision) == (row.format, precision)]
        # The checkpoint runs in any precision; FP16 of it is not an artifact that a CPU row could speak about.
        from_module = row.format is None and bundle.has_checkpoint and (kind != "cpu" or precision == "fp32")
        if entries or from_module:
            built = {word for entry in entries for word in entry.toolchain.get("schedules", "").split(", ")}
            absent = set(row.built_in) - built
            shown = (options for options in row.showcase[kind] if not absent & set(options))
            yield from (Variant(runtime, precision, tuple(sorted(options))) for options in shown)


def _explain_absence(bundle: Bundle, runtime: str) -> None:
    """Let the bundle raise its own BundleMissing, which names the command that mends it."""
    row = info(runtime)
    if row.format is None:
        _ = bundle.checkpoint
    else:
        bundle.entry(row.format, row.precisions[0])
