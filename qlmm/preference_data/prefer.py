"""Preference pairs from a model's own answers, which a judge that sees the pictures compares.

Source: RLAIF-V (arXiv 2405.17220). For each prompt several answers are drawn and split into statements. A judge gives
each statement a probability of being true of the picture. Answers with fewer refuted statements are preferred.

Usage: ``prefer(Path("runs/x/adapter"), "prompts.jsonl", Path("pairs.jsonl"), judge="org/a-larger-model")``
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from qlmm.artifacts.adapter.load import LoadedAdapter, load, load_base, plain_base
from qlmm.artifacts.adapter.manifest import Manifest, read_manifest
from qlmm.builtin import registry as builtin
from qlmm.core.errors import DataError, ModelError, NoTemplate, NotVisionLanguage, UsageError, Where
from qlmm.core.filenames import MANIFEST
from qlmm.core.signals import Stop, stop_signals
from qlmm.data.sample import Sample
from qlmm.generation.answers import draw
from qlmm.model.loading.base import Base
from qlmm.model.loading.identity import BaseIdentity
from qlmm.model.numerics.precision import choose
from qlmm.preference_data.judge import JUDGE, Judge, Split, asks_with_pictures
from qlmm.preference_data.pairing import Settings, Verdict, candidates, chosen_pairs, refuted, score
from qlmm.preference_data.pairs_file import write_pairs
from qlmm.preference_data.prompts import Questions, read_questions
from qlmm.preference_data.records import JudgedAnswer, JudgedStatement, Record, Records
from qlmm.preference_data.records import Settings as RecordSettings
from qlmm.preference_data.summary import Summary, collect
from qlmm.recipe.schema import Source

__all__ = ["Outcome", "PromptDone", "Settings", "prefer", "records_of"]

A_JUDGE = "name a vision-language model, or an adapter folder; without --judge the adapter judges itself"
A_TEMPLATE = "name a model that has one, or an adapter whose recipe gives it one (base.chat_template)"


@dataclass(frozen=True, slots=True)
class PromptDone:
    """A prompt was answered and judged, and its record is on the disk.

    ``number`` counts earlier prompts of the same run, too.
    """

    number: int
    total: int
    record: Record
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: without a summary where a signal stopped it, ready to go on."""

    status: Literal["finished", "stopped"]
    done: int
    total: int
    summary: Summary | None = None
    signal: int | None = None


def records_of(out: Path) -> Path:
    """Where the records of a file of pairs are."""
    return out.with_name(f"{out.name}.records.jsonl")


def prefer(
    adapter: Path,
    prompts: str,
    out: Path,
    *,
    judge: str | None = None,
    image_root: str | None = None,
    settings: Settings | None = None,
    listener: Callable[[PromptDone], None] = lambda done: None,
) -> Outcome:
    """Make preference pairs from an adapter's own answers, or go on with a run that was interrupted.

    Prompts are in any format that can be trained on; their answers are left out. The judge is an adapter folder, or the
    folder or Hub id of a model; None is the adapter itself. The file of pairs is written once all prompts are done: the
    length filter needs them all.

    Raises:
        UsageError: for a wrong request; nothing was written.
        RunError: J005 when another process is at it, J008 when no pair was found; the records are intact.
    """
    how = settings or Settings()
    how.check()
    _check_out(out)
    manifest = read_manifest(adapter)
    source = Source(path=prompts, image_root=image_root)
    questions = read_questions(source, limit=how.limit, resolve=builtin.path, frames=manifest.recipe.data.max_frames)
    judge = None if judge is not None and Path(judge).resolve() == adapter.resolve() else judge
    seen_by = _seeing(judge) if judge is not None and not (Path(judge) / MANIFEST).is_file() else None
    total = len(questions.samples)
    with Records.open(records_of(out), _begun_with(manifest, judge, seen_by, questions, how)) as records:
        if len(records.done) < total:
            with stop_signals() as stop:
                maker = _Maker.load(adapter, judge, seen_by, questions.samples, how)
                _work(maker, questions.samples, records, stop, listener)
            if stop.by is not None and len(records.done) < total:
                return Outcome("stopped", len(records.done), total, signal=stop.by)
        kept, summary = collect(questions.samples, records.done[:total])
        write_pairs(out, kept)
        return Outcome("finished", total, total, summary)


def _work(
    maker: _Maker, samples: Sequence[Sample], records: Records, stop: Stop, listener: Callable[[PromptDone], None]
) -> None:
    """Answer and judge what is left, prompt by prompt, until all is done or a signal came."""
    begun, first = time.monotonic(), len(records.done)
    for number in range(first, len(samples)):
        if stop.by is not None:
            return
        record = maker.record(number, samples[number])
        records.append(record)
        pace = (time.monotonic() - begun) / (number + 1 - first)
        listener(PromptDone(number + 1, len(samples), record, pace * (len(samples) - number - 1)))


