"""Seeded order of the rows of an epoch: sources by weight, text-only rows in a fixed share, evenly mixed throughout.

Every prefix of the order has text and picture rows in their shares, and within each kind the sources in theirs, to
within one row. So a run that is stopped early, or whose batches are small, has seen the mixture all the same.

Usage: ``sampler = MixtureSampler(Mixture.of(samples, source, weights, text_ratio=0.5), seed=0); sampler.set_epoch(1)``
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from qlmm.core.errors import DataError
from qlmm.data.sample import Example

__all__ = ["Mixture", "MixtureSampler", "Stratum", "interleaved"]


@dataclass(frozen=True, slots=True)
class Stratum:
    """Rows of one source and one kind; an epoch has ``count`` of them, some of them again where that is more."""

    source: int
    text_only: bool
    rows: tuple[int, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Mixture:
    """What an epoch is made of."""

    strata: tuple[Stratum, ...]

    @classmethod
    def of(
        cls,
        samples: Sequence[Example],
        source: Sequence[int],
        weights: Sequence[float],
        *,
        text_ratio: float | None = None,
    ) -> Mixture:
        """Decide how many rows of each kind an epoch has, from each row's source and how often sources are seen.

        Text-only rows are cycled or left out to reach their share ``text_ratio``; picture rows keep their weights.

        Raises:
            DataError: D008 when the share asks for a kind of row that the data lack.
        """
        groups: dict[tuple[int, bool], list[int]] = {}
        for row, (sample, place) in enumerate(zip(samples, source, strict=True)):
            groups.setdefault((place, not sample.images), []).append(row)
        counts = {key: max(1, round(len(rows) * weights[key[0]])) for key, rows in groups.items()}
        if text_ratio is not None:
            counts = _with_text_share(counts, text_ratio)
        strata = (Stratum(*key, rows=tuple(groups[key]), count=counts[key]) for key in sorted(groups))
        return cls(tuple(stratum for stratum in strata if stratum.count))

    def __len__(self) -> int:
        """Rows in an epoch."""
        return sum(stratum.count for stratum in self.strata)


def _with_text_share(counts: dict[tuple[int, bool], int], share: float) -> dict[tuple[int, bool], int]:
    """The counts, those of text-only rows scaled to make up ``share`` of the epoch."""
    text = {key: count for key, count in counts.items() if key[1]}
    pictures = sum(counts.values()) - sum(text.values())
    if pictures == 0 or (share > 0 and not text):
        lacking = "picture" if pictures == 0 else "text-only"
        message = f"it is {share:g}, but there are no {lacking} rows"
        raise DataError.one(
            "D008", message, help="leave text_ratio out, or add a source that has them", key="data.text_ratio"
        )
    wanted = round(pictures * share / (1.0 - share))
    scaled = dict(zip(text, _apportioned(wanted, list(text.values())), strict=True))
    return {**counts, **scaled}


def _apportioned(total: int, sizes: Sequence[int]) -> list[int]:
    """``total`` split in proportion to ``sizes``, by largest remainder."""
    exact = [total * size / max(1, sum(sizes)) for size in sizes]
    shares = [int(one) for one in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda place: (shares[place] - exact[place], place))
    for place in by_remainder[: total - sum(shares)]:
        shares[place] += 1
    return shares


def interleaved(counts: Sequence[int]) -> list[int]:
    """Class numbers in an order where every prefix of length t has ``t * count / total`` of each class, within one.

    Of the classes far enough behind their share, the one whose deadline comes first (Tijdeman's solution of the
    chairman assignment problem, Discrete Mathematics 32, 1980), in whole numbers.
    """
    present = [place for place, count in enumerate(counts) if count > 0]
    if len(present) <= 1:
        return [place for place in present for _ in range(counts[place])]
    total, slack = sum(counts), 2 * len(present) - 2
    behind = dict.fromkeys(present, 0)  # (share so far - rows so far) * total * slack
    order = []
    for _ in range(total):
        for place in present:
            behind[place] += counts[place] * slack
        due = [place for place in present if behind[place] >= total]
        chosen = min(due, key=lambda place: ((total * (slack - 1) - behind[place]) / counts[place], place))
        behind[chosen] -= total * slack
        order.append(chosen)
    return order


class MixtureSampler(Sampler[int]):
    """Row numbers of an epoch; the same for the same seed and epoch at every batch size.

    Rows of a stratum come in shuffled rounds that run on from epoch to epoch: none is seen again before all of its
    stratum were seen, also where an epoch has only part of them.
    """

    def __init__(self, mixture: Mixture, *, seed: int = 0) -> None:
        self._mixture = mixture
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order comes next; the trainer calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Rows in an epoch."""
        return len(self._mixture)

    def __iter__(self) -> Iterator[int]:
        """The epoch's row numbers in order."""
        strata = self._mixture.strata
        left = [iter(self._picked(stratum)) for stratum in strata]
        kinds = [[place for place, one in enumerate(strata) if one.text_only is text] for text in (False, True)]
        within = [iter(interleaved([strata[place].count for place in kind])) for kind in kinds]
        for kind in interleaved([sum(strata[place].count for place in places) for places in kinds]):
            yield next(left[kinds[kind][next(within[kind])]])

    def _picked(self, stratum: Stratum) -> list[int]:
        """The next ``count`` rows of a stratum, of its endless shuffled rounds."""
        size = len(stratum.rows)
        first = self._epoch * stratum.count
        rounds = range(first // size, (first + stratum.count - 1) // size + 1)
        row_numbers = [stratum.rows[place] for number in rounds for place in self._shuffled(stratum, number)]
        return row_numbers[first % size : first % size + stratum.count]

    def _shuffled(self, stratum: Stratum, number: int) -> list[int]:
        key = f"{self._seed}/{stratum.source}/{int(stratum.text_only)}/{number}"
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))
        return [int(place) for place in torch.randperm(len(stratum.rows), generator=generator)]
