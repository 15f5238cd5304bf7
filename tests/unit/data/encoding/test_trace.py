"""A row is shown as the model sees it: what is given, what is learned, and where its pictures stand."""

from __future__ import annotations

from PIL import Image

from qlmm.data.encoding.encoder import Encoder
from qlmm.data.encoding.trace import Piece, traced
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.sample import Origin, Sample, Turn
from tests.tiny import TOKENS_PER_IMAGE, tiny_processor

PICTURE = ImageRoot(".").ref(Image.new("RGB", (4, 4)))
ROW = Sample(
    (
        Turn("user", (PICTURE, PICTURE, "What?")),
        Turn("assistant", ("A cat.",)),
        Turn("user", ("Q",)),
        Turn("assistant", ("R",)),
    ),
    Origin("x", 1),
)


def test_a_row_is_traced_from_its_tensors() -> None:
    pieces = traced(Encoder.make(tiny_processor("owl")), ROW)
    assert pieces[:2] == [
        Piece("given", "<s>\nHuman: ", pieces[0].tokens),
        Piece("picture", "<image>", TOKENS_PER_IMAGE),
    ]
    assert [(piece.kind, piece.text) for piece in pieces[2:]] == [
        ("given", "\nHuman: "),
        ("picture", "<image>"),
        ("given", "\nHuman: What?\nAI: "),
        ("learned", "A cat.</s>"),
        ("given", "\nHuman: Q\nAI: "),
        ("learned", "R</s>"),
    ]
    assert sum(piece.tokens for piece in pieces) == Encoder.make(tiny_processor("owl")).measure([ROW])[0].total


def test_neighbouring_pictures_are_told_apart() -> None:
    kinds = [piece.kind for piece in traced(Encoder.make(tiny_processor("chatml")), ROW)]
    assert kinds == ["given", "picture", "picture", "given", "learned", "given", "learned", "given"]