@dataclass(frozen=True, slots=True)
class _Maker:
    """The models in memory, and how they are used."""

    answering: LoadedAdapter
    judge: Judge
    how: Settings

    @classmethod
    def load(
        cls, adapter: Path, judge: str | None, base: Base | None, samples: Sequence[Sample], how: Settings
    ) -> _Maker:
        """Load the model that answers and, where it is another, the one that judges: an adapter, or a base alone."""
        answering = load(adapter, precision=choose("auto", "auto"))
        _check_pictures(samples, str(adapter), needed=asks_with_pictures(answering))
        if judge is None:
            return cls(answering, Judge.of(answering), how)
        where = answering.precision
        judging = Judge.of(load(judge, precision=where) if base is None else load_base(base, precision=where))
        _check_pictures(samples, judge, needed=judging.needs_pictures)
        return cls(answering, judging, how)

    def record(self, number: int, sample: Sample) -> Record:
        """Answer one prompt several times, judge the answers and pair them."""
        answering, seed = self.answering, _derived(self.how.seed, number)
        with answering.precision.autocast():
            texts = draw(
                answering.model,
                answering.encoder,
                sample,
                self.how.answers,
                temperature=self.how.temperature,
                max_new_tokens=self.how.max_new_tokens,
                seed=seed,
            )
        judged = self._judged(sample, list(dict.fromkeys(texts)))
        answers = [judged[text] for text in texts]
        pairs = candidates(texts, [one.score for one in answers])
        return Record(
            prompt=number,
            origin=str(sample.origin),
            question=sample.turns[-1].text.strip(),
            pictures=tuple(ref.name for ref in sample.images),
            seed=seed,
            answers=tuple(answers),
            candidates=len(pairs),
            pairs=tuple(chosen_pairs(pairs, self.how.per_prompt, f"{self.how.seed}:{number}")),
        )

    def _judged(self, sample: Sample, texts: Sequence[str]) -> dict[str, JudgedAnswer]:
        """Different answers by their text, each with its statements and the judge's verdicts on them."""
        question, longest = sample.turns[-1].text.strip(), self.how.max_new_tokens
        splits = {text: self.judge.split(question, text, sample.images, longest=longest) for text in texts}
        # Answers share statements; each is asked about once.
        stated = dict.fromkeys(statement for split in splits.values() for statement in split.statements)
        asked = {statement: JUDGE.format(question=question, statement=statement) for statement in stated}
        verdicts = dict(zip(asked, self.judge.verdicts(list(asked.values()), sample.images), strict=True))
        return {text: _answer(text, split, asked, verdicts) for text, split in splits.items()}


def _answer(text: str, split: Split, asked: Mapping[str, str], verdicts: Mapping[str, Verdict]) -> JudgedAnswer:
    found = [verdicts[statement] for statement in split.statements]
    statements = tuple(
        JudgedStatement(statement=one, question=asked[one], yes=yes, no=no, refuted=refuted((yes, no)))
        for one, (yes, no) in zip(split.statements, found, strict=True)
    )
    # An empty answer has nothing to refute, and must not win for it.
    return JudgedAnswer(text=text, split_by=split.by, statements=statements, score=score(found) if found else None)


def _check_out(out: Path) -> None:
    """Refuse a place that cannot be written to, or that has another file: UsageError J002."""
    if out.is_dir() or not out.name:
        raise UsageError.one("J002", f"--out {out} is a folder", help=f"name a file in it: {out / 'pairs.jsonl'}")
    if not out.parent.is_dir():
        message = f"--out {out}: the folder {out.parent} is not there"
        raise UsageError.one("J002", message, help=f"make it: mkdir -p {out.parent}")
    if not os.access(out.parent, os.W_OK):
        message = f"--out {out}: the folder {out.parent} cannot be written to"
        raise UsageError.one("J002", message, help="give an --out in a folder of yours")
    if out.exists() and not records_of(out).is_file():
        message = f"--out {out} is there already, and was not made by this run: it has no {records_of(out).name}"
        raise UsageError.one("J002", message, help="give another --out, or move it away")


def _check_pictures(samples: Sequence[Sample], name: str, *, needed: bool) -> None:
    """Refuse a prompt that a model cannot be asked: DataError D042 with the first such row."""
    bare = next((sample for sample in samples if not sample.images), None)
    if needed and bare is not None:
        message = f"this row has no picture, and {name} cannot do without"
        where = Where(bare.origin.file, bare.origin.line)
        raise DataError.one("D042", message, where=where, help="leave rows without a picture out")


def _begun_with(
    manifest: Manifest, judge: str | None, base: Base | None, questions: Questions, how: Settings
) -> RecordSettings:
    """All that decides the records, as their file names it."""
    settings = asdict(how)
    del settings["limit"]  # more prompts may follow later
    judging: object = "the adapter itself"
    if judge is not None:
        judging = _adapter_facts(read_manifest(Path(judge))) if base is None else {"base": _parts(base.identity)}
    return {**_adapter_facts(manifest), "judge": judging, "prompts": questions.fingerprint, **settings}


def _adapter_facts(manifest: Manifest) -> RecordSettings:
    files = json.dumps(manifest.files, sort_keys=True).encode()
    return {"adapter": hashlib.sha256(files).hexdigest(), "base": _parts(manifest.base)}


def _parts(base: BaseIdentity) -> object:
    return base.model_dump(mode="json")["parts"]


def _seeing(judge: str) -> Base:
    """The base that judges; without sight (M010, J007) or a template (M041) it is refused before it is loaded."""
    try:
        base = Base.resolve(plain_base(judge))
        # A missing chat template is found before anything is loaded.
        sees, _ = base.shape.parts.has("vision"), base.processor
    except NotVisionLanguage as error:
        raise error.about("--judge", A_JUDGE) from error
    except NoTemplate as error:
        raise error.about("--judge", A_TEMPLATE) from error
    except ModelError as error:
        raise error.about("--judge") from error
    if not sees:
        raise ModelError.one("J007", f"--judge {judge} has no vision part: it cannot see what it judges", help=A_JUDGE)
    return base


def _derived(seed: int, number: int) -> int:
    """A prompt's own seed, so that a run that goes on draws what it would have drawn."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:6])
