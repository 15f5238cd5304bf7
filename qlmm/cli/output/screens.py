"""The screens of commands: pure functions from facts to what rich prints, so that tests need no terminal.

Usage: ``out.screen(plan_screen(facts))``
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from qlmm.core.secrets import shareable, visible
from qlmm.core.units import memory, share
from qlmm.proof.records import (
    Answer,
    Comparison,
    PairProof,
    PartFacts,
    PartProof,
    PictureProof,
    PlanFacts,
    Promise,
    Proof,
    Verdicts,
)
from qlmm.proof.verdicts import COMPARED, verdicts

if TYPE_CHECKING:
    from qlmm.artifacts.adapter.verify import Check
    from qlmm.training.fit import FitFacts

__all__ = [
    "answers_screen",
    "checks_screen",
    "done_screen",
    "facts_screen",
    "fit_screen",
    "plan_screen",
    "proof_screen",
]

# A figure's name, how it is written, and its values before and after training.
Line = tuple[str, Callable[[float], str], float | None, float | None]
NOTHING = "-"
GAINED = "gained by the right picture over a shuffled one"
HEADING = "bold"
QUIET = "dim"
ROUND_EPOCHS = 10
EVERY = {0: "no layer", 1: "every layer"}
USEFUL = {True: ("yes", "bold green"), False: ("NO", "bold yellow"), None: ("unknown", "yellow")}
STATUSES = {"ok": ("ok", "green"), "failed": ("FAILED", "bold red"), "not checked": ("not checked", "yellow")}
RUN_FILES = (
    ("adapter", "adapter"),
    ("report", "report.html"),
    ("curve", "loss.png"),
    ("pairs", "preferences.png"),
    ("metrics", "metrics.jsonl"),
    ("facts", "run.json"),
)


def plan_screen(facts: PlanFacts) -> Group:
    """One screen of 80 columns: base, parts, data, steps, needs, and what to mind."""
    warnings = [Text.assemble(("warning: ", "bold yellow"), _text(warning)) for warning in facts.warnings]
    return Group(
        _pairs([("base", facts.base), ("output", f"{facts.output_dir} (about {memory(facts.disk_bytes)} on disk)")]),
        "",
        _parts(facts),
        "",
        _pairs(
            [
                ("LoRA on", ", ".join(facts.targets) or NOTHING),
                ("rows", _rows(facts)),
                ("tokens", _tokens(facts)),
                *([("pictures", ", ".join(facts.pictures))] if facts.pictures else []),
                *([("note", "; ".join(facts.notes))] if facts.notes else []),
                ("steps", _steps(facts)),
                ("memory", _memory(facts)),
                ("compute", f"{facts.precision} on {facts.device}"),
            ]
        ),
        Group(*([""] if warnings else []), *warnings),
        "",
    )


def proof_screen(proof: Proof) -> Group:
    """Movement per part, held-out loss and pairs by picture, promises, comparisons, and the two verdicts."""
    blocks: list[RenderableType] = [_movement(proof.parts), ""]
    if proof.before is not None or proof.after is not None:
        blocks += [_pictures(proof.before, proof.after), ""]
    if proof.pairs_before is not None or proof.pairs_after is not None:
        blocks += [_held_out_pairs(proof.pairs_before, proof.pairs_after), ""]
    blocks += [_promises(proof.promises), ""]
    if proof.comparisons:
        blocks += [_comparisons(proof.comparisons), ""]
    return Group(*blocks, _verdicts(verdicts(proof)), "")


def answers_screen(answers: Sequence[Answer]) -> Group:
    """The model's answers to held-out pictures before and after training, beside what was expected."""
    table = _table("held-out picture", "expected", "before", "after")
    for number, answer in enumerate(answers, 1):
        texts = (answer.expected, answer.before, answer.after)
        seen = " (trained on)" if answer.picture_trained else ""
        table.add_row(f"{number}.png{seen}", *(_text(" ".join(text.split())) for text in texts))
    return Group(table, "")


def done_screen(run_dir: Path, next_commands: Sequence[str]) -> Group:
    """What the run left, as far as it is there, and the next commands."""
    places = [(name, str(run_dir / file)) for name, file in RUN_FILES if (run_dir / file).exists()]
    steps = [_text(f"  {command}") for command in next_commands]
    following: list[RenderableType] = ["", Text("next:", HEADING), *steps] if steps else []
    return Group(_pairs(places or [("run", str(run_dir))]), *following)


