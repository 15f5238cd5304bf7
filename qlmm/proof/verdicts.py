"""The two verdicts on a run: sound, as it did what it promised; useful, as the model is better on held-out rows.

A run may keep every promise and make the model worse. What it is compared with costs nothing: the model before
training, the model without the picture, and the commonest answer.

Usage: ``comparisons = compare(before, after, answers, commonest=commonest_answer(texts))``
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from qlmm.core.units import share
from qlmm.proof.records import (
    Against,
    Answer,
    Comparison,
    HeldOutProof,
    PairProof,
    PictureProof,
    Proof,
    Result,
    Verdicts,
)

__all__ = ["COMPARED", "commonest_answer", "compare", "matches", "verdicts"]

# Where fewer rows have the same answer, always giving it is not a guess that anybody would make.
COMMON = 0.1
COMPARED: dict[Result, str] = {"better": "better than", "same": "not better than", "worse": "worse than"}


def verdicts(proof: Proof) -> Verdicts:
    """Both verdicts with their reasons; `useful` is None where nothing was compared."""
    kept = sum(promise.kept for promise in proof.promises)
    count = f"all {kept}" if proof.holds else f"{kept} of {len(proof.promises)}"
    missed = f", {len(proof.skipped)} steps not taken" if proof.skipped else ""
    useful = all(one.result == "better" for one in proof.comparisons) if proof.comparisons else None
    # What went wrong comes first.
    ordered = sorted(proof.comparisons, key=lambda one: ("worse", "same", "better").index(one.result))
    words = ", ".join(f"{COMPARED[one.result]} {one.against}" for one in ordered)
    return Verdicts(
        sound=proof.holds,
        sound_because=f"{count} promises kept{missed}",
        useful=useful,
        useful_because=words or "no held-out row to compare on",
        worse=any(one.result == "worse" and one.against == "before training" for one in ordered),
    )


def compare(
    before: HeldOutProof, after: HeldOutProof, answers: Sequence[Answer], commonest: str | None
) -> tuple[Comparison, ...]:
    """All comparisons that can be made: of a run on pairs by pairs won, of others by the loss."""
    measured = _pairs(before.pairs, after.pairs) if after.pairs else _losses(before.pictures, after.pictures)
    return (*measured, *_guesses(answers, commonest))


def _losses(before: PictureProof | None, after: PictureProof | None) -> Iterator[Comparison]:
    if after is None:
        return
    if before is not None:
        change = f"held-out loss {before.right:.3f} before, {after.right:.3f} after"
        yield _comparison("before training", [-after.right], [-before.right], change)
    blind = f"loss {after.right:.3f}; with another row's picture {after.shuffled:.3f}, with none {after.none:.3f}"
    yield _comparison("without the picture", [-after.right], [-min(after.shuffled, after.none)], blind)


def _pairs(before: PairProof | None, after: PairProof) -> Iterator[Comparison]:
    """Where as many pairs are won, the margin decides."""
    ours = f"{share(after.won)} of pairs won, margin {after.margin:+.3f}"
    if before is not None:
        change = f"{ours}; before {share(before.won)}, margin {before.margin:+.3f}"
        yield _comparison("before training", [after.won, after.margin], [before.won, before.margin], change)
    if after.won_swapped is not None and after.margin_swapped is not None:
        blind = f"{ours}; with another row's pictures {share(after.won_swapped)}, margin {after.margin_swapped:+.3f}"
        wrong = [after.won_swapped, after.margin_swapped]
        yield _comparison("without the picture", [after.won, after.margin], wrong, blind)


def _guesses(answers: Sequence[Answer], commonest: str | None) -> Iterator[Comparison]:
    if answers and commonest is not None:
        right = sum(matches(answer.after, answer.expected) for answer in answers)
        guessed = sum(matches(commonest, answer.expected) for answer in answers)
        # Where neither is ever right, nothing can be seen.
        if right or guessed:
            detail = f"{right} of {len(answers)} answers right word for word; the commonest one alone gets {guessed}"
            yield _comparison("the commonest answer", [right], [guessed], detail)


def _comparison(against: Against, ours: list[float], theirs: list[float], detail: str) -> Comparison:
    """Higher figures are better, the first that differ decide; a diverged model is worse."""
    broken = not all(math.isfinite(figure) for figure in ours)
    result: Result = "worse" if broken or ours < theirs else "better" if ours > theirs else "same"
    return Comparison(against, result, detail)


def commonest_answer(answers: Iterable[str]) -> str | None:
    """The answer that most rows have; None where it is too rare to be a guess."""
    counts = Counter(_plain(answer) for answer in answers)
    answer, count = max(counts.items(), key=lambda one: one[1], default=("", 0))
    return answer if count > 1 and count >= COMMON * counts.total() else None


def matches(answer: str, expected: str) -> bool:
    """Whether two answers are equal but for case, outer blanks and a final full stop."""
    return _plain(answer) == _plain(expected)


def _plain(answer: str) -> str:
    return answer.strip().rstrip(".").casefold()
