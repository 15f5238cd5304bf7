"""The encoder of every family, and pictures to show it.

Usage: ``encoder("llava").batch([row])``
"""

from __future__ import annotations

import functools

from PIL import Image

from qlmm.core.errors import ModelError
from qlmm.data.encoding.encoder import Encoder
from qlmm.data.media.media_root import ImageRoot
from tests.families.build import NotOffline, family, names
from tests.families.rows import ROWS
from tests.tiny import template

__all__ = ["PICTURES", "encoder", "usable"]

PICTURES = tuple(ImageRoot(".").ref(Image.new("RGB", size, "red")) for size in ((64, 64), (50, 37), (30, 90)))


@functools.cache
def encoder(name: str) -> Encoder:
    """The encoder of a family.

    Raises:
        NotOffline: it cannot be built here.
        ModelError: its processor cannot be used for training.
    """
    processor = family(name).processor
    if processor.chat_template is None:
        processor.chat_template = template("blip2" if ROWS[name].marker == "" else "paligemma")
    decoder = bool(family(name).config.is_encoder_decoder)
    return Encoder.make(processor, decoder=decoder)


def usable() -> list[str]:
    """Families whose processor can be used for training; docs/families.md says why the others cannot."""
    found = []
    for name in names():
        try:
            encoder(name)
        except (NotOffline, ModelError, AttributeError, KeyError):
            continue
        found.append(name)
    return found
