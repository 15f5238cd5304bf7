"""``qlmm zoo list | show | verify | run``: the adapters that come with qlmm, in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlmm.cli.arguments import AsJson
from qlmm.cli.output.console import out
from qlmm.core.filenames import CARD
from qlmm.core.secrets import visible
from qlmm.core.units import share

if TYPE_CHECKING:
    from qlmm.artifacts.adapter.load import LoadedAdapter
    from qlmm.artifacts.zoo.entry import Entry
    from qlmm.data.sample import Sample
    from qlmm.proof.records import Proof

__all__ = ["group", "list_entries", "run", "show", "verify"]

group = typer.Typer(help="Small adapters that come with qlmm.", no_args_is_help=True, rich_markup_mode=None)


def _names(incomplete: str) -> list[str]:
    """Entries that complete a word on the command line."""
    from qlmm.recipe.zoo import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


Name = Annotated[str, typer.Argument(metavar="NAME", help="An adapter of the zoo.", autocompletion=_names)]


@group.command("list")
def list_entries(as_json: AsJson = False) -> None:
    """List the adapters and what they reached."""
    from rich.table import Column, Table

    from qlmm.artifacts.zoo.entry import entries

    if as_json:
        known = entries().items()
        out.json([{"name": name, "base": one.base, **one.facts.model_dump(mode="json")} for name, one in known])
        return
    columns = [Column("name", no_wrap=True), Column("what it is, and its base", ratio=1)]
    table = Table(*columns, Column("weights", no_wrap=True), "held-out result", box=None, pad_edge=False)
    for name, entry in entries().items():
        base = " + ".join(part.removeprefix("builtin:") for part in entry.base.values())
        table.add_row(name, visible(f"{entry.facts.summary}\n({base})"), entry.size, entry.result)
    out.screen(table)


@group.command(epilog="Example: qlmm zoo show owl_kinds")
def show(name: Name, as_json: AsJson = False) -> None:
    """Show an adapter's results and card."""
    from qlmm.artifacts.zoo.entry import read_entry
    from qlmm.cli.output.screens import facts_screen
    from qlmm.proof.records import to_json
    from qlmm.recipe.zoo import PREFIX, entry_folder

    source = entry_folder(name)
    entry = read_entry(source)
    card = (source / CARD).read_text("utf-8")
    if as_json:
        facts = {"name": source.name, "base": entry.base, **entry.facts.model_dump(mode="json")}
        out.json(facts | {"proof": to_json(entry.manifest.proven_by), "card": card})
        return
    out.screen(
        facts_screen({f"{PREFIX}{source.name}": _facts(entry), "held-out rows": _results(entry.manifest.proven_by)})
    )
    # The card opens with metadata for the Hub, between two lines of dashes.
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    out.print((body or front).strip())


@group.command(epilog="Example: qlmm zoo verify owl_kinds")
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Names; unset: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check that adapters are what they say."""
    from qlmm.recipe.zoo import entry_folder, shipped

    # A misspelt name is refused before anything is checked.
    wanted = [entry_folder(name).name for name in names or ()] or list(shipped())
    from qlmm.artifacts.zoo.check import check_entry
    from qlmm.cli.output.screens import checks_screen

    verdicts = {name: check_entry(name, out.note) for name in wanted}
    holds = bool(verdicts) and all(verdict.holds for verdict in verdicts.values())
    if as_json:
        listed = [
            {"name": name, "verified": one.holds, "checks": [asdict(check) for check in one.checks]}
            for name, one in verdicts.items()
        ]
        out.json({"verified": holds, "entries": listed}, exit_code=int(not holds))
    else:
        for name, one in verdicts.items():
            out.print(name)
            out.screen(checks_screen(one.checks))
            out.print("")
        out.print(f"{sum(one.holds for one in verdicts.values())} of {len(verdicts)} are what they say they are")
    if not holds:
        raise typer.Exit(1)


@group.command(epilog="Example: qlmm zoo run owl_kinds --image cat.png")
def run(
    name: Name,
    question: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="What to ask; unset: what it was trained on.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="A picture; unset: those it was tested with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask an adapter about a picture."""
    from qlmm.artifacts.zoo.catalogue import complete
    from qlmm.cli.conversation import Conversation, load_adapter
    from qlmm.proof.probe import probe_rows
    from qlmm.recipe.zoo import entry_folder

    folder = complete(entry_folder(name).name, out.note)
    rows = probe_rows(folder)
    if image is not None:
        asked = question or _question(rows[0])
        reply = Conversation.begin(folder, [image]).answer(asked, quiet=as_json)
        replies = [_Reply((str(image),), asked, reply)]
    else:
        replies = []
        for one in _asked(load_adapter(folder), rows, question):
            replies.append(one)
            if not as_json:
                _show_reply(one)
    if as_json:
        out.json([asdict(one) for one in replies])