def checks_screen(checks: Sequence[Check]) -> Table:
    """Each claim of an adapter, how its check went, what was found and what to do."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for one in checks:
        found = visible(one.found) + (f"\nwhat to do: {visible(one.help)}" if one.help else "")
        table.add_row(one.name, Text(*STATUSES[one.status]), Text(found))
    return table


def facts_screen(sections: Mapping[str, Sequence[tuple[str, str]]]) -> Group:
    """Titled lists of names and values, one under the other, all aligned; empty lists are left out."""
    width = max((len(name) for rows in sections.values() for name, _ in rows), default=0)
    blocks: list[RenderableType] = []
    for title, rows in sections.items():
        if rows:
            blocks += [Text(title, HEADING), _pairs([(f"  {name:<{width}}", value) for name, value in rows]), ""]
    return Group(*blocks)


def fit_screen(facts: FitFacts) -> Group:
    """The forecast of a run's memory, part by part, and the settings it is for."""
    table = _table("in memory at a step's peak", "")
    for group in dict.fromkeys(part.group for part in facts.parts):
        inside = [part for part in facts.parts if part.group == group]
        table.add_row(group, memory(sum(part.bytes for part in inside)), style=HEADING)
        for part in (part for part in inside if part.name != group):
            table.add_row(f"  {part.name}", memory(part.bytes))
    table.add_row("all", memory(facts.total_bytes), style=HEADING)
    return Group(_pairs([("base", facts.base)]), "", table, "", _pairs(_fitted(facts)), "")


