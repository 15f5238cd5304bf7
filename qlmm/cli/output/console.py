"""The only file that prints: results to stdout, notes about them to stderr.

On a terminal there is colour and a progress bar; anywhere else there are plain lines that a log can keep.
Nothing here may fail for want of a character: what a stream cannot encode is written in ASCII.

Usage: ``out.note("loading the base"); out.print(answer)``
"""

from __future__ import annotations

import codecs
import contextlib
import io
import re
import sys
from importlib import import_module
from typing import TYPE_CHECKING, TextIO

from qlmm.core import env
from qlmm.core.secrets import redact_values, shareable, visible
from qlmm.core.version import __version__

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

    from qlmm.core.errors import QlmmError

__all__ = ["Out", "out"]

NARROWEST = 40
FALLBACK = "qlmm_ascii"
IN_ASCII = str.maketrans(
    {"✓": "+", "✗": "x", "…": "...", "–": "-", "—": "-", "→": "->", "×": "x", "·": ".", "≤": "<=", "≥": ">="}
    | {"⟦": "[[", "⟧": "]]", "“": '"', "”": '"', "‘": "'", "’": "'", "│": "|", "─": "-", "━": "-", "╸": "-", "╺": "-"}
)
ERROR_STYLES = (
    (r"(?m)^error\[\w+\]", "bold red"),
    (r"(?m)^  --> .*$", "blue"),
    (r"(?m)^ *\d* \|", "blue"),
    (r"(?m)(?<= \| ) *\^+.*$", "bold red"),
    (r"(?m)^help:", "bold green"),
)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: the nearest ASCII, else a question mark per character."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(IN_ASCII)
    return re.sub(r"[^\x00-\x7f]", "?", text), error.end


codecs.register_error(FALLBACK, _in_ascii)


class Out:
    """One object for everything the command line prints; streams and environment are read at each use."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._json_of: str | None = None

    def want_json(self, command: str | None) -> None:
        """Take note that the result of a command, or why there is none, is wanted as JSON; None: it is not."""
        self._json_of = command

    def print(self, *results: str | RenderableType) -> None:
        """Results, to stdout: text exactly as it is, one per line; styled text as rich renders it."""
        for result in results:
            if isinstance(result, str):
                self.stream(result + "\n")
            else:
                self.console().print(result)

    def json(self, result: object, error: QlmmError | None = None, *, exit_code: int = 0) -> None:
        """A result in the JSON object that all commands share, to stdout; plain ASCII, which any pipe can carry."""
        import json
        from dataclasses import asdict

        envelope = {
            "qlmm": __version__,
            "command": self._json_of,
            "exit_code": exit_code if error is None else error.exit_code,
            "problems": [asdict(problem) for problem in error.problems] if error is not None else [],
            "result": result,
        }
        self._json_of = None
        # Written twice, since what is redacted is plain JSON values, and a result may hold tuples.
        self.stream(json.dumps(redact_values(json.loads(json.dumps(envelope))), indent=2) + "\n")

    def no_result(self, error: QlmmError | None, exit_code: int) -> None:
        """The JSON object of a command that ended without its result, where JSON is wanted and nothing was printed."""
        if self._json_of is not None:
            self.json(None, error, exit_code=exit_code)

    def stream(self, text: str) -> None:
        """A piece of a result, to stdout, at once and without a line end: an answer as it is generated."""
        stream = _forgiving(sys.stdout)
        stream.write(visible(text))
        stream.flush()

    def note(self, message: str, prefix: str = "") -> None:
        """One line about what is going on, to stderr; beside a progress bar, which it must not tear."""
        from rich.text import Text

        line = Text.assemble((prefix, "bold yellow"), shareable(message))
        console = self._bar.console if self._bar is not None else self.console(stderr=True)
        console.print(line, soft_wrap=True)

    def warn(self, message: str) -> None:
        """Something the user should know and may ignore, to stderr."""
        self.note(message, prefix="warning: ")

    def error(self, error: QlmmError) -> None:
        """Every problem of a refusal, as compilers print them, to stderr; ends an open progress bar."""
        from rich.text import Text

        self.close()
        text = Text(shareable(str(error)))
        for pattern, style in ERROR_STYLES:
            text.highlight_regex(pattern, style=style)
        self.console(stderr=True).print(text, soft_wrap=True)

    def screen(self, screen: RenderableType, *, soft_wrap: bool = False) -> None:
        """A whole screen, to stdout, without the blanks that fill a table's lines: they only bloat logs and diffs."""
        console = self.console()
        with console.capture() as capture:
            console.print(screen, soft_wrap=soft_wrap)
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))
        sys.stdout.flush()

    def show_beside(self, bar: Progress) -> None:
        """Print further notes through the bar's console until :meth:`close`."""
        self._bar = bar

    def read(self, prompt: str) -> str | None:
        """The user's next line without its end, or None when there is no more; the prompt is for terminals only."""
        if not self.answerable:
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        # Once imported, readline gives `input` editing and history; some systems have none.
        with contextlib.suppress(ImportError):
            import_module("readline")
        # `input` prompts on stdout; where that is not the terminal, the prompt must not end up in the result.
        if not sys.stdout.isatty():
            sys.stderr.write(prompt)
            sys.stderr.flush()
            prompt = ""
        try:
            return input(prompt)
        except EOFError:
            self.note("")
            return None

    @property
    def answerable(self) -> bool:
        """Whether somebody sits at stdin; otherwise nothing may be asked."""
        return sys.stdin.isatty()

    def close(self) -> None:
        """End the progress bar, if one is open."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @property
    def interactive(self) -> bool:
        """Whether somebody watches stderr: a terminal that can move its cursor, and no continuous integration."""
        return sys.stderr.isatty() and not self.console(stderr=True).is_dumb_terminal and not env.flag("CI")

    def console(self, *, stderr: bool = False) -> Console:
        """A rich console for one of the two streams, with colour only where it is wanted."""
        from rich.console import Console

        _forgiving(sys.stderr if stderr else sys.stdout)
        console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
        if console.no_color:
            # NO_COLOR in rich still writes bold and underline; a log wants no escape sequence at all.
            console = Console(stderr=stderr, highlight=False, markup=False, emoji=False, color_system=None)
        console.width = max(console.width, NARROWEST)
        return console


def _forgiving(stream: TextIO) -> TextIO:
    """The stream, made to write ASCII for what its encoding lacks instead of raising."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors != FALLBACK:
        stream.reconfigure(errors=FALLBACK)
    return stream


out = Out()
