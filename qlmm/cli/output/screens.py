"""The screens of commands: the plan before a run, its proof and the next steps, facts in columns, checks.

Pure functions from facts to what rich prints, so that a test can look at them without a terminal.

Usage: ``out.screen(plan_screen(facts))``
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qlmm.artifacts.adapter.verify import Check
from qlmm.cli.output.console import visible
from qlmm.core.secrets import redact
from qlmm.core.units import memory, share
from qlmm.proof.records import Answer, PairProof, PartFacts, PartProof, PictureProof, PlanFacts, Promise, Proof

__all__ = ["answers_screen", "checks_screen", "done_screen", "facts_screen", "plan_screen", "proof_screen"]

NOTHING = "-"
HEADING = "bold"
QUIET = "dim"
ROUND_EPOCHS = 10
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
        *_warnings(facts.warnings),
        "",
    )


def proof_screen(proof: Proof, *, ascii_only: bool = False) -> Group:
    """Movement per part, held-out loss and pairs by picture, and each promise with its verdict."""
    blocks: list[RenderableType] = [_movement(proof.parts), ""]
    if proof.before is not None or proof.after is not None:
        blocks += [_pictures(proof.before, proof.after), ""]
    if (rows := proof.pairs_after or proof.pairs_before) is not None:
        blocks += [_held_out_pairs(rows, proof.pairs_before, proof.pairs_after), ""]
    blocks += [_promises(proof.promises, ascii_only=ascii_only), "", _verdict(proof), ""]
    return Group(*blocks)


def answers_screen(answers: Sequence[Answer]) -> Group:
    """What the model said to held-out pictures before and after training, beside what was expected."""
    table = _table("held-out picture", "expected", "before", "after")
    for number, answer in enumerate(answers, 1):
        texts = (answer.expected, answer.before, answer.after)
        table.add_row(f"{number}.png", *(_text(" ".join(text.split())) for text in texts))
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


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    """Names on the left, values on the right; long values are folded under themselves."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style=QUIET, min_width=7)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, _text(value))
    return table


def _text(value: str) -> Text:
    """Words from a recipe, from data or from a run: no key is shown, and nothing in them steers the terminal."""
    return Text(visible(redact(value)))


def _table(*columns: str) -> Table:
    """A table without lines: the first column holds names, all others numbers."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=QUIET)
    table.add_column(columns[0])
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table


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
    pieces = ", ".join(f"{name} {memory(size)}" for name, size in facts.memory_breakdown.items())
    return f"{memory(facts.memory_bytes)} estimated{f': {pieces}' if pieces else ''}"


def _warnings(warnings: Sequence[str]) -> list[RenderableType]:
    lines = [Text.assemble(("warning: ", "bold yellow"), _text(warning)) for warning in warnings]
    return ["", *lines] if lines else []


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
    rows = (after or before or PictureProof(0, 0, 0, 0)).rows
    table = _table(f"held-out loss, nats per token ({rows} rows)", "before", "after")
    for name, attribute in (("right picture", "right"), ("shuffled pictures", "shuffled"), ("no picture", "none")):
        table.add_row(f"  {name}", *(_loss(proof, attribute) for proof in (before, after)))
    gaps = (f"{proof.gap:+.3f}" if proof is not None else NOTHING for proof in (before, after))
    table.add_row("  gained by the right picture over a shuffled one", *gaps, style=HEADING)
    return table


def _loss(proof: PictureProof | None, name: str) -> str:
    if proof is None:
        return NOTHING
    return f"{ {'right': proof.right, 'shuffled': proof.shuffled, 'none': proof.none}[name]:.3f}"


def _held_out_pairs(rows: PairProof, before: PairProof | None, after: PairProof | None) -> Table:
    """What was won before and after, with right and wrong pictures; lines without any figure are left out."""
    table = _table(f"held-out pairs, chosen against rejected ({rows.rows} pairs)", "before", "after")
    sides = (before, after)
    lines = (
        ("won", [share(one.won) if one else None for one in sides]),
        (
            f"won with shuffled pictures ({rows.swapped_rows} pairs)",
            [share(one.won_swapped) if one and one.won_swapped is not None else None for one in sides],
        ),
        ("margin, nats", [f"{one.margin:+.3f}" if one else None for one in sides]),
        (
            "margin with shuffled pictures, nats",
            [f"{one.margin_swapped:+.3f}" if one and one.margin_swapped is not None else None for one in sides],
        ),
        (
            "distance from the reference, nats per token",
            [f"{one.kl:.4f}" if one and one.kl is not None else None for one in sides],
        ),
    )
    for number, (name, figures) in enumerate(lines):
        if any(figures):
            table.add_row(f"  {name}", *(figure or NOTHING for figure in figures), style="" if number else HEADING)
    return table


def _promises(promises: Sequence[Promise], *, ascii_only: bool) -> Table:
    kept, broken = ("ok", "FAIL") if ascii_only else ("✓", "✗")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(max_width=38)
    table.add_column(style=QUIET, overflow="fold")
    for promise in promises:
        mark = Text(kept, "bold green") if promise.kept else Text(broken, "bold red")
        table.add_row(mark, _text(promise.name), _text(promise.detail))
    return table


def _verdict(proof: Proof) -> Text:
    kept = sum(promise.kept for promise in proof.promises)
    if proof.holds:
        return Text(f"run proof: all {kept} promises kept", "bold green")
    return Text(f"run proof: {kept} of {len(proof.promises)} promises kept", "bold red")
