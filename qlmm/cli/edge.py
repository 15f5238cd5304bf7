"""The edge of the program: every error of a command ends here, in one message and one exit code.

0 done, 1 failed and explained, 2 usage or recipe error with nothing started, 101 a bug in qlmm, 130 Ctrl-C,
143 SIGTERM. Typer ends two cases itself: an unknown option with 2, and a reader that closed the pipe with 1.

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
from qlmm.core.secrets import redact

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
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:  # noqa: BLE001  the edge of the program: an unknown error must still end in one line
        _report_bug(error)
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
    name = f"{type(error).__name__}: {error}".splitlines()[0][:LONGEST_BUG]
    out.note(f"error[X101]: this is a bug in qlmm ({name}); {where}")
    if env.flag("QLMM_DEBUG"):
        out.note(trace)


def _trace(error: BaseException) -> str:
    """The trace without access keys and without the name of the home folder; values of variables are never in it."""
    return redact("".join(traceback.format_exception(error))).replace(str(Path.home()), "~")
