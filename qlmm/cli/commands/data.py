"""``qlmm data check`` and ``qlmm data show``: look at rows before training on them.

Usage: ``qlmm data check data/rows.jsonl --image-root data/pictures``
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlmm.cli.arguments import Overrides, Recipe
from qlmm.cli.output.console import out, visible
from qlmm.core.errors import Problem, QlmmError, UsageError
from qlmm.core.secrets import redact

if TYPE_CHECKING:
    from rich.text import Text

    from qlmm.data.encoding.encoder import Encoder
    from qlmm.data.encoding.token_counts import TokenCounts
    from qlmm.data.encoding.trace import Piece
    from qlmm.data.reading.checks import Report
    from qlmm.data.sample import Preference
    from qlmm.recipe import schema

__all__ = ["check", "group", "show"]

group = typer.Typer(help="Look at rows before training on them.", no_args_is_help=True, rich_markup_mode=None)

EXIT_PROBLEMS = 2
MOST_DROPPED_NAMED = 20
STYLES = {"given": "dim", "learned": "bold green", "picture": "cyan"}


@group.command("check", epilog="Example: qlmm data check data/rows.jsonl --image-root data/pictures")
def check(
    target: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe, or a file or folder of rows.")],
    overrides: Overrides = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="Format of a file of rows; unset: detected."),
    ] = None,
    image_root: Annotated[
        str | None,
        typer.Option("--image-root", metavar="FOLDER", help="Folder that the file's picture paths start from."),
    ] = None,
) -> None:
    """List every problem of the rows; count tokens."""
    from qlmm.data.errors import NoRowLeft, OtherKind
    from qlmm.data.reading.checks import check as check_rows
    from qlmm.data.reading.dataset import load_format
    from qlmm.recipe.library import is_recipe
    from qlmm.training.objective import objective, redirected

    recipe = _recipe(target, overrides) if is_recipe(target) else None
    if recipe is not None and (format or image_root):
        raise UsageError.one("U030", "--format and --image-root belong to a file of rows; a recipe says both itself")
    if recipe is None and overrides:
        raise UsageError.one("U030", "section.key=value changes a recipe, and this is a file of rows")
    if format is not None:
        load_format(format)  # refuses unknown names with the nearest one
    sources = _sources(recipe, target, format, image_root)
    frames = {"max_frames": recipe.data.max_frames} if recipe is not None else {}
    kind = objective(recipe.training.objective).rows if recipe is not None else None
    try:
        report = check_rows(sources, kind=kind, resolve=_builtin, progress=_tell_progress, **frames)
    except OtherKind as error:
        raise redirected(error) from None
    except NoRowLeft as error:
        # An error shows the first problems only; here all are wanted.
        _print_problems(error.problems)
        raise typer.Exit(EXIT_PROBLEMS) from None
    _print_problems(report.problems)
    _print_counts(report)
    if recipe is not None:
        _print_tokens(recipe, report)
    out.print(f"{len(report.problems)} problems" if report.problems else "no problems")
    if report.problems:
        raise typer.Exit(EXIT_PROBLEMS)


@group.command("show", epilog="Example: qlmm data show owl_lora --row 3")
def show(
    recipe: Recipe,
    overrides: Overrides = None,
    row: Annotated[int, typer.Option("--row", min=1, help="Which row, from 1.")] = 1,
) -> None:
    """Show a row: pictures, text, what is learned."""
    from qlmm.data.encoding.trace import traced
    from qlmm.data.errors import OtherKind
    from qlmm.data.media.images import size
    from qlmm.data.reading.dataset import load_samples
    from qlmm.data.sample import Feedback, Preference
    from qlmm.training.objective import objective, redirected

    asked = _recipe(recipe, overrides)
    data = asked.data
    try:
        samples = load_samples(
            data.sources,
            kind=objective(asked.training.objective).rows,
            max_bad_rows=1.0,
            resolve=_builtin,
            max_frames=data.max_frames,
        ).samples
    except OtherKind as error:
        raise redirected(error) from None
    if row > len(samples):
        raise UsageError.one("U031", f"there is no row {row}", help=f"rows are 1 to {len(samples)}")
    sample = samples[row - 1]

    encoder = _encoder(asked)
    out.print(f"row {row} of {len(samples)}, from {visible(str(sample.origin))}")
    for ref in sample.images:
        width, height = size(ref)
        out.print(f"picture {ref.name}: {width} x {height}, {encoder.visual_tokens([ref])} tokens")
    if isinstance(sample, Preference):
        _print_pair(encoder, sample)
        return
    if isinstance(sample, Feedback):
        out.print(f"the answer is {'desirable' if sample.desirable else 'not desirable'}")
    (lengths,) = encoder.measure([sample])
    out.print(f"tokens: {lengths.total} ({lengths.visual} visual, {lengths.supervised} learned)", "")
    out.print(_coloured(traced(encoder, sample)))


def _recipe(name: str, overrides: Sequence[str] | None) -> schema.Recipe:
    from qlmm.recipe.library import resolve
    from qlmm.recipe.load import load_recipe

    return load_recipe(resolve(name), overrides or []).recipe


def _sources(
    recipe: schema.Recipe | None, target: str, format: str | None, image_root: str | None
) -> tuple[schema.Source, ...]:
    """The rows of a recipe, those to evaluate on included, or the rows that were named."""
    from qlmm.recipe.schema import Source

    if recipe is None:
        return (Source(path=target, format=format, image_root=image_root),)
    return (*recipe.data.sources, *recipe.evaluation.sources)


def _print_pair(encoder: Encoder, pair: Preference) -> None:
    """The prompt once, then each answer with what is learned of it."""
    from qlmm.data.encoding.trace import traced_pair

    shown = traced_pair(encoder, pair)
    given = sum(piece.tokens for piece in shown.prompt)
    for name, side in (("chosen", shown.chosen), ("rejected", shown.rejected)):
        learned = sum(piece.tokens for piece in side if piece.kind == "learned")
        total = given + sum(piece.tokens for piece in side)
        out.print(f"tokens, {name}: {total} ({encoder.visual_tokens(pair.images)} visual, {learned} learned)")
    out.print("", _coloured(shown.prompt))
    for name, side in (("chosen", shown.chosen), ("rejected", shown.rejected)):
        out.print("", f"{name}:", _coloured(side))


def _builtin(name: str) -> Path:
    from qlmm.builtin import registry as builtin

    return builtin.path(name)


def _encoder(recipe: schema.Recipe) -> Encoder:
    from qlmm.model.loading.base import Base

    return Base.resolve(recipe.base).encoder(recipe.data)[0]


def _tell_progress(done: int, total: int) -> None:
    if done % 1000 == 0 and done < total:
        out.talk(f"{done:,} of {total:,} pictures decoded")


def _print_problems(problems: Sequence[Problem]) -> None:
    for problem in problems:
        out.print(redact(problem.render()), "")


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
    out.print(f"fingerprint: {report.loaded.fingerprint}")


def _print_tokens(recipe: schema.Recipe, report: Report) -> None:
    """Token counts, where the base's processor is at hand; rows are checked all the same where it is not."""
    from qlmm.data.encoding.token_counts import token_counts

    try:
        counts = token_counts(_encoder(recipe), report.usable)
    except QlmmError as error:
        out.warn(f"tokens were not counted: {error.text}")
        return
    out.print(*_token_lines(recipe, counts))