@dataclass(frozen=True, slots=True)
class _Reply:
    """One answer; ``expected`` is what the row says, where its own question was asked."""

    pictures: tuple[str, ...]
    question: str
    answer: str
    expected: str | None = None


def _asked(loaded: LoadedAdapter, rows: Sequence[Sample], question: str | None) -> Iterator[_Reply]:
    """Answers about the pictures that the entry was tested with."""
    from qlmm.data.sample import Origin, Sample, Turn
    from qlmm.generation.answers import answer

    longest = loaded.manifest.recipe.evaluation.max_new_tokens
    for row in rows:
        asked = question or _question(row)
        sample = Sample((Turn("user", (*row.images, asked)),), Origin("zoo", 1)) if question else row
        with loaded.precision.autocast():
            reply = answer(loaded.model, loaded.encoder, sample, longest)
        expected = None if question else row.turns[-1].text.strip()
        yield _Reply(tuple(str(ref.path) for ref in row.images), asked, reply, expected)


def _show_reply(reply: _Reply) -> None:
    from qlmm.cli.output.screens import facts_screen

    facts = [("question", reply.question), ("answer", reply.answer or "nothing")]
    facts += [("expected", reply.expected)] if reply.expected is not None else []
    out.screen(facts_screen({", ".join(reply.pictures) or "no picture": facts}))


def _question(row: Sample) -> str:
    from qlmm.generation.answers import open_question

    return open_question(row).turns[-1].text.strip()


def _facts(entry: Entry) -> list[tuple[str, str]]:
    facts, trained = entry.facts, sum(part.trained_parameters for part in entry.manifest.proven_by.parts)
    same = "the same weights, bit for bit" if facts.rebuilt is not None and facts.rebuilt.equal else "OTHER weights"
    return [
        ("what it is", facts.summary),
        *entry.base.items(),
        ("weights", f"{entry.size}, {trained:,} trained"),
        ("made by", entry.command),
        ("made in", f"{facts.minutes} minutes on {facts.machine}" if facts.minutes else f"unknown, on {facts.machine}"),
        ("licence", facts.licence),
        *([("made again", same)] if facts.rebuilt is not None else []),
    ]


def _results(proof: Proof) -> list[tuple[str, str]]:
    """Losses and pairs, before and after, as lines."""
    facts = []
    for when, loss in (("before", proof.before), ("after", proof.after)):
        if loss is not None:
            shown = f"right picture {loss.right:.3f}, another row's {loss.shuffled:.3f}, none {loss.none:.3f}"
            facts.append((f"loss {when}", f"{shown} nats per token, {loss.rows} rows"))
    for when, pairs in (("before", proof.pairs_before), ("after", proof.pairs_after)):
        if pairs is not None:
            swapped = f", another row's picture {share(pairs.won_swapped)}" if pairs.won_swapped is not None else ""
            facts.append((f"pairs won {when}", f"{share(pairs.won)} of {pairs.rows}{swapped}"))
    return facts
