"""The command line. Each command is a file of this room that parses, calls `accel.api` and prints; `main` alone sets exit codes."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import typer

from accel import interrupts
from accel.cli import (
    bench,
    bundle,
    compare,
    config,
    data,
    demo,
    doctor,
    evaluate,
    export,
    inspect,
    package,
    predict,
    report,
    selfcheck,
    serve,
    sweep,
    train,
    tune,
    verify,
    version,
)
from accel.errors import AccelError, DiskFull, MissingError

app = typer.Typer(
    help="Export a trained model to engines, verify each on the real test set, time each at batch 1.",
    no_args_is_help=True,
    # Without rich the help is printed in half the time; the tables of results still use it.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.add_typer(bundle.app, name="bundle")
COMMANDS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "sweep": sweep.sweep,
    "evaluate": evaluate.evaluate,
    "export": export.export,
    "tune": tune.tune,
    "verify": verify.verify,
    "bench": bench.bench,
    "compare": compare.compare,
    "report": report.report,
    "predict": predict.predict,
    "serve": serve.serve,
    "inspect": inspect.inspect,
    "package": package.package,
    "config": config.config,
    "doctor": doctor.doctor,
    "selfcheck": selfcheck.selfcheck,
    "demo": demo.demo,
    "version": version.version,
}
for _name, _body in COMMANDS.items():
    app.command(_name)(_body)

INTERRUPTED = 130
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
"""What a path may be refused with that is no mistake of ours."""
UsageProblem: type[Exception] = typer.BadParameter.__mro__[2]
"""What typer raises for arguments that it cannot parse; it has `show()` and `exit_code`, and no name that every version exports."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code, the table of which is in `accel.errors`.

    Args:
        arguments: without the program's name; default `sys.argv[1:]`.

    An unexpected exception is left to Python: traceback, exit code 1.
    """
    _open_what_is_closed()
    _log_to_stderr()
    _print_whatever_comes()
    try:
        code = typer.main.get_command(app).main(args=arguments, prog_name="accel", standalone_mode=False)
        sys.stdout.flush()
    except AccelError as error:
        return _explain(error)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    except SystemExit as ended:
        # typer makes exit code 1 of a broken pipe by itself, whichever pipe it was.
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        if not _nobody_reads():
            raise ended.__context__ from None
        return _reader_gone()
    except OSError as error:
        told = _of_disk(error)
        if told is None:
            raise
        return _explain(told)
    except UsageProblem as error:
        error.show()  # type: ignore[attr-defined]
        return int(getattr(error, "exit_code", 2))
    if code == INTERRUPTED:
        print("accel: interrupted; what was recorded is kept", file=sys.stderr)
        if interrupts.abandoned():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return code if isinstance(code, int) else 0


def _explain(error: AccelError) -> int:
    if os.environ.get("ACCEL_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    if not error.told:
        print(f"accel: {error}", file=sys.stderr)
    return error.exit_code


def _of_disk(error: OSError) -> AccelError | None:
    """What a disk that is full, or a path that this user may not use, is for the user; None if it is neither."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"no space left on the disk ({error.filename or error.strerror})", remedy="free some space")
    if error.errno not in (*UNUSABLE, errno.ENOENT) or not isinstance(error.filename, (str, bytes)):
        return None
    path = Path(os.fsdecode(error.filename)).absolute()
    remedy = "name a folder that this user may write (--out, ACCEL_CACHE_DIR, or work in another one), or change its rights"
    if error.errno == errno.ENOENT:
        remedy = "it is gone, or cannot be made there: bring it back, or name another path; ACCEL_DEBUG=1 says what wanted it"
    told = MissingError(f"{path} cannot be used: {error.strerror}", remedy=remedy)
    told.__cause__ = error
    return told


def _nobody_reads() -> bool:
    """Whether what reads our stdout or stderr has gone away; a pipe to somebody else may break too, and that is an error."""
    poll = select.poll()
    with contextlib.suppress(OSError, ValueError):
        poll.register(sys.stdout.fileno(), 0)
        poll.register(sys.stderr.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _open_what_is_closed() -> None:
    # A shell's `>&-` and some daemons leave these closed, and Python has None for them. The lowest free number is the closed one's own.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for the process)


def _print_whatever_comes() -> None:
    # A terminal of Latin-1 has no rules and dashes, and a file's name need not be text: a table is better than a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper):
        utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "replace")


def _reader_gone() -> int:
    # As in `accel … | head`: nobody reads on, which is no error; the interpreter's own flush at exit must not complain either.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _log_to_stderr() -> None:
    logger = logging.getLogger("accel")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("accel: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
