"""Rows of different lengths, put together so that as few passes as possible hold them.

Usage: ``bins([4, 9, 7], lengths, tokens=2048, most=16)``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["bins"]


def bins(
    rows: Sequence[int], lengths: Sequence[int] | Mapping[int, int], *, tokens: int, most: int, padded: bool = False
) -> list[list[int]]:
    """Rows in bins of at most so many tokens and rows, the longest first; a row that is longer has a bin of its own.

    First-fit decreasing, which needs at most 11/9 of the bins that are needed at best, and one more (Dósa 2007). Where
    rows are `padded`, each takes as many tokens as the longest beside it.
    """
    found: list[list[int]] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        for one in found:
            taken = lengths[one[0]] * len(one) if padded else sum(lengths[other] for other in one)
            needed = lengths[one[0]] if padded else lengths[row]
            if len(one) < most and taken + needed <= tokens:
                one.append(row)
                break
        else:
            found.append([row])
    return found