def _token_lines(recipe: schema.Recipe, counts: TokenCounts) -> list[str]:
    total, learned = counts.total, counts.supervised
    lines = [
        f"tokens per row: median {total.median:,}, p95 {total.p95:,}, max {total.max:,}; "
        f"visual {counts.visual_share:.0%}",
        f"learned per row: median {learned.median:,}, p95 {learned.p95:,}, max {learned.max:,}",
    ]
    if counts.shortened:
        lines.append(f"shortened to data.max_length ({recipe.data.max_length:,}): {counts.shortened:,} rows")
    if counts.dropped:
        lines.append(f"left out: {len(counts.dropped):,} rows")
        lines += [f"  {one.origin}: {one.text}" for one in counts.dropped[:MOST_DROPPED_NAMED]]
    return lines


def _coloured(pieces: Iterable[Piece]) -> Text:
    """The pieces of a row with its mask: in colour, and, where there is none, with what is learned in brackets."""
    from rich.text import Text

    console = out.console()
    plain, ascii_only = console.color_system is None, console.options.ascii_only
    left, right = ("", "") if not plain else ("[[", "]]") if ascii_only else ("⟦", "⟧")
    text = Text()
    for piece in pieces:
        shown = visible(piece.text)
        if piece.kind == "picture":
            shown = f"{shown}{'x' if ascii_only else '×'}{piece.tokens}"
        elif piece.kind == "learned":
            shown = f"{left}{shown}{right}"
        text.append(shown, STYLES[piece.kind])
    return text
