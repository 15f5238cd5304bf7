"""All records of a run together: the length filter over every pair, and the summary.

Usage: ``pairs, summary = collect(samples, records)``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from qlmm.core.errors import RunError
from qlmm.data.sample import Preference, Sample
from qlmm.preference_data.pairing import length_filter, words
from qlmm.preference_data.records import Record

__all__ = ["Summary", "collect"]


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a run.

    Attributes:
        without_pair: prompts whose answers all have the same score.
        answers: answers drawn, identical ones counted.
        own_sentences: answers that were judged by their own sentences, since the judge took nothing from them.
        refuted: share of the statements that the judge denied.
        heard: mean probability that the judge's next token is a yes or a no at all; where it is small, verdicts mean
            little.
        found: pairs before the length filter.
        pairs: pairs after it.
        ratio: the largest share by which a chosen answer may be shorter.
        chosen_words: mean length of the chosen answers; ``rejected_words`` likewise.
    """

    prompts: int
    without_pair: int
    answers: int
    own_sentences: int
    statements: int
    refuted: float
    heard: float
    found: int
    pairs: int
    ratio: float
    chosen_words: float
    rejected_words: float


def collect(samples: Sequence[Sample], records: Sequence[Record]) -> tuple[list[Preference], Summary]:
    """The pairs that the length filter keeps, and the summary; RunError J008 when there is no pair."""
    found = [pair for sample, record in zip(samples, records, strict=True) for pair in _pairs(sample, record)]
    lengths = [(words(pair.chosen), words(pair.rejected)) for pair in found]
    filtered = length_filter(lengths)
    if filtered.ratio is None:
        message = "no pair was found: the judge gives all answers to a prompt the same score"
        help = "draw more or more varied answers (--answers, --temperature), give more prompts, or another --judge"
        raise RunError.one("J008", message, help=help)
    answers = [answer for record in records for answer in record.answers]
    judged = [statement for answer in answers for statement in answer.statements]
    chosen, rejected = (fmean(lengths[place][side] for place in filtered.kept) for side in (0, 1))
    summary = Summary(
        prompts=len(records),
        without_pair=sum(not record.pairs for record in records),
        answers=len(answers),
        own_sentences=sum(answer.split_by == "sentences" for answer in answers),
        statements=len(judged),
        refuted=fmean(one.refuted for one in judged),
        heard=fmean(one.yes + one.no for one in judged),
        found=len(found),
        pairs=len(filtered.kept),
        ratio=filtered.ratio,
        chosen_words=chosen,
        rejected_words=rejected,
    )
    return [found[place] for place in filtered.kept], summary


def _pairs(sample: Sample, record: Record) -> list[Preference]:
    texts = [answer.text for answer in record.answers]
    return [Preference(sample.turns, texts[one], texts[other], sample.origin) for one, other in record.pairs]
