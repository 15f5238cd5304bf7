"""``qlmm data check``, ``show`` and ``convert``: look at rows before training on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qlmm.cli.arguments import AsJson, ImageRoot, Overrides, Recipe, loaded_recipe
from qlmm.cli.output.console import out
from qlmm.core.errors import DataError, Problem, QlmmError, UsageError
from qlmm.core.secrets import redact, visible

if TYPE_CHECKING:
    from rich.text import Text

    from qlmm.data.encoding.encoder import Encoder
    from qlmm.data.encoding.length_limit import Fitted
    from qlmm.data.encoding.trace import Piece
    from qlmm.data.reading.checks import Report
    from qlmm.data.sample import Example, Preference
    from qlmm.recipe import schema

__all__ = ["check", "convert", "group", "show"]

group = typer.Typer(help="Look at rows before training on them.", no_args_is_help=True, rich_markup_mode=None)

EXIT_PROBLEMS = 2
MOST_DROPPED_NAMED = 20
STYLES = {"given": "dim", "learned": "bold green", "picture": "cyan"}


@group.command(epilog="Example: qlmm data check data/rows.jsonl --image-root data/pictures")
def check(
    target: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe, or a file or folder of rows.")],
    overrides: Overrides = None,
    format: Annotated[str | None, typer.Option(help="Format of a file of rows; unset: detected.")] = None,
    image_root: ImageRoot = None,
    as_json: AsJson = False,
) -> None:
    """List every problem of the rows; count tokens."""
    from qlmm.builtin import registry as builtin
    from qlmm.data.errors import NoRowLeft, OtherKind
    from qlmm.data.reading.checks import check as check_rows
    from qlmm.data.reading.dataset import load_format
    from qlmm.recipe.library import is_recipe
    from qlmm.recipe.schema import Source
    from qlmm.training.objective import objective, redirected

    recipe = loaded_recipe(target, overrides).recipe if is_recipe(target) else None
    if recipe is not None and (format or image_root):
        raise UsageError.one("U030", "--format and --image-root belong to a file of rows; a recipe has keys for both")
    if recipe is None and overrides:
        raise UsageError.one("U030", "section.key=value changes a recipe, and this is a file of rows")
    if format is not None:
        load_format(format)  # refuses unknown names with the nearest one
    checked = partial(check_rows, resolve=builtin.path, progress=_note_progress)
    try:
        if recipe is None:
            report = checked([Source(path=target, format=format, image_root=image_root)])
        else:
            sources = (*recipe.data.sources, *recipe.evaluation.sources)
            kind = objective(recipe.training.objective).rows
            report = checked(sources, kind=kind, max_frames=recipe.data.max_frames)
    except OtherKind as error:
        raise redirected(error) from None
    except NoRowLeft as error:
        if as_json:
            raise
        # An error shows the first problems only; here all are wanted.
        _print_problems(error.problems)
        raise typer.Exit(EXIT_PROBLEMS) from None
    fitted = _fitted(recipe, report) if recipe is not None else None
    if as_json:
        out.json(_facts(report, fitted), DataError(report.problems) if report.problems else None)
    else:
        _print_report(report, fitted)
    if report.problems:
        raise typer.Exit(EXIT_PROBLEMS)


@group.command(epilog="Example: qlmm data show owl_lora --row 3")
def show(
    recipe: Recipe,
    overrides: Overrides = None,
    row: Annotated[int, typer.Option(min=1, help="Which row, from 1.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Show a row: pictures, text, what is learned."""
    from qlmm.builtin import registry as builtin
    from qlmm.data.errors import OtherKind
    from qlmm.data.reading.dataset import load_samples
    from qlmm.training.objective import objective, redirected
    from qlmm.training.rows import thinking

    asked = loaded_recipe(recipe, overrides).recipe
    data, kind = asked.data, objective(asked.training.objective).rows
    try:
        samples = load_samples(
            data.sources, kind=kind, max_bad_rows=math.inf, resolve=builtin.path, max_frames=data.max_frames
        ).samples
    except OtherKind as error:
        raise redirected(error) from None
    if row > len(samples):
        raise UsageError.one("U031", f"there is no row {row}", help=f"rows are 1 to {len(samples)}")
    sample = samples[row - 1]

    encoder = thinking(_encoder(asked), data, samples)
    if as_json:
        out.json({"row": row, "rows": len(samples)} | _row_facts(encoder, sample))
        return
    out.print(f"row {row} of {len(samples)}, from {sample.origin}")
    _print_row(encoder, sample)


