"""Conversation -> text segments, through the chat template; who speaks decides what is learned, never a search.

transformers can either encode control tokens in user text as plain text, or return the mask of the template's
generation markers, not both (5.23 refuses the combination). Segments give both: the rendered conversation is cut

- where an answer begins, so that training sees exactly the tokens a prompt gives, followed by the answer's own;
- inside every control token or picture marker that stands in a row's own text, so that it can only be read as text.

Each segment is tokenised on its own, and knows how many of its first characters are learned.

Usage: ``segments = Renderer(processor).segments(sample)``
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from qlmm.core.errors import DataError, ModelError, Where
from qlmm.data.contract import Processor
from qlmm.data.sample import ImageRef, Sample, Turn

__all__ = ["Renderer", "Segment"]

# A Unicode noncharacter: never text; rows that hold it lose it.
CUT = "\ufdd0"
MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
QUESTION, ANSWER = "a question", "an answer"
NAME_A_TEMPLATE = "name a template in the recipe: base.chat_template: chatml, vicuna, owl, plain, or a .jinja file"


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of rendered text that is tokenised on its own.

    Attributes:
        text: with one placeholder per picture.
        learned: how many characters, from the first, belong to an answer.
        pictures: the pictures whose placeholders stand in the text, in order.
    """

    text: str
    learned: int
    pictures: tuple[ImageRef, ...]


class Renderer:
    """A processor's chat template, made fit for training."""

    def __init__(self, processor: Processor) -> None:
        """Choose the template and how it wants content.

        Raises:
            ModelError: D030 when there is no template whose answers are marked, D031 when it cannot show a picture.
        """
        self._names: dict[str, Any] = dict(processor.tokenizer.special_tokens_map)
        self._image_token = processor.image_token
        self.template = _training_template(processor)
        self._flat = self._wants_text()
        self._control = _control_pattern(processor, self.template)
        self._opening = self._generation_prompt()

    def segments(self, sample: Sample, *, prompt: bool = False) -> list[Segment]:
        """A sample's segments.

        Args:
            sample: the conversation.
            prompt: end with the template's invitation to answer; the sample then ends with a user turn.

        Raises:
            DataError: D033 when the template refuses the conversation, or loses one of its pictures.
        """
        messages = [self._message(turn) for turn in sample.turns]
        try:
            text, spans = self._render(messages, prompt=prompt)
        except TemplateError as error:
            where = Where(sample.origin.file, sample.origin.line)
            raise DataError.one("D033", f"the chat template refuses this row: {error}", where=where) from error
        shown, given = text.count(self._image_token), len(sample.images)
        if shown != given:
            where = Where(sample.origin.file, sample.origin.line)
            raise DataError.one("D033", f"the chat template shows {shown} of this row's {given} pictures", where=where)
        return self._cut(text, spans, sample.images)

    def _message(self, turn: Turn) -> dict[str, Any]:
        """A turn in the template's form, with every control token in its text cut open."""
        content: list[dict[str, str]] = []
        for part in turn.parts:
            if isinstance(part, ImageRef):
                content.append({"type": "image"})
            elif content and content[-1]["type"] == "text":
                content[-1]["text"] += part
            else:
                content.append({"type": "text", "text": part})
        for piece in content:
            if piece["type"] == "text":
                piece["text"] = self._control.sub(rf"\g<0>{CUT}", piece["text"].replace(CUT, ""))
        if not self._flat:
            return {"role": turn.role, "content": content}
        return {"role": turn.role, "content": "".join(piece.get("text", self._image_token) for piece in content)}

    def _render(self, messages: Sequence[dict[str, Any]], *, prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """The rendered text and the character spans of its answers."""
        texts, spans = render_jinja_template(
            conversations=[list(messages)],
            chat_template=self.template,
            return_assistant_tokens_mask=True,
            add_generation_prompt=prompt,
            **self._names,
        )
        return texts[0], [(start, end) for start, end in spans[0] if start < end]

    def _cut(self, text: str, spans: Sequence[tuple[int, int]], images: Sequence[ImageRef]) -> list[Segment]:
        answers = [(self._answer_start(text, start), end) for start, end in spans]
        starts = {0, *(start for start, _ in answers), *(match.end() for match in re.finditer(CUT, text))}
        bounds = [*sorted(starts), len(text)]
        left = list(images)
        segments = []
        for start, end in pairwise(bounds):
            piece = text[start:end].removesuffix(CUT)
            answer_end = next((stop for first, stop in answers if first <= start < stop), start)
            learned = min(answer_end - start, len(piece))
            shown = piece.count(self._image_token)
            if piece:
                segments.append(Segment(piece, learned, tuple(left[:shown])))
            left = left[shown:]
        return segments

    def _answer_start(self, text: str, start: int) -> int:
        """Where the generation prompt ends: the marker's place, or before blank space that the prompt does not hold.

        LLaVA-1.5's prompt ends with "ASSISTANT:" but its marker opens after "ASSISTANT: "; a model that answers the
        prompt has to bring the space itself, mostly as part of its first token.
        """
        for place in range(start, max(0, start - 4), -1):
            if self._opening and text.endswith(self._opening, 0, place):
                return place
            if not text[place - 1].isspace():
                break
        return start

    def _generation_prompt(self) -> str:
        """The end of every prompt: what the template adds to invite an answer, empty where it is not a plain suffix."""
        question = self._message(Turn("user", (QUESTION,)))
        plain, _ = self._render([question])
        prompt, _ = self._render([question], prompt=True)
        return prompt[len(plain) :] if prompt.startswith(plain) else ""

    def _wants_text(self) -> bool:
        """Whether the template takes content as one string (language models) or as parts (vision-language models).

        Raises:
            ModelError: D031 when neither form shows the picture and both texts.
        """
        picture = ImageRef(data=b"")
        turns = (Turn("user", (picture, QUESTION)), Turn("assistant", (ANSWER,)))
        self._control = re.compile("(?!)")
        for flat in (False, True):
            self._flat = flat
            try:
                text, spans = self._render([self._message(turn) for turn in turns])
            except (TemplateError, TypeError, ValueError, LookupError):
                continue
            answered = any(ANSWER in text[start:end] for start, end in spans)
            if answered and text.count(self._image_token) == 1 and "'type'" not in text:
                return flat
        message = "the chat template cannot show a picture, a question and a marked answer"
        raise ModelError.one("D031", message, help=NAME_A_TEMPLATE)


def _training_template(processor: Processor) -> str:
    """The processor's template, or TRL's patched form of it, with answers between generation markers."""
    owner = processor if processor.chat_template is not None else processor.tokenizer
    template = owner.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is None:
        raise ModelError.one("D030", "the base has no chat template", help=NAME_A_TEMPLATE)
    if MARKERS.search(template):
        return str(template)
    from trl.chat_template_utils import get_training_chat_template

    try:
        patched = get_training_chat_template(owner)
    except (ValueError, TypeError, TemplateError, LookupError):
        patched = None
    if patched is None:
        message = "the chat template does not mark answers ({% generation %}), and TRL knows no form of it that does"
        raise ModelError.one("D030", message, help=NAME_A_TEMPLATE)
    return str(patched)


def _control_pattern(processor: Processor, template: str) -> re.Pattern[str]:
    """Matches the first character of a control token: special, a picture marker, or written by the template."""
    added = processor.tokenizer.added_tokens_decoder.values()
    control = {token.content for token in added if token.special or token.content in template}
    control = {token for token in {*control, processor.image_token} if len(token) > 1 and not token.isspace()}
    return re.compile(f"(?={'|'.join(re.escape(token) for token in sorted(control))}).", re.DOTALL)
