"""Numbers as people read them."""

from __future__ import annotations

import pytest

from qlmm.core.units import clock, memory, memory_bytes, rate, share


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 KiB"), (200 << 10, "200 KiB"), (3 << 20, "3 MiB"), (24 << 30, "24.0 GiB")]
)
def test_memory(size: int, text: str) -> None:
    assert memory(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (372, "6:12"), (3723, "1:02:03"), (float("inf"), "-:--"), (float("nan"), "-:--")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0.44, "0.4"), (312.4, "312"), (12_345, "12,345"), (float("inf"), "inf")])
def test_rate(value: float, text: str) -> None:
    assert rate(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0.0 %"), (1e-6, "<0.1 %"), (0.5, "50.0 %"), (0.9999, ">99.9 %"), (1, "100.0 %")]
)
def test_a_share_is_never_rounded_to_all_or_nothing(value: float, text: str) -> None:
    assert share(value) == text


@pytest.mark.parametrize(
    ("text", "mib"),
    [("12GB", 12 << 10), ("12 GiB", 12 << 10), ("12g", 12 << 10), ("800MB", 800), ("1.5 gb", 1536), ("2TB", 2 << 20)],
)
def test_a_size_of_memory(text: str, mib: int) -> None:
    assert memory_bytes(text) == mib << 20


@pytest.mark.parametrize(
    "text", ["", "12", "12 bananas", "GB", "-3GB", "0GB", "1e3GB", "12 GB GB", "nan GB", "0.0001MB", "12,5GB", "١٢GB"]
)
def test_what_is_no_size_of_memory(text: str) -> None:
    with pytest.raises(ValueError, match="not a size of memory"):
        memory_bytes(text)
