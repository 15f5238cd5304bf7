"""``qlmm prefer``: preference pairs from a model's own answers, in the terminal.

Usage: ``qlmm prefer runs/owl_lora/adapter --prompts questions.jsonl --out pairs.jsonl``
"""

from __future__ import annotations

import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlmm.cli.arguments import Adapter, AsJson, MaxNewTokens, zoo_folder
from qlmm.cli.output.console import out
from qlmm.core.units import clock, share

if TYPE_CHECKING:
    from qlmm.preference_data.prefer import PromptDone
    from qlmm.preference_data.summary import Summary

__all__ = ["prefer"]

EXAMPLE = "Example: qlmm prefer runs/owl_lora/adapter --prompts questions.jsonl --out pairs.jsonl"
GO_ON = "the same command goes on from there"
# Below this, what a judge says instead of yes and no is most of what it says.
LITTLE_HEARD = 0.5


def prefer(  # noqa: PLR0913, PLR0917  every parameter is an option of the command
    adapter: Adapter,
    prompts: Annotated[
        str, typer.Option("--prompts", metavar="FILE", help="Questions, in any format that can be trained on.")
    ],
    pairs: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file of pairs to write.")],
    judge: Annotated[
        str | None,
        typer.Option("--judge", metavar="ADAPTER|ID", help="What judges: an adapter or a model; unset: ADAPTER."),
    ] = None,
    image_root: Annotated[
        str | None,
        typer.Option("--image-root", metavar="FOLDER", help="Folder that the questions' picture paths start from."),
    ] = None,
    answers: Annotated[int, typer.Option("--answers", help="Answers drawn per question.")] = 10,
    temperature: Annotated[float, typer.Option("--temperature", help="Temperature of the draws.")] = 0.7,
    per_prompt: Annotated[int, typer.Option("--per-prompt", help="Most pairs taken from one question.")] = 2,
    max_new_tokens: MaxNewTokens = 256,
    limit: Annotated[int | None, typer.Option("--limit", help="Take only the first so many questions.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the draws.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make preference pairs from own answers."""
    from qlmm.artifacts.adapter.manifest import read_manifest
    from qlmm.preference_data.pairing import Settings

    settings = Settings(answers, temperature, per_prompt, max_new_tokens, seed, limit)
    # Refused in a moment, before the libraries that load a model are imported.
    settings.check()
    read_manifest(adapter)
    judge = zoo_folder(judge) if judge is not None else None
    from qlmm.preference_data import prefer as making

    try:
        outcome = making.prefer(
            adapter, prompts, pairs, judge=judge, image_root=image_root, settings=settings, listener=_Talk()
        )
    except KeyboardInterrupt:
        out.talk(f"stopped at once; {GO_ON}")
        raise
    if outcome.summary is None:
        out.talk(f"stopped after {outcome.done} of {outcome.total} prompts; {GO_ON}")
        raise typer.Exit(128 + (outcome.signal or signal.SIGTERM))
    _show(outcome.summary, pairs, making.records_of(pairs), as_json=as_json)


class _Talk:
    """One line per prompt; the first says where an interrupted run goes on."""

    def __init__(self) -> None:
        self._begun = False

    def __call__(self, done: PromptDone) -> None:
        """Say what was found about a prompt."""
        if not self._begun and done.number > 1:
            out.talk(f"going on after {done.number - 1} prompts")
        self._begun = True
        verdicts = [one.refuted for answer in done.record.answers for one in answer.statements]
        width = len(str(done.total))
        out.talk(
            f"prompt {done.number:>{width}}/{done.total}  {len(verdicts)} statements, {sum(verdicts)} refuted, "
            f"{len(done.record.pairs)} pairs  {clock(done.seconds_left)} left"
        )


def _show(summary: Summary, pairs: Path, records: Path, *, as_json: bool) -> None:
    from qlmm.cli.output.screens import facts_screen

    if summary.heard < LITTLE_HEARD:
        out.warn("the judge mostly says neither yes nor no: do not rely on its verdicts, name a better --judge")
    if as_json:
        out.json({"out": str(pairs), "records": str(records), **asdict(summary)})
    else:
        out.screen(facts_screen(_sections(summary, pairs, records)))


def _sections(summary: Summary, pairs: Path, records: Path) -> dict[str, list[tuple[str, str]]]:
    """The summary as titled names and values."""
    statements = f"{summary.statements:,}, {share(summary.refuted)} refuted"
    if summary.own_sentences:
        statements += f" ({summary.own_sentences:,} answers judged by their own sentences)"
    return {
        "found": [
            ("prompts", f"{summary.prompts:,}, {summary.without_pair:,} without a pair"),
            ("answers", f"{summary.answers:,}"),
            ("statements", statements),
            ("verdicts", f"yes or no is {share(summary.heard)} of what the judge would say"),
        ],
        "pairs": [
            ("pairs", f"{summary.found:,} found, {summary.pairs:,} after the length filter (r = {summary.ratio:.2f})"),
            ("words", f"{summary.chosen_words:.1f} chosen, {summary.rejected_words:.1f} rejected, on average"),
        ],
        "files": [("pairs", str(pairs)), ("records", str(records))],
    }
