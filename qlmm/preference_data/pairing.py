"""From judged statements to preference pairs, without a model, by the rules of RLAIF-V (arXiv 2405.17220).

An answer loses a point per refuted statement, and answers of different scores form a pair. Pairs are chosen so that
the better answers are as long as the worse ones on average.

Usage: ``pairs = candidates(texts, [score(one) for one in judged]); kept = length_filter(lengths)``
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from qlmm.core.errors import UsageError

__all__ = [
    "Filtered",
    "Settings",
    "Verdict",
    "candidates",
    "chosen_pairs",
    "length_filter",
    "refuted",
    "score",
    "sentences",
    "statements",
    "words",
]

RATIOS = 50  # 0, 0.02, … 0.98
# Scripts that are written without spaces are read letter by letter.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")
BULLET = re.compile(r"^\s*(?:[-*•–]+|\(?\d+[.):]\)?|[a-z][.)])\s+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+")
# Words that any two English sentences may share.
WORDS_OF_ANY_SENTENCE = """
a an the this that these those it its he she they them his her their there here i you we is are was were be been
being has have had do does did can could will would may might must shall should and or but nor so if then than as of
in on at by for from to with without into onto over under up down out about not no yes one what which who whom where
when how why s t
"""
FUNCTION_WORDS = frozenset(WORDS_OF_ANY_SENTENCE.split())

Verdict = tuple[float, float]
"""Probabilities of yes and of no."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How pairs are made.

    At most ``per_prompt`` pairs are taken of a prompt. ``max_new_tokens`` cuts answers and judges' lists of statements.
    """

    answers: int = 10
    temperature: float = 0.7
    per_prompt: int = 2
    max_new_tokens: int = 256
    seed: int = 0
    limit: int | None = None

    def check(self) -> None:
        """Refuse settings that can give no pair: UsageError J001 names the first that is wrong."""
        wrong = {
            f"--answers {self.answers}: a pair needs two answers": self.answers < 2,
            f"--temperature {self.temperature:g}: without chance all answers are the same": not (
                0 < self.temperature < math.inf
            ),
            f"--per-prompt {self.per_prompt}: at least one pair has to be taken": self.per_prompt < 1,
            f"--max-new-tokens {self.max_new_tokens}: an answer needs one at least": self.max_new_tokens < 1,
            f"--limit {self.limit}: at least one prompt has to be taken": self.limit is not None and self.limit < 1,
        }
        for message, broken in wrong.items():
            if broken:
                help = "usual are --answers 10 --temperature 0.7 --per-prompt 2"
                raise UsageError.one("J001", message, help=help)


@dataclass(frozen=True, slots=True)
class Filtered:
    """Places of the pairs that the length filter kept.

    Attributes:
        ratio: the largest share by which a chosen answer may be shorter; None when nothing could be kept.
        imbalance: difference of the mean lengths over the mean length of the rejected.
    """

    ratio: float | None
    kept: tuple[int, ...]
    imbalance: float = 0.0


def words(text: str) -> int:
    """Length of an answer as the filter measures it."""
    return len(text.split())


def content_words(text: str) -> set[str]:
    """The words of a text without those of any sentence."""
    return set(WORD.findall(text.casefold())) - FUNCTION_WORDS


def statements(written: str, answer: str) -> list[str]:
    """The statements that a judge wrote about an answer, one a line, without numbering, repeats and inventions.

    A line that shares no content word with the answer cannot come from it: an introduction, a refusal, an echo.
    """
    known = content_words(answer)
    lines = (BULLET.sub("", line).strip() for line in written.splitlines())
    return list(dict.fromkeys(line for line in lines if content_words(line) & known))


def sentences(answer: str) -> list[str]:
    """The sentences of an answer, each once; none where it has no word."""
    pieces = (piece.strip() for piece in SENTENCE_END.split(answer))
    return list(dict.fromkeys(piece for piece in pieces if WORD.search(piece)))


def refuted(verdict: Verdict) -> bool:
    """Whether a judge denies a statement; it counts as denied where yes and no are equally likely."""
    yes, no = verdict
    return yes <= no


def score(verdicts: Sequence[Verdict]) -> int:
    """The score of an answer: minus the number of its refuted statements."""
    return -sum(refuted(verdict) for verdict in verdicts)


def candidates(texts: Sequence[str], scores: Sequence[int | None]) -> list[tuple[int, int]]:
    """All pairs (chosen, rejected) of places whose scores differ, identical texts taken once.

    An empty answer has no score, and can be neither chosen nor rejected.
    """
    first = {text: place for place, text in reversed(list(enumerate(texts)))}
    scored = [(place, value) for place in sorted(first.values()) if (value := scores[place]) is not None]
    return [(one, other) for one, better in scored for other, worse in scored if better - worse >= 1]


def chosen_pairs(pairs: Sequence[tuple[int, int]], most: int, seed: str) -> list[tuple[int, int]]:
    """At most so many of a prompt's pairs, drawn by the seed and in their order."""
    if len(pairs) <= most:
        return list(pairs)
    return sorted(random.Random(seed).sample(list(pairs), most))  # noqa: S311 - a reproducible choice, no secret


def length_filter(lengths: Sequence[tuple[int, int]]) -> Filtered:
    """Keep the pairs that leave the mean lengths of both sides closest.

    A model would otherwise learn length instead of truth. A pair is kept at ratio r where the chosen answer is shorter
    by at most that share of the rejected. Of r = 0, 0.02, … 0.98 the first with the smallest imbalance is taken.
    """
    best = Filtered(None, ())
    for step in range(RATIOS):
        ratio = step / RATIOS
        kept = tuple(
            place for place, (chosen, rejected) in enumerate(lengths) if (rejected - chosen) / rejected <= ratio
        )
        if not kept:
            continue
        chosen, rejected = (fmean(lengths[place][side] for place in kept) for side in (0, 1))
        imbalance = abs(chosen - rejected) / rejected
        if best.ratio is None or imbalance < best.imbalance:
            best = Filtered(ratio, kept, imbalance)
    return best
