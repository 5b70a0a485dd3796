"""The command line. Each command is a file of this room that parses, calls `accel.api` and prints; `main` alone sets exit codes."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable

import typer

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
from accel.errors import AccelError, DiskFull

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
UsageProblem: type[Exception] = typer.BadParameter.__mro__[2]
"""What typer raises for arguments that it cannot parse; it has `show()` and `exit_code`, and no name that every version exports."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code, the table of which is in `accel.errors`.

    Args:
        arguments: without the program's name; default `sys.argv[1:]`.

    An unexpected exception is left to Python: traceback, exit code 1.
    """
    _log_to_stderr()
    try:
        code = typer.main.get_command(app).main(args=arguments, prog_name="accel", standalone_mode=False)
        sys.stdout.flush()
    except AccelError as error:
        return _explain(error)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _explain(DiskFull(f"no space left on the disk ({error.filename or error.strerror})", remedy="free some space"))
    except UsageProblem as error:
        error.show()  # type: ignore[attr-defined]
        return int(getattr(error, "exit_code", 2))
    if code == INTERRUPTED:
        print("accel: interrupted; what was recorded is kept", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _explain(error: AccelError) -> int:
    if os.environ.get("ACCEL_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    if not error.told:
        print(f"accel: {error}", file=sys.stderr)
    return error.exit_code


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
