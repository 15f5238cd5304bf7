"""Numbers as people read them, always with their unit.

Usage: ``memory(3 << 30) == "3.0 GiB"; clock(372) == "6:12"``
"""

from __future__ import annotations

import math
import re

__all__ = ["clock", "memory", "memory_bytes", "rate", "share"]

BYTES_PER_UNIT = 1024
POWERS = {"M": 2, "G": 3, "T": 4}


def memory(size_bytes: float) -> str:
    """Bytes in the units that graphics cards are sold in: MiB and GiB."""
    if size_bytes < BYTES_PER_UNIT**2:
        return f"{size_bytes / BYTES_PER_UNIT:.0f} KiB"
    if size_bytes < BYTES_PER_UNIT**3:
        return f"{size_bytes / BYTES_PER_UNIT**2:.0f} MiB"
    return f"{size_bytes / BYTES_PER_UNIT**3:.1f} GiB"


def memory_bytes(text: str) -> int:
    """The bytes of a size such as ``12GB``, in the units that graphics cards are sold in: GB and GiB are one.

    Raises:
        ValueError: when it is no size, or one below a MiB.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([MGT])(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    size = int(float(found[1]) * BYTES_PER_UNIT ** POWERS[found[2].upper()]) if found is not None else 0
    if size < BYTES_PER_UNIT**2:
        raise ValueError(f"`{text}` is not a size of memory, such as 12GB or 800MB")
    return size


def clock(seconds: float) -> str:
    """Seconds as minutes:seconds, or hours:minutes:seconds; unknown as a dash."""
    if not math.isfinite(seconds) or seconds < 0:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def rate(per_second: float) -> str:
    """A throughput without digits that mean nothing."""
    return f"{per_second:,.0f}" if per_second >= 10 or not math.isfinite(per_second) else f"{per_second:.1f}"


def share(value: float) -> str:
    """A share between 0 and 1 in per cent, never rounded to all or nothing when it is neither."""
    if 0 < value < 0.001:
        return "<0.1 %"
    if 0.999 < value < 1:
        return ">99.9 %"
    return f"{100 * value:.1f} %"