@group.command(epilog="Example: qlmm data convert captions.csv --to messages")
def convert(
    target: Annotated[str, typer.Argument(metavar="FILE", help="A file or folder of rows.")],
    to: Annotated[
        Literal["messages"], typer.Option(help="What to write: TRL's columns, pairs and verdicts too.")
    ] = "messages",
    out_file: Annotated[Path | None, typer.Option("--out", help="File to write; unset: beside FILE.")] = None,
    format: Annotated[str | None, typer.Option(help="Format of the rows; unset: detected.")] = None,
    image_root: ImageRoot = None,
    as_json: AsJson = False,
) -> None:
    """Write rows as they were understood, in plain columns."""
    from qlmm.builtin import registry as builtin
    from qlmm.data.reading.convert import convert as write
    from qlmm.data.reading.dataset import load_samples
    from qlmm.recipe.schema import Source

    source = Source(path=target, format=format, image_root=image_root)
    samples = load_samples([source], kind=None, resolve=builtin.path).samples
    file = out_file or Path(target).with_name(f"{Path(target).name.split('.')[0]}.{to}.jsonl")
    written = write(samples, file)
    if as_json:
        out.json({"file": str(file), "rows": len(samples), "pictures": written})
        return
    beside = f", {written:,} pictures beside it" if written else ""
    out.print(f"{file}: {len(samples):,} rows{beside}")


def _print_row(encoder: Encoder, row: Example) -> None:
    """Pictures, tokens and text of a row, with what is learned."""
    from qlmm.data.encoding.trace import traced
    from qlmm.data.media.images import size
    from qlmm.data.sample import Feedback, Preference

    for ref in row.images:
        width, height = size(ref)
        out.print(f"picture {ref.name}: {width} x {height}, {encoder.visual_tokens([ref])} tokens")
    if isinstance(row, Preference):
        _print_pair(encoder, row)
        return
    if isinstance(row, Feedback):
        out.print(f"the answer is {'desirable' if row.desirable else 'not desirable'}")
    (lengths,) = encoder.measure([row])
    out.print(f"tokens: {lengths.total} ({lengths.visual} visual, {lengths.supervised} learned)", "")
    out.print(_coloured(traced(encoder, row)))


def _row_facts(encoder: Encoder, row: Example) -> dict[str, object]:
    """What a script may want of one row: where it stands, its pictures, and each text with its mask."""
    from qlmm.data.encoding.trace import traced
    from qlmm.data.media.images import size
    from qlmm.data.sample import Feedback, Preference

    sizes = [(ref, *size(ref)) for ref in row.images]
    facts: dict[str, object] = {
        "origin": asdict(row.origin),
        "pictures": [
            {"name": ref.name, "width": width, "height": height, "tokens": encoder.visual_tokens([ref])}
            for ref, width, height in sizes
        ],
    }
    if isinstance(row, Preference):
        names = ("chosen", "rejected")
        sides = {name: traced(encoder, one) for name, one in zip(names, row.judged(), strict=True)}
        return facts | {name: [asdict(piece) for piece in pieces] for name, pieces in sides.items()}
    if isinstance(row, Feedback):
        facts["desirable"] = row.desirable
    (lengths,) = encoder.measure([row])
    tokens = {"total": lengths.total, "visual": lengths.visual, "learned": lengths.supervised}
    return facts | {"tokens": tokens, "pieces": [asdict(piece) for piece in traced(encoder, row)]}


def _print_pair(encoder: Encoder, pair: Preference) -> None:
    """The prompt once, then each answer with what is learned of it."""
    from qlmm.data.encoding.trace import traced

    sides = {name: traced(encoder, one) for name, one in zip(("chosen", "rejected"), pair.judged(), strict=True)}
    prompt = next(place for place, piece in enumerate(sides["chosen"]) if piece.kind == "learned")
    for name, pieces in sides.items():
        learned = sum(piece.tokens for piece in pieces if piece.kind == "learned")
        total = sum(piece.tokens for piece in pieces)
        out.print(f"tokens, {name}: {total} ({encoder.visual_tokens(pair.images)} visual, {learned} learned)")
    out.print("", _coloured(sides["chosen"][:prompt]))
    for name, pieces in sides.items():
        out.print("", f"{name}:", _coloured(pieces[prompt:]))


def _encoder(recipe: schema.Recipe) -> Encoder:
    from qlmm.model.loading.base import Base

    return Base.resolve(recipe.base).encoder(recipe.data)[0]


