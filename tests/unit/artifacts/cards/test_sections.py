"""What qlmm writes anew in a card lies between marks; nothing of the owner's words is lost, whatever became of them."""

from __future__ import annotations

from qlmm.artifacts.cards.sections import marked, renewed

CARD = "\n\n".join(["# Mine", marked("base", "old base"), "my words", marked("data", "old data"), "the end"])


def test_a_section_is_renewed_and_nothing_else() -> None:
    assert renewed(CARD, "base", "new base") == CARD.replace("old base", "new base")


def test_a_section_without_marks_belongs_to_the_owner() -> None:
    assert renewed("# Mine\n\nold base", "base", "new base") == "# Mine\n\nold base"


def test_a_lost_end_mark_takes_nothing_with_it() -> None:
    torn = CARD.replace("<!-- qlmm: end -->", "", 1)
    assert renewed(torn, "base", "new base") == torn
    assert renewed(torn, "data", "new data") == torn.replace("old data", "new data")
