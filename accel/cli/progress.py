"""Draw the progress of a long task on stderr: a bar on a terminal, nothing off one."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from accel.progress import Progress, silent

REDRAW_S = 0.1


@contextlib.contextmanager
def drawn() -> Iterator[Progress]:
    """A Progress whose steps appear as bars while the block runs; `silent` where stderr is no terminal.

    Nothing is drawn between two calls: a thread that repaints would run beside what is being timed.
    """
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    # Where no total is known (TensorRT 8.6 builds for minutes in silence) the spinner and the time that has passed are all there is.
    bar = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    columns = (SpinnerColumn(), TextColumn("{task.description}"), *bar)
    with Bars(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bars:
        tasks: dict[str, TaskID] = {}
        drawn_at = 0.0

        def draw(step: str, done: float, total: float | None = None) -> None:
            nonlocal drawn_at
            new = step not in tasks
            if new:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done, total=total)
            if new or done == total or time.monotonic() - drawn_at >= REDRAW_S:
                drawn_at = time.monotonic()
                bars.refresh()

        yield draw
