"""One line of the table of families: what a family needs to be told.

Usage: ``Row(image="<image>", pictures={"size": SQUARE}, template=chatml("<image>"))``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerFast

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one family needs to be told; everything left out follows from the general rules.

    Attributes:
        image: the token that fills a picture's places in ``input_ids``.
        sayable: the model has an output for that token too; where not, it is the last one.
        named: tokens that the processor asks its tokenizer for by attribute.
        special: further special tokens.
        ids: settings of the configuration that are ids, and their tokens.
        ends: the tokens that begin a text, end a turn, and pad.
        unknown: the token for what no token stands for, where the processor counts from it.
        separator: the token that ends a text, where the processor adds one.
        tokenizer_class: the tokenizer's class, where the library insists on its own when it loads the family.
        pictures: settings of the image processor.
        videos: settings of the video processor, which is made only beside torchvision.
        processor: settings of the processor.
        like: the family whose parts of a processor it uses, where the library registers none for it.
        processor_class: the processor's class, where the library registers it for no family.
        asked: what the default configuration is asked for, where it leaves a part out by itself.
        config: settings of the configuration that the general rule gets wrong, by dotted name.
        template: the chat template; None for a family without one.
        marker: what a text without a template holds for a picture; empty for a processor that puts the places there.
        call: what a call of the processor needs beside texts and pictures.
        answers: an encoder-decoder, which is given what to say as labels.
        flat: pictures are one list, not a list for each row of text.
        several: a row of text may have several pictures.
        words_alone: a row of text may have no picture.
        counted: the model refuses a text with fewer places than its pictures have features.
    """

    image: str | None = None
    sayable: bool = True
    named: Mapping[str, str] = field(default_factory=dict)
    special: tuple[str, ...] = ()
    ids: Mapping[str, str] = field(default_factory=dict)
    ends: tuple[str, str, str] = ("<s>", "</s>", "<pad>")
    unknown: str | None = None
    separator: str | None = None
    tokenizer_class: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    pictures: Settings = field(default_factory=dict)
    videos: Settings = field(default_factory=dict)
    processor: Settings = field(default_factory=dict)
    like: str | None = None
    processor_class: str | None = None
    asked: Settings = field(default_factory=dict)
    config: Settings = field(default_factory=dict)
    template: str | None = None
    marker: str = ""
    call: Settings = field(default_factory=dict)
    answers: bool = False
    flat: bool = False
    several: bool = True
    words_alone: bool = True
    counted: bool = True
