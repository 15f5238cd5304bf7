"""What qlmm writes anew in a card lies between marks; nothing of the owner's words is lost, whatever became of them."""

from __future__ import annotations

from qlmm.artifacts.cards.sections import between, marked, renewed

CARD = "\n\n".join(["# Mine", marked("base", "old base"), "my words", marked("data", "old data"), "the end"])


def test_a_section_is_renewed_and_nothing_else() -> None:
    assert renewed(CARD, "base", "new base", "old base") == CARD.replace("old base", "new base")


def test_a_section_without_marks_is_found_by_its_words() -> None:
    assert "new base" in renewed("# Mine\n\nold base\n\nmy words", "base", "new base", "old base")
    assert renewed("# Mine\n\nedited", "base", "new base", "old base") == "# Mine\n\nedited"


def test_a_lost_end_mark_takes_nothing_with_it() -> None:
    torn = CARD.replace("<!-- qlmm: end -->", "", 1)
    assert between(torn, "base") is None
    after = renewed(torn, "base", "new base", "old base")
    assert "my words" in after
    assert between(after, "data") == between(CARD, "data")
