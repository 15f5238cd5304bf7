"""``qlmm prefer``: preference pairs from a model's own answers, in the terminal.

Usage: ``prefer(Path("runs/owl_lora/adapter"), "prompts.jsonl", Path("pairs.jsonl"))``
"""

from __future__ import annotations

import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from qlmm.artifacts.adapter.manifest import read_manifest
from qlmm.cli.commands.zoo_app import from_zoo
from qlmm.cli.output.console import out as console
from qlmm.cli.output.library_noise import quiet
from qlmm.cli.output.screens import facts_screen
from qlmm.core.units import clock, share
from qlmm.preference_data.pairing import Settings

if TYPE_CHECKING:
    from qlmm.preference_data.prefer import PromptDone
    from qlmm.preference_data.summary import Summary

__all__ = ["prefer"]

GO_ON = "the same command goes on from there"
# Below this, what a judge says instead of yes and no is most of what it says.
LITTLE_HEARD = 0.5


def prefer(
    adapter: Path,
    prompts: str,
    out: Path,
    *,
    judge: str | None = None,
    image_root: str | None = None,
    settings: Settings | None = None,
    as_json: bool = False,
) -> None:
    """Make pairs, or go on with a run that was interrupted, and print what was found.

    Args:
        adapter: adapter folder of the model that answers.
        prompts: file, folder or data set of questions.
        out: the file of pairs.
        judge: what judges; None is the adapter itself.
        image_root: folder that the prompts' picture paths start from.
        settings: how answers are drawn and pairs are taken.
        as_json: print the summary as JSON.

    Raises:
        QlmmError: whatever is wrong, for the command line's edge to print.
    """
    how = settings or Settings()
    # Told in a moment, before the libraries that load a model are imported.
    how.check()
    read_manifest(adapter)
    judge = str(from_zoo(Path(judge))) if judge is not None else None
    quiet()
    from qlmm.preference_data import prefer as making

    talk = _Talk()
    try:
        outcome = making.prefer(
            adapter, prompts, out, judge=judge, image_root=image_root, settings=how, listener=talk.tell
        )
    except KeyboardInterrupt:
        console.talk(f"stopped at once; {GO_ON}")
        raise
    if outcome.summary is None:
        console.talk(f"stopped after {outcome.done} of {outcome.total} prompts; {GO_ON}")
        raise typer.Exit(128 + (outcome.signal or signal.SIGTERM))
    if outcome.summary.heard < LITTLE_HEARD:
        console.warn("the judge mostly says neither yes nor no: do not rely on its verdicts, name a better --judge")
    if as_json:
        console.json({"out": str(out), "records": str(making.records_of(out)), **asdict(outcome.summary)})
        return
    console.screen(facts_screen(_sections(outcome.summary, out, making.records_of(out))))


class _Talk:
    """One line per prompt; the first says where an interrupted run goes on."""

    def __init__(self) -> None:
        self._begun = False

    def tell(self, done: PromptDone) -> None:
        """Say what was found about a prompt."""
        if not self._begun and done.number > 1:
            console.talk(f"going on after {done.number - 1} prompts")
        self._begun = True
        verdicts = [one["refuted"] for answer in done.record["answers"] for one in answer["statements"]]
        width = len(str(done.total))
        console.talk(
            f"prompt {done.number:>{width}}/{done.total}  {len(verdicts)} statements, {sum(verdicts)} refuted, "
            f"{len(done.record['pairs'])} pairs  {clock(done.seconds_left)} left"
        )


def _sections(summary: Summary, out: Path, records: Path) -> dict[str, list[tuple[str, str]]]:
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
        "files": [("pairs", str(out)), ("records", str(records))],
    }
