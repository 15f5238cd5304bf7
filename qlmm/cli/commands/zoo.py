"""``qlmm zoo list | show | verify | add | run``: the adapters that come with qlmm, in the terminal.

Usage: ``verify(["owl_kinds"], as_json=False)``
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from qlmm.artifacts.zoo.catalogue import CARD, complete, readme
from qlmm.artifacts.zoo.entry import Entry, Results, entries, read_entry
from qlmm.cli.output.console import out, visible
from qlmm.core.units import share
from qlmm.recipe.zoo import PREFIX, entry_folder, shipped

if TYPE_CHECKING:
    from rich.table import Table

    from qlmm.artifacts.adapter.load import LoadedAdapter
    from qlmm.artifacts.adapter.verify import Verdict
    from qlmm.data.sample import Sample

__all__ = ["add", "list_entries", "run", "show", "verify"]


def list_entries(*, markdown: bool = False) -> None:
    """Print every entry with its result, or the page adapters_zoo/README.md."""
    if markdown:
        out.stream(readme())
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("what it is, and its base", ratio=1)
    table.add_column("weights", no_wrap=True)
    table.add_column("held-out result")
    for name, entry in entries().items():
        base = " + ".join(part.removeprefix("builtin:") for part in entry.base.values())
        table.add_row(name, visible(f"{entry.summary}\n({base})"), entry.size, entry.result)
    out.screen(table)


def show(name: str) -> None:
    """Print an entry's facts, its measured results and its card.

    Raises:
        UsageError: Z001 for an unknown name.
        ModelError: Z002 for a damaged entry.
    """
    from qlmm.cli.output.screens import facts_screen

    source = entry_folder(name)
    entry = read_entry(source)
    out.screen(facts_screen({f"{PREFIX}{source.name}": _facts(entry), "held-out rows": _results(entry.results)}))
    front, _, body = (source / CARD).read_text("utf-8").removeprefix("---\n").partition("\n---\n")
    out.print((body or front).strip())


def verify(names: Sequence[str], *, as_json: bool = False) -> None:
    """Print what was checked about entries; leave with 1 unless every check of every one passed.

    Args:
        names: which; none is all.
        as_json: print one JSON object.

    Raises:
        UsageError: Z001 for an unknown name, before anything is checked.
    """
    wanted = [entry_folder(name).name for name in names] or list(shipped())
    from qlmm.cli.output.library_noise import quiet

    quiet()
    from qlmm.artifacts.zoo.check import check_entry

    verdicts = {name: check_entry(name, out.talk) for name in wanted}
    holds = bool(verdicts) and all(verdict.holds for verdict in verdicts.values())
    if as_json:
        listed = [
            {"name": name, "verified": one.holds, "checks": [asdict(check) for check in one.checks]}
            for name, one in verdicts.items()
        ]
        out.json({"verified": holds, "entries": listed})
    else:
        for name, one in verdicts.items():
            out.print(name)
            out.screen(_checks(one))
            out.print("")
        out.print(f"{sum(one.holds for one in verdicts.values())} of {len(verdicts)} are what they say they are")
    if not holds:
        raise typer.Exit(1)


def add(
    adapter: str,
    name: str,
    *,
    summary: str,
    licence: str,
    machine: str | None = None,
    hub: str | None = None,
    again: str | None = None,
) -> None:
    """Make an entry and say where it is; what the words mean is told in :class:`qlmm.artifacts.zoo.add.Request`.

    Raises:
        QlmmError: whatever stands against it; nothing is left then.
    """
    from qlmm.cli.output.library_noise import quiet

    quiet()
    from qlmm.artifacts.zoo.add import Request
    from qlmm.artifacts.zoo.add import add as make

    folder = make(Request(adapter, name, summary, licence, machine, hub, again), out.talk)
    out.print(str(folder))
    page = folder.parent / "README.md"
    out.talk(f"bring the page up to date: qlmm zoo list --markdown > {shlex.quote(str(page))}")


def run(name: str, question: str | None = None, image: Path | None = None) -> None:
    """Ask an entry: about a picture of the user's, or about those it was tested with, expected answers beside.

    Raises:
        QlmmError: for an unknown or damaged entry, or a picture that cannot be read.
    """
    from qlmm.cli.output.library_noise import quiet

    quiet()
    folder = complete(entry_folder(name).name, out.talk)
    from qlmm.proof.probe import probe_rows

    rows = probe_rows(folder)
    if image is not None:
        from qlmm.cli.commands.ask import ask

        ask(folder, question or _question(rows[0]), [image])
        return
    from qlmm.artifacts.adapter.load import load
    from qlmm.model.numerics.precision import choose

    out.talk(f"loading {folder}")
    _ask_own(load(folder, precision=choose("auto", "auto")), rows, question)


def _checks(verdict: Verdict) -> Table:
    from rich.table import Table
    from rich.text import Text

    from qlmm.cli.commands.verify import STYLES, WORDS

    table = Table(box=None, pad_edge=False, show_header=False)
    for one in verdict.checks:
        found = Text(visible(one.found) + (f"\nwhat to do: {visible(one.help)}" if one.help else ""))
        table.add_row(one.name, Text(WORDS[one.status], STYLES[one.status]), found)
    return table


def _ask_own(loaded: LoadedAdapter, rows: Sequence[Sample], question: str | None) -> None:
    from qlmm.cli.output.screens import facts_screen
    from qlmm.data.sample import Origin, Sample, Turn
    from qlmm.generation.answers import answer

    longest = loaded.manifest.recipe.evaluation.max_new_tokens
    for row in rows:
        asked, expected = question or _question(row), row.turns[-1].text.strip()
        sample = Sample((Turn("user", (*row.images, asked)),), Origin("zoo", 1)) if question else row
        with loaded.precision.autocast():
            said = answer(loaded.model, loaded.encoder, sample, longest)
        facts = [("question", asked), ("answer", said or "nothing")]
        facts += [] if question else [("expected", expected)]
        pictures = ", ".join(str(ref.path) for ref in row.images)
        out.screen(facts_screen({pictures or "no picture": facts}))


def _question(row: Sample) -> str:
    from qlmm.generation.answers import open_question

    return open_question(row).turns[-1].text.strip()


def _facts(entry: Entry) -> list[tuple[str, str]]:
    where = "here" if entry.weights == "here" else f"{entry.weights.id}@{entry.weights.commit}"
    facts = [
        ("what it is", entry.summary),
        *entry.base.items(),
        ("weights", f"{entry.size}, {entry.trained:,} trained, {where}"),
        ("made by", entry.command),
        ("made in", f"{entry.minutes} minutes on {entry.machine}" if entry.minutes else f"unknown, on {entry.machine}"),
        ("licence", entry.licence),
    ]
    if entry.rebuilt is not None:
        same = "the same weights, bit for bit" if entry.rebuilt.equal else "OTHER weights"
        facts.append(("made again", same))
    return facts


def _results(results: Results) -> list[tuple[str, str]]:
    """Losses and pairs, before and after, as lines."""
    facts = []
    for when, loss in (("before", results.before), ("after", results.after)):
        if loss is not None:
            shown = f"right picture {loss.right:.3f}, another row's {loss.shuffled:.3f}, none {loss.none:.3f}"
            facts.append((f"loss {when}", f"{shown} nats per token, {loss.rows} rows"))
    for when, pairs in (("before", results.pairs_before), ("after", results.pairs_after)):
        if pairs is not None:
            swapped = f", another row's picture {share(pairs.won_swapped)}" if pairs.won_swapped is not None else ""
            facts.append((f"pairs won {when}", f"{share(pairs.won)} of {pairs.rows}{swapped}"))
    return facts
