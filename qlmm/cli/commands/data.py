"""``qlmm data check`` and ``qlmm data show``: look at rows before training on them.

Usage: ``check("recipes/owl_lora.yaml", [])``
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from qlmm.cli.output.console import out, visible
from qlmm.cli.output.library_noise import quiet
from qlmm.core.errors import DataError, Problem, QlmmError, UsageError
from qlmm.core.secrets import redact
from qlmm.data.checks import Piece, Report, TokenCounts, token_counts, traced, traced_pair
from qlmm.data.checks import check as check_rows
from qlmm.data.media.images import size
from qlmm.data.reading.dataset import KIND_OF, load_format, load_samples
from qlmm.data.sample import Feedback, Kind, Preference
from qlmm.recipe import library
from qlmm.recipe.load import load_recipe
from qlmm.recipe.schema import Recipe, Source

if TYPE_CHECKING:
    from rich.text import Text

    from qlmm.data.encoding.encoder import Encoder

__all__ = ["check", "show"]

EXIT_PROBLEMS = 2
NO_ROW_LEFT = "D007"
MOST_DROPPED_NAMED = 20
STYLES = {"given": "dim", "learned": "bold green", "picture": "cyan"}


def check(
    target: str, overrides: Sequence[str] = (), *, format: str | None = None, image_root: str | None = None
) -> None:
    """Print every problem of the rows of a recipe or a file, then counts; leave with 2 if there is a problem.

    Args:
        target: a recipe, or a file, folder or data set of rows.
        overrides: changes of the recipe.
        format: format of a file of rows; unset: detected.
        image_root: folder that a file's picture paths start from.

    Raises:
        UsageError: U030 when options of a file are given with a recipe or the other way round, N001 for an unknown
            format.
    """
    recipe = _recipe(target, overrides)
    if recipe is not None and (format or image_root):
        raise UsageError.one("U030", "--format and --image-root belong to a file of rows; a recipe says both itself")
    if recipe is None and overrides:
        raise UsageError.one("U030", "section.key=value changes a recipe, and this is a file of rows")
    if format is not None:
        load_format(format)  # refuses unknown names with the nearest one
    if recipe is None:
        sources: tuple[Source, ...] = (Source(path=target, format=format, image_root=image_root),)
    else:
        sources = (*recipe.data.sources, *recipe.evaluation.sources)
    frames = {"max_frames": recipe.data.max_frames} if recipe is not None else {}
    kind = _kind(recipe) if recipe is not None else None
    try:
        report = check_rows(sources, kind=kind, resolve=_builtin, progress=_tell_progress, **frames)
    except DataError as error:
        if error.problems[0].code != NO_ROW_LEFT:
            raise
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


def show(recipe: str, overrides: Sequence[str] = (), *, row: int = 1) -> None:
    """Print one row: its pictures, its text as the model sees it, and which tokens are learned.

    Args:
        recipe: a recipe file, or the name of a shipped recipe.
        overrides: changes of the recipe.
        row: number of the row among those that can be read, from 1.

    Raises:
        UsageError: U031 when there is no such row.
    """
    asked = load_recipe(library.resolve(recipe), overrides).recipe
    data = asked.data
    samples = load_samples(
        data.sources, kind=_kind(asked), max_bad_rows=1.0, resolve=_builtin, max_frames=data.max_frames
    ).samples
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


def _print_pair(encoder: Encoder, pair: Preference) -> None:
    """The prompt once, then each answer with what is learned of it."""
    shown = traced_pair(encoder, pair)
    given = sum(piece.tokens for piece in shown.prompt)
    for name, side in (("chosen", shown.chosen), ("rejected", shown.rejected)):
        learned = sum(piece.tokens for piece in side if piece.kind == "learned")
        total = given + sum(piece.tokens for piece in side)
        out.print(f"tokens, {name}: {total} ({encoder.visual_tokens(pair.images)} visual, {learned} learned)")
    out.print("", _coloured(shown.prompt))
    for name, side in (("chosen", shown.chosen), ("rejected", shown.rejected)):
        out.print("", f"{name}:", _coloured(side))


def _kind(recipe: Recipe) -> Kind:
    """What a recipe's rows must be."""
    return KIND_OF[recipe.training.objective]


def _recipe(target: str, overrides: Sequence[str]) -> Recipe | None:
    """The recipe a target names, or None for rows."""
    return load_recipe(library.resolve(target), overrides).recipe if library.is_recipe(target) else None


def _builtin(name: str) -> Path:
    from qlmm.builtin import registry as builtin

    return builtin.path(name)


def _encoder(recipe: Recipe) -> Encoder:
    quiet()
    from qlmm.model.loading.base import Base

    return Base.resolve(recipe.base).encoder(recipe.data)[0]


def _tell_progress(done: int, total: int) -> None:
    if done % 1000 == 0 and done < total:
        out.talk(f"{done:,} of {total:,} pictures decoded")


def _print_problems(problems: Sequence[Problem]) -> None:
    for problem in problems:
        out.print(redact(problem.render()), "")


def _print_counts(report: Report) -> None:
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


def _print_tokens(recipe: Recipe, report: Report) -> None:
    """Token counts, where the base's processor is at hand; rows are checked all the same where it is not."""
    try:
        counts = token_counts(_encoder(recipe), report.usable)
    except QlmmError as error:
        out.warn(f"tokens were not counted: {error.problems[0].message}")
        return
    out.print(*_token_lines(recipe, counts))


def _token_lines(recipe: Recipe, counts: TokenCounts) -> list[str]:
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
        lines += [f"  {one.origin}: {one.reason}" for one in counts.dropped[:MOST_DROPPED_NAMED]]
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
