"""Pictures to tell apart, without a file.

Usage: ``colour(3)``
"""

from __future__ import annotations

import io

from PIL import Image

from qlmm.data.sample import ImageRef

__all__ = ["colour"]


def colour(number: int) -> ImageRef:
    """A picture of one colour, inline."""
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (60 * number % 256, 200 - 40 * number % 200, 15 * number)).save(stream, "PNG")
    return ImageRef(data=stream.getvalue())
