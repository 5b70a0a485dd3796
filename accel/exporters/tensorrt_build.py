"""Run TensorRT's builder on a thread of its own, so that the one that waits can tell how far it is and hear an interrupt."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from accel import interrupts
from accel.device import driver
from accel.errors import UnsupportedOperator
from accel.exporters.tensorrt_network import Network
from accel.progress import Progress
from accel.trt import Library

logger = logging.getLogger(__name__)

TICK_S = 0.25


def build(parsed: Network, config: Any, progress: Progress, step: str, device: str = "cpu") -> bytes:
    """Build the plan.

    From 10 on the builder tells its phases: `progress` gets percent of 100. Before, it gets the seconds that have passed, and no total.

    Args:
        device: the GPU that the builder times its kernels on; `cpu` for a builder that uses none.

    Raises:
        UnsupportedOperator: the builder gave no plan; the message has what it logged.
        KeyboardInterrupt: Ctrl-C; the builder was told to stop, and waited for. One that cannot be told (8.6) is waited for too; a second
        Ctrl-C does not wait: the build's thread goes on until the process ends (see `accel.interrupts.abandoned`).
    """
    builder, network = parsed.builder, parsed.network
    cancelled, over = threading.Event(), threading.Event()
    outcome: dict[str, Any] = {}
    # TensorRT keeps no reference of its own: this name holds the monitor until the build is over.
    monitor = make_monitor(parsed.library, progress, step, cancelled) if hasattr(parsed.library.trt, "IProgressMonitor") else None
    if monitor is not None:
        config.progress_monitor = monitor

    def work() -> None:
        try:
            if cancelled.is_set():
                return
            if device != "cpu":
                driver.activate(device)  # the current GPU is a thread's own
            outcome["plan"] = builder.build_serialized_network(network, config)
        except BaseException as error:  # handed to the thread that waits, which raises it
            outcome["error"] = error
        finally:
            over.set()

    with parsed.library.listening(waits=True) as heard:
        thread = threading.Thread(target=work, name="TensorRT build", daemon=True)
        began = time.monotonic()
        try:
            thread.start()
            _wait(over, began, progress, step, tell=monitor is None)
        except BaseException:
            cancelled.set()
            if thread.ident is not None:  # else it has not begun, and never will
                if monitor is None:
                    logger.warning("%s cannot be stopped: its build is waited for (Ctrl-C again does not wait)", parsed.library.title)
                try:
                    over.wait()
                    thread.join()
                except BaseException:
                    interrupts.abandon(thread)
                    raise
            raise
        thread.join()
    if monitor is not None:
        config.progress_monitor = None
    if "error" in outcome:
        raise outcome["error"]
    if outcome["plan"] is None:
        raise _no_plan(parsed.library, step, heard)
    return bytes(outcome["plan"])


def make_monitor(library: Library, progress: Progress, step: str, cancelled: threading.Event) -> Any:
    """A `trt.IProgressMonitor` that tells `progress` percent of the whole, and stops the build once `cancelled` is set."""
    trt = library.trt

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()  # the builder calls from several threads
            self._phases: dict[str, tuple[str | None, int]] = {}
            self._done: dict[str, int] = {}
            self._told = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases[phase_name] = (parent_phase, max(num_steps, 1))
                self._done[phase_name] = 0

        def step_complete(self, phase_name: str, step_index: int) -> bool:
            with self._lock:
                self._done[phase_name] = step_index + 1
                self._tell(self._share(phase_name))
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                parent, _ = self._phases.pop(phase_name, (None, 1))
                self._done.pop(phase_name, None)
                if parent is None and not self._phases:
                    self._tell(1.0)

        def _share(self, name: str) -> float:
            """How much of the whole is done: a phase is one step of its parent."""
            share = 0.0
            parent: str | None = name
            while parent is not None and parent in self._phases:
                name = parent
                parent, steps = self._phases[name]
                share = min((self._done[name] + share) / steps, 1.0)
            return share

        def _tell(self, share: float) -> None:
            # A bar that went back would be read as a fault; phases that follow each other at the top start anew inside.
            self._told = max(self._told, share)
            progress(step, 100 * self._told, 100)

    return Monitor()


def _wait(over: threading.Event, began: float, progress: Progress, step: str, *, tell: bool) -> None:
    # No join with a timeout: before Python 3.13 one that Ctrl-C interrupts takes the thread for ended, and the next join does not wait.
    while not over.wait(TICK_S):
        if tell:
            progress(step, time.monotonic() - began, None)


def _no_plan(library: Library, step: str, heard: list[str]) -> UnsupportedOperator:
    said = "; ".join(dict.fromkeys(heard[-5:])) or "it logged no reason"
    return UnsupportedOperator(
        f"{library.title} built nothing ({step}): {said}",
        remedy="try a larger --workspace, other --tactic-sources or another --optimization-level",
    )
