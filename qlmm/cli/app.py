"""The command line: each file of ``qlmm/cli/commands`` is the command of its name.

A file has a function of its own name and an ``EXAMPLE``, or a ``group`` of sub-commands. What only the running command
needs is imported when it runs, so that help is instant.

Usage: ``qlmm finetune owl_lora training.steps=200 --dry-run``
"""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from qlmm import __version__
from qlmm.cli import edge
from qlmm.cli.output.library_noise import quiet
from qlmm.core import naming

__all__ = ["app", "main"]

COMMANDS = "qlmm.cli.commands"
# The order of help: what is done with an adapter, in turn. A name that is not here follows; Typer puts groups last.
ORDER = (
    *("finetune", "fit", "ask", "chat", "prefer", "verify", "merge"),
    *("export", "combine", "push", "pull", "explain", "doctor"),
)

# Help is plain text: the same on a terminal and in a log, and brackets in it are not taken for markup.
app = typer.Typer(
    help="Fine-tune multimodal language models on one consumer GPU.",
    epilog="Exit codes: 0 done, 1 failed, 2 refused (nothing was started), 101 a bug, 130 Ctrl-C, 143 SIGTERM.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qlmm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Prepare the process for any command: this runs before a command's own arguments are looked at."""
    quiet()


for _name in sorted(naming.names(COMMANDS), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
    _file = vars(importlib.import_module(f"{COMMANDS}.{_name}"))
    if "group" in _file:
        app.add_typer(_file["group"], name=_name)
    else:
        app.command(_name, epilog=_file.get("EXAMPLE"))(_file[_name])


def main() -> None:
    """Run the command line; see :mod:`qlmm.cli.edge` for how it ends."""
    edge.run(lambda: app(prog_name="qlmm"))
