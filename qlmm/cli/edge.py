"""The edge of the program: every error of a command ends here, in one message and one exit code.

Codes are those of `qlmm.core.errors.EXIT_CODES`. Typer ends two cases itself: an unknown option with 2, and a reader
that closed the pipe with 1.

Usage: ``run(lambda: app(prog_name="qlmm"))``
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from qlmm.cli.output.console import out
from qlmm.core import env
from qlmm.core.errors import QlmmError
from qlmm.core.files import atomic_write
from qlmm.core.secrets import redact, shortened

__all__ = ["run"]

EXIT_BUG = 101
EXIT_INTERRUPTED = 130
LONGEST_BUG = 200


def run(command: Callable[[], object]) -> None:
    """Run a command and leave with the exit code of its error; what is not a refusal is reported as a bug."""
    try:
        command()
    except QlmmError as error:
        out.error(error)
        if env.flag("QLMM_DEBUG"):
            out.note(_trace(error))
        out.no_result(error, error.exit_code)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        out.no_result(None, EXIT_INTERRUPTED)
        sys.exit(EXIT_INTERRUPTED)
    except SystemExit as end:
        # Typer ends commands itself, on Ctrl-C too.
        out.no_result(None, end.code if isinstance(end.code, int) else 1)
        raise
    except Exception as error:  # noqa: BLE001  the edge of the program: an unknown error must still end in one line
        _report_bug(error)
        out.no_result(None, EXIT_BUG)
        sys.exit(EXIT_BUG)


def _report_bug(error: Exception) -> None:
    """One line about a bug, and its trace in a file; the trace itself is printed on request only."""
    trace = _trace(error)
    place = env.home() / "crash.txt"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(place, trace)
        where = f"trace: {place}"
    except OSError:
        where = "QLMM_DEBUG=1 shows the trace"
    name = shortened(f"{type(error).__name__}: {error}".splitlines()[0], LONGEST_BUG)
    out.note(f"error[X101]: this is a bug in qlmm ({name}); {where}")
    if env.flag("QLMM_DEBUG"):
        out.note(trace)


def _trace(error: BaseException) -> str:
    """The trace without access keys and without the name of the home folder; values of variables are never in it."""
    return redact("".join(traceback.format_exception(error))).replace(str(Path.home()), "~")
