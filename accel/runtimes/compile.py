"""The checkpoint's module through torch.compile (Inductor), in one of its modes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from accel.runtimes.torch_module import load_module, under_autocast
from accel.runtimes.torch_runtime import TorchRuntime

_MODES = ("reduce-overhead", "max-autotune")
_LOCK = threading.Lock()
_OPEN: set[int] = set()


class Compile(TorchRuntime):
    """Options: `reduce-overhead` or `max-autotune` (both with CUDA graphs) instead of the default mode; `freezing` (the weights are
    constants that Inductor may fold and lay out anew), which goes with every mode; `fold`, `channels_last`.

    Without a working compiler the module runs eagerly and `facts["fallback"]` says why; whoever prints a row prints that.
    `facts["settings"]` names what is set against Inductor's defaults beside the mode.
    `facts["build_cached"]` tells whether Inductor took all of its code from the cache on the disk; absent where it was not asked.
    `facts["recompiles"]` counts compilations since open: more than 0 means that one may have been timed. They are counted and not
    forbidden: torch's stance "fail_on_recompile" makes a new callback in every call, which cost 1 to 2 µs of each (tiny net on a CPU,
    torch 2.15, alternating blocks), and what is timed is what a service calls.
    Outputs of CUDA graphs are overwritten by the next call, as the protocol allows.
    """

    warmup_calls = 4
    """With CUDA graphs: the first call compiles, the second warms up, the third captures, the fourth replays."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self._compiled_at_open = 0
        self._cache_at_load = (0, 0)

    graphless = "in compile's default mode"

    @property
    def mode(self) -> str:
        return next((mode for mode in _MODES if mode in self.source.variant.options), "default")

    @property
    def facts(self) -> Mapping[str, Any]:
        if self._torch is None:
            return self._facts
        return {**self._facts, "recompiles": _compilations(self._torch) - self._compiled_at_open}

    @property
    def captures(self) -> bool:
        return self.mode != "default"

    def open(self, stream: int | None) -> None:
        super().open(stream)
        self._compiled_at_open = _compilations(self._torch)
        hits, misses = (now - before for now, before in zip(_cache_counts(self._torch), self._cache_at_load, strict=True))
        if hits or misses:
            self._facts["build_cached"] = not misses

    def _load(self, torch: Any) -> Any:
        self._cache_at_load = _cache_counts(torch)
        return load_module(torch, self.source)

    def _callable(self, torch: Any, module: Any, examples: tuple[Any, ...]) -> Callable[..., Any]:
        with _LOCK:
            if not _OPEN:
                # Compilations are counted by code object: the eight that torch allows would be used up by engines long closed.
                torch._dynamo.reset()
            _OPEN.add(id(self))
        chosen = self._inductor_options()
        if chosen:
            self._facts["settings"] = dict(chosen)
            chosen = {**torch._inductor.list_mode_options(self.mode), **chosen}
        # torch takes a mode or options, not both.
        how = {"options": chosen} if chosen else {"mode": self.mode}
        compiled = under_autocast(torch, self.source, torch.compile(module, dynamic=False, **how))
        skips = _graph_skips(torch)
        try:
            # Beyond its limit of compilations of one forward() torch would run it uncompiled and say nothing.
            with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
                compiled(*examples)
        except (torch._dynamo.exc.BackendCompilerFailed, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            self._facts["fallback"] = f"torch.compile failed, so this is eager: {_reason(error)}"
            return super()._callable(torch, module, examples)
        if self.source.device != "cpu" and self.mode != "default" and _graph_skips(torch) > skips:
            self._facts["fallback"] = f"{self.mode} without CUDA graphs: torch skipped them (TORCH_LOGS=cudagraphs tells why)"
        return compiled

    def _inductor_options(self) -> dict[str, Any]:
        """What is set against Inductor's defaults, by its own names; empty where the mode alone decides."""
        options = self.source.variant.options
        chosen: dict[str, Any] = {"freezing": True} if "freezing" in options else {}
        if self.source.device == "cpu" and "channels_last" not in options:
            # Its channels-last layout makes every call convert the weights anew: at batch 1 on a CPU ResNet-18 took 1.6 times as long.
            chosen["layout_optimization"] = False
        return chosen

    def close(self) -> None:
        with _LOCK:
            _OPEN.discard(id(self))
        super().close()


def _compilations(torch: Any) -> int:
    return int(torch._dynamo.utils.counters["frames"]["total"])


def _cache_counts(torch: Any) -> tuple[int, int]:
    """How many graphs this process found in Inductor's caches, and how many it had to compile or could not look up."""
    counters = torch._dynamo.utils.counters
    found: dict[str, int] = {**counters["inductor"], **counters["aot_autograd"]}
    hits = ("fxgraph_cache_hit", "autograd_cache_hit")
    # A miss of AOTAutograd's alone costs a trace: the compiled code still comes from the other.
    misses = ("fxgraph_cache_miss", "fxgraph_cache_bypass")
    return sum(int(found.get(name, 0)) for name in hits), sum(int(found.get(name, 0)) for name in misses)


def _graph_skips(torch: Any) -> int:
    return int(torch._dynamo.utils.counters["inductor"]["cudagraph_skips"])


def _reason(error: BaseException) -> str:
    """The first telling line of what lies under the wrapper."""
    inner = getattr(error, "inner_exception", None) or error.__cause__ or error
    return f"{type(inner).__name__}: {next((line for line in str(inner).splitlines() if line.strip()), '')}"
