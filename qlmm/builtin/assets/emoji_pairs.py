"""Pairs about the emoji pictures: the kind of thing a picture shows, against the kind of its look-alike.

The pictures are real; the preferences are constructed: what is rejected is the kind of the most similar picture that
shows another kind.

Usage: ``path: "builtin:emoji-pairs"`` in a recipe
"""

from __future__ import annotations

from dataclasses import replace

from qlmm.builtin.assets import emoji

__all__ = ["PACKAGED"]

PACKAGED = replace(emoji.PACKAGED, entry="pairs-train.jsonl")