def _fitted(facts: FitFacts) -> Iterable[tuple[str, str]]:
    """What a forecast is for, and how it compares to what was asked."""
    yield "device", f"{facts.device}, computing in {facts.precision}"
    source = "the longest of its rows" if facts.counted else "as data.max_length allows; its rows are not here"
    yield "tokens", f"{facts.tokens:,} a row, {source}"
    yield "rows", f"{facts.rows:,} at once, {facts.rows * facts.accumulation:,} a step"
    yield "checkpointing", EVERY.get(facts.checkpointed, f"one layer of {facts.checkpointed}")
    yield "optimizer", facts.optimizer
    if facts.budget_bytes is not None:
        left = facts.budget_bytes - facts.total_bytes
        compared = f"{memory(left)} left" if left >= 0 else f"{memory(-left)} too little"
        yield "budget", f"{facts.budget} = {memory(facts.budget_bytes)}, {compared}"


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    """Names on the left, values on the right; long values are folded under themselves."""
    table = Table.grid(Column(style=QUIET, min_width=7), Column(overflow="fold"), padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(name, _text(value))
    return table


def _text(value: str) -> Text:
    """Words from a recipe, from data or from a run: no key is shown, and nothing in them steers the terminal."""
    return Text(shareable(value))


def _table(*columns: str) -> Table:
    """A table without lines: the first column is for names, all others for numbers."""
    numbers = (Column(name, justify="right") for name in columns[1:])
    return Table(columns[0], *numbers, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=QUIET)


def _parts(facts: PlanFacts) -> Table:
    table = _table("part", "tensors", "parameters", "stored", "trained tensors", "parameters", "share")
    for part in facts.parts:
        table.add_row(*_part_row(part), style="" if part.trainable_tensors else QUIET)
    tensors = sum(part.tensors for part in facts.parts)
    trained = sum(part.trainable_tensors for part in facts.parts)
    total = [f"{tensors:,}", f"{facts.parameters:,}", "", f"{trained:,}", f"{facts.trainable_parameters:,}"]
    table.add_row("all", *total, share(facts.trainable_parameters / max(1, facts.parameters)), style=HEADING)
    return table


def _part_row(part: PartFacts) -> list[str]:
    sizes = [part.part, f"{part.tensors:,}", f"{part.parameters:,}", part.storage]
    if not part.trainable_tensors:
        return [*sizes, "frozen", NOTHING, NOTHING]
    trained = [f"{part.trainable_tensors:,}", f"{part.trainable_parameters:,}"]
    return [*sizes, *trained, share(part.trainable_parameters / max(1, part.parameters))]


def _rows(facts: PlanFacts) -> str:
    dropped = sum(facts.rows_dropped.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in facts.rows_dropped.items() if count)
    kept = f"{facts.rows_kept:,} kept, {dropped:,} dropped{f' ({reasons})' if reasons else ''}"
    return f"{kept}, {facts.held_out_rows:,} held out"


def _tokens(facts: PlanFacts) -> str:
    tokens = facts.tokens
    spread = f"median {tokens.median:,} (of which {tokens.visual_median:,} visual)"
    return f"{spread}, 95 % have up to {tokens.p95:,}, longest {tokens.max:,}"


def _steps(facts: PlanFacts) -> str:
    epochs = facts.steps * facts.batch_rows / max(1, facts.rows_kept)
    shown = f"{epochs:.2g}" if epochs < ROUND_EPOCHS else f"{epochs:,.0f}"
    return f"{facts.steps:,} of {facts.batch_rows:,} rows each = {shown} epochs"


def _memory(facts: PlanFacts) -> str:
    pieces = {name: memory(size) for name, size in facts.memory_breakdown.items()}
    libraries = pieces.pop("libraries", None)
    listed = ", ".join(f"{name} {size}" for name, size in pieces.items())
    total = f"{memory(facts.memory_bytes)} forecast{f', {libraries} of it libraries' if libraries else ''}"
    return f"{total}{f': {listed}' if listed else ''}"


def _movement(parts: Sequence[PartProof]) -> Table:
    table = _table("part", "moved tensors", "parameters", "moved", "mean move", "max grad", "frozen")
    for part in parts:
        table.add_row(part.part, *_trained(part), _frozen(part))
    return table


def _trained(part: PartProof) -> list[str | Text]:
    if not part.trained_tensors:
        return [Text("none", "bold red") if part.asked else NOTHING, NOTHING, NOTHING, NOTHING, NOTHING]
    tensors = f"{part.moved_tensors:,} of {part.trained_tensors:,}"
    tensors_style = "" if part.moved_tensors == part.trained_tensors else "yellow"
    moved = Text(share(part.moved_share), "" if part.moved_share else "bold red")
    numbers = [f"{part.mean_movement:.1e}", f"{part.grad_norm_max:.3g}"]
    return [Text(tensors, tensors_style), f"{part.trained_parameters:,}", moved, *numbers]


def _frozen(part: PartProof) -> str | Text:
    if not part.frozen_tensors:
        return NOTHING
    return f"{part.frozen_tensors:,} same" if part.frozen_identical else Text("CHANGED", "bold red")


def _pictures(before: PictureProof | None, after: PictureProof | None) -> Table:
    sides = (before, after)
    rows = max(one.rows for one in sides if one is not None)
    names = ("right picture", "shuffled pictures", "no picture", GAINED)
    figures = [(one.right, one.shuffled, one.none, one.gap) if one else (None,) * 4 for one in sides]
    forms = ("{:.3f}", "{:.3f}", "{:.3f}", "{:+.3f}")
    lines = zip(names, (form.format for form in forms), *figures, strict=True)
    return _before_and_after(f"held-out loss, nats per token ({rows} rows)", lines)


def _held_out_pairs(before: PairProof | None, after: PairProof | None) -> Table:
    sides = (before, after)
    rows, swapped = max((one.rows, one.swapped_rows) for one in sides if one is not None)
    names = ("won", f"won with shuffled pictures ({swapped} pairs)", "margin, nats")
    further = ("margin with shuffled pictures, nats", "distance from the reference, nats per token")
    figures = [
        (one.won, one.won_swapped, one.margin, one.margin_swapped, one.kl) if one else (None,) * 5 for one in sides
    ]
    forms = (share, share, "{:+.3f}".format, "{:+.3f}".format, "{:.4f}".format)
    lines = zip((*names, *further), forms, *figures, strict=True)
    return _before_and_after(f"held-out pairs, chosen against rejected ({rows} pairs)", lines)


def _before_and_after(title: str, lines: Iterable[Line]) -> Table:
    """Figures before and after training; lines without any figure are left out."""
    table = _table(title, "before", "after")
    for name, form, *figures in lines:
        if any(figure is not None for figure in figures):
            cells = (NOTHING if figure is None else form(figure) for figure in figures)
            table.add_row(f"  {name}", *cells, style=HEADING if name in (GAINED, "won") else "")
    return table


def _promises(promises: Sequence[Promise]) -> Table:
    table = Table.grid("", Column(max_width=38), Column(style=QUIET, overflow="fold"), padding=(0, 2, 0, 0))
    for promise in promises:
        mark = Text("✓", "bold green") if promise.kept else Text("✗", "bold red")
        table.add_row(mark, _text(promise.name), _text(promise.detail))
    return table


def _comparisons(comparisons: Sequence[Comparison]) -> Table:
    table = Table.grid("", Column(max_width=38), Column(style=QUIET, overflow="fold"), padding=(0, 2, 0, 0))
    for one in comparisons:
        mark = Text("✓", "bold green") if one.result == "better" else Text("✗", "bold yellow")
        table.add_row(mark, f"{COMPARED[one.result]} {one.against}", _text(one.detail))
    return table


def _verdicts(found: Verdicts) -> Table:
    """Did the run do what it was asked, and was that of use?"""
    table = Table.grid(Column(style=HEADING), "", Column(overflow="fold"), padding=(0, 2, 0, 0))
    sound = Text("yes", "bold green") if found.sound else Text("NO", "bold red")
    table.add_row("sound", sound, found.sound_because)
    table.add_row("useful", Text(*USEFUL[found.useful]), found.useful_because)
    return table