def _note_progress(done: int, total: int) -> None:
    if done % 1000 == 0 and done < total:
        out.note(f"{done:,} of {total:,} pictures decoded")


def _print_problems(problems: Sequence[Problem]) -> None:
    for problem in problems:
        out.print(redact(problem.render()), "")


def _print_report(report: Report, fitted: Fitted[Example] | None) -> None:
    _print_problems(report.problems)
    _print_counts(report)
    out.print(*(_token_lines(fitted) if fitted is not None else ()))
    warnings = len(report.loaded.warnings)
    warned = f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    out.print(f"{len(report.problems) or 'no'} problems{warned}")


def _print_counts(report: Report) -> None:
    from qlmm.data.sample import Feedback, Preference

    for source in report.loaded.sources:
        out.print(
            f"{source.path} ({source.format}): {source.rows:,} rows, {source.kept:,} usable, {source.bad:,} bad, "
            f"{source.text_only:,} without a picture"
        )
    pairs = sum(isinstance(sample, Preference) for sample in report.loaded.samples)
    if pairs:
        out.print(f"pairs: {pairs:,}, each with a chosen and a rejected answer")
    verdicts = [sample.desirable for sample in report.loaded.samples if isinstance(sample, Feedback)]
    if verdicts:
        out.print(f"answers: {sum(verdicts):,} desirable, {len(verdicts) - sum(verdicts):,} not desirable")
    out.print(f"pictures: {report.pictures:,} decoded")
    if report.twins:
        out.print(f"repeated: {report.twins:,} rows are copies of another row")
    out.print(*(visible(redact(line)) for line in report.loaded.unused))
    for warning in report.loaded.warnings:
        out.print(visible(redact(f"warning: {warning}")))
    out.print(f"fingerprint: {report.loaded.fingerprint}")


def _fitted(recipe: schema.Recipe, report: Report) -> Fitted[Example] | None:
    """The rows with their tokens, where the base's processor is at hand; rows are checked all the same without it."""
    from qlmm.training.rows import thinking

    try:
        return thinking(_encoder(recipe), recipe.data, report.usable).fit(report.usable)
    except QlmmError as error:
        out.warn(f"tokens were not counted: {error.text}")
        return None


def _facts(report: Report, fitted: Fitted[Example] | None) -> dict[str, object]:
    """What a script may want of checked rows."""
    from qlmm.data.encoding.length_limit import Spread

    facts: dict[str, object] = {
        "sources": [asdict(source) | {"bad": source.bad} for source in report.loaded.sources],
        "pictures": report.pictures,
        "repeated": report.twins,
        "unused": report.loaded.unused,
        "warnings": report.loaded.warnings,
        "fingerprint": report.loaded.fingerprint,
    }
    if fitted is not None:
        facts["tokens"] = asdict(Spread.of([lengths.total for lengths in fitted.lengths]))
        facts["learned_tokens"] = asdict(Spread.of([lengths.supervised for lengths in fitted.lengths]))
        facts["left_out"] = len(fitted.dropped)
    return facts


def _token_lines(fitted: Fitted[Example]) -> list[str]:
    from qlmm.data.encoding.length_limit import Spread

    tokens = [lengths.total for lengths in fitted.lengths]
    visual = sum(lengths.visual for lengths in fitted.lengths) / max(1, sum(tokens))
    total, learned = Spread.of(tokens), Spread.of([lengths.supervised for lengths in fitted.lengths])
    lines = [
        f"tokens per row: median {total.median:,}, p95 {total.p95:,}, max {total.max:,}; visual {visual:.0%}",
        f"learned per row: median {learned.median:,}, p95 {learned.p95:,}, max {learned.max:,}",
    ]
    if fitted.shortened:
        lines.append(f"shortened to data.max_length: {fitted.shortened:,} rows")
    if fitted.dropped:
        lines.append(f"left out: {len(fitted.dropped):,} rows")
        lines += [f"  {one.origin}: {one.text}" for one in fitted.dropped[:MOST_DROPPED_NAMED]]
    return lines


def _coloured(pieces: Iterable[Piece]) -> Text:
    """The pieces of a row with its mask: in colour, and, where there is none, with what is learned in brackets."""
    from rich.text import Text

    left, right = ("⟦", "⟧") if out.console().color_system is None else ("", "")
    text = Text()
    for piece in pieces:
        shown = visible(piece.text)
        if piece.kind == "picture":
            shown = f"{shown}×{piece.tokens}"
        elif piece.kind == "learned":
            shown = f"{left}{shown}{right}"
        text.append(shown, STYLES[piece.kind])
    return text
