"""Conversation -> text segments, through the chat template; who speaks decides what is learned, never a search.

transformers can either encode control tokens in user text as plain text, or return the mask of the template's
generation markers, not both (5.23 refuses the combination). Segments give both. The rendered conversation is cut

- where an answer begins, so that training sees exactly the tokens a prompt gives, followed by the answer's own;
- inside every control token or picture marker that stands in a row's own text, so that it can only be read as text.

The template's generation markers (its own, or those of TRL's training form of it) tell where answers stand.
A template without any is rendered a second time with holes in place of the answers. What stands around the holes must
stand around the answers too, or the row is refused.

Usage: ``segments = Renderer(processor).segments(sample)``
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NotRequired, TypedDict

from jinja2 import TemplateError

from qlmm.compat.transformers_private import render_jinja_template
from qlmm.core.errors import DataError, ModelError, Where
from qlmm.data.contract import Processor
from qlmm.data.encoding.guarded_template import guarded_template
from qlmm.data.encoding.marked_tokenizer import CUT, HOLE, MARKS, Segment
from qlmm.data.sample import ImageRef, Role, Sample, Turn

__all__ = ["Renderer"]

MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")
QUESTION, ANSWER = "a question", "an answer"
LONGEST_TEXT = 1 << 24  # characters, of which a tokenizer makes millions of tokens
NAME_A_TEMPLATE = (
    "name a template in the recipe: base.chat_template: chatml, vicuna, owl, plain, blip2, paligemma, or a .jinja file"
)


class _Piece(TypedDict):
    """A text, or the place of a picture, as chat templates take them."""

    type: str
    text: NotRequired[str]


class _Message(TypedDict):
    """A turn as chat templates take it."""

    role: Role
    content: str | list[_Piece]


class Renderer:
    """A processor's chat template, made fit for training."""

    def __init__(self, processor: Processor, *, thinks: bool = False) -> None:
        """Choose the template and its form of content; D030 without one, D031 where it cannot show an answer."""
        self.thinks = thinks
        added = processor.tokenizer.added_tokens_decoder.values()
        self._ends = sorted({token.content for token in added if token.special}, key=len, reverse=True)
        self._end = str(processor.tokenizer.eos_token)
        self._names: dict[str, str] = dict(processor.tokenizer.special_tokens_map)
        self.template = _training_template(processor)
        # Only such templates ask in two ways.
        self.may_think = "enable_thinking" in self.template
        self._marked = bool(MARKERS.search(self.template))
        self._control = re.compile("(?!)")
        self._flat, self.placeholder = self._form(processor)
        self._control = _control_pattern(processor, self.template, self.placeholder)
        self._opening = self._generation_prompt()

    def segments(self, sample: Sample, *, prompt: bool = False) -> list[Segment]:
        """A sample's segments; the last answer ends with an end token, the template's or else the tokenizer's.

        With ``prompt`` the sample ends with a user turn, and the segments with the template's invitation to answer.

        Raises:
            DataError: D033 when the template refuses the conversation, loses a picture, or changes an answer.
        """
        where = Where(sample.origin.file, sample.origin.line)
        try:
            text, spans = self._render([self._message(turn) for turn in sample.turns], prompt=prompt)
        except TemplateError as error:
            raise DataError.one("D033", f"the chat template refuses this row: {error}", where=where) from error
        except _Changed as error:
            message = f"the chat template changes answer {error.args[0]}, so that it cannot be learned as it is"
            raise DataError.one("D033", message, where=where, help=NAME_A_TEMPLATE) from error
        given = len(sample.images)
        # A template that writes no placeholder leaves it to the processor, which then shows one picture, first.
        shown = text.count(self.placeholder) if self.placeholder else min(given, 1)
        if shown != given:
            raise DataError.one("D033", f"the chat template shows {shown} of this row's {given} pictures", where=where)
        learned = [turn.learned for turn in sample.turns if turn.role == "assistant"]
        if not all(learned) and len(spans) != len(learned):
            message = f"the chat template shows {len(spans)} of {len(learned)} answers, of which some are not learned"
            raise DataError.one("D033", message, where=where, help=NAME_A_TEMPLATE)
        return list(self._cut(text, spans, [number for number, one in enumerate(learned) if not one]))

    def answer(self, sample: Sample) -> list[Segment]:
        """The last answer and an end token alone: what a decoder learns whose encoder reads the rest."""
        text = self._guarded(sample.turns[-1].text)
        return [Segment(piece, len(piece)) for piece in (*text.split(CUT), self._end) if piece]

    def probe(self, *, pictures: int, prompt: bool = False) -> list[Segment]:
        """A question with so many pictures, and its answer or, for a prompt, the invitation to one."""
        return list(self._cut(*self._plainly(pictures, prompt=prompt)))

    def _message(self, turn: Turn) -> _Message:
        """A turn in the template's form, with every control token in its text cut open."""
        content: list[_Piece] = []
        for part in turn.parts:
            if isinstance(part, ImageRef):
                content.append({"type": "image"})
            elif content and content[-1]["type"] == "text":
                content[-1]["text"] += part
            else:
                content.append({"type": "text", "text": part})
        for piece in content:
            if piece["type"] == "text":
                piece["text"] = self._guarded(piece["text"])
        if not self._flat:
            return {"role": turn.role, "content": content}
        return {"role": turn.role, "content": "".join(piece.get("text", self.placeholder) for piece in content)}

    def _guarded(self, text: str) -> str:
        """A row's own text without marks, cut inside everything that reads like a control token."""
        return self._control.sub(rf"\g<0>{CUT}", re.sub(f"[{MARKS}]", "", text))

    def _render(self, messages: Sequence[_Message], *, prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        """The rendered text and the character spans of its answers, in order; but for a prompt, with end tokens."""
        text, spans = self._written(messages, prompt=prompt)
        if not self._marked:
            spans = list(self._around_holes(text, messages, prompt=prompt))
        return (text, spans) if prompt else self._ended(text, spans)

    def _around_holes(self, text: str, messages: Sequence[_Message], *, prompt: bool) -> Iterator[tuple[int, int]]:
        """Where answers stand in a text whose template marks none."""
        hollow: list[_Message] = []
        for place, message in enumerate(messages):
            hole = f"{HOLE}{place}{HOLE}"
            content: str | list[_Piece] = hole if self._flat else [{"type": "text", "text": hole}]
            hollow.append({"role": "assistant", "content": content} if message["role"] == "assistant" else message)
        around = re.split(f"{HOLE}\\d+{HOLE}", self._written(hollow, prompt=prompt)[0])
        answers = [_text(message["content"]) for message in messages if message["role"] == "assistant"]
        return _between(text, around, answers)

    def _written(self, messages: Sequence[_Message], *, prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        """The template's text, and the spans of its generation markers."""
        with guarded_template():
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self.template,
                return_assistant_tokens_mask=self._marked,
                add_generation_prompt=prompt,
                # Templates of models that think open a thought in the prompt, or an empty one where none is wanted.
                enable_thinking=self.thinks,
                **self._names,
            )
        if len(texts[0]) > LONGEST_TEXT:
            raise TemplateError(f"it makes {len(texts[0]):,} characters of it")
        return texts[0], [(start, end) for start, end in spans[0] if start < end] if self._marked else []

    def _ended(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[str, list[tuple[int, int]]]:
        """Text and answers, each with its end token; a model that never saw an answer end does not stop."""
        if not spans:
            return text, []
        end = self._closing(text[spans[-1][0] : spans[-1][1]], text[spans[-1][1] :])
        if end is None:
            start, stop = spans[-1]
            return text[:stop] + self._end + text[stop:], [*spans[:-1], (start, stop + len(self._end))]
        return text, [
            (start, stop + len(end)) if text.startswith(end, stop) else (start, stop) for start, stop in spans
        ]

    def _closing(self, answer: str, after: str) -> str | None:
        """What of the text after the last answer belongs to it, up to its end token; None without an end token."""
        if any(answer.rstrip().endswith(token) for token in self._ends):
            return ""
        for token in self._ends:
            if after.lstrip().startswith(token):
                return after[: after.index(token) + len(token)]
        return None

    def _cut(self, text: str, spans: Sequence[tuple[int, int]], excepted: Sequence[int] = ()) -> Iterator[Segment]:
        """The segments of a text; answers of the ``excepted`` numbers begin one, and are not learned."""
        answers = [
            (first := self._answer_start(text, start), first if number in excepted else end)
            for number, (start, end) in enumerate(spans)
        ]
        starts = {0, *(start for start, _ in answers), *(match.end() for match in re.finditer(CUT, text))}
        for start, end in pairwise([*sorted(starts), len(text)]):
            piece = text[start:end].removesuffix(CUT)
            answer_end = next((stop for first, stop in answers if first <= start < stop), start)
            if piece:
                yield Segment(piece, min(answer_end - start, len(piece)))

    def _answer_start(self, text: str, start: int) -> int:
        """Where the generation prompt ends: the marker's place, or before blank space that is not in the prompt.

        LLaVA-1.5's prompt ends with "ASSISTANT:" but its marker opens after "ASSISTANT: ". A model that answers the
        prompt has to write the space itself, mostly as part of its first token. Qwen 3.5's prompt ends with an empty
        block of thought that its marker counts to the answer; what the prompt gives is not learned.
        """
        for cut in range(len(self._opening) - 1, 0, -1):
            given = self._opening[cut:]
            if text.startswith(given, start) and text.endswith(self._opening[:cut], 0, start):
                return start + len(given)
        for place in range(start, max(0, start - 4), -1):
            if self._opening and text.endswith(self._opening, 0, place):
                return place
            if not text[place - 1].isspace():
                break
        return start

    def _generation_prompt(self) -> str:
        """What the template adds to invite an answer; empty where it is not a plain suffix."""
        question = self._message(Turn("user", (QUESTION,)))
        plain, _ = self._render([question])
        prompt, _ = self._render([question], prompt=True)
        return prompt[len(plain) :] if prompt.startswith(plain) else ""

    def _form(self, processor: Processor) -> tuple[bool, str]:
        """Whether the template takes content as one string, and the placeholder it writes for a picture."""
        why = ""
        for flat in (False, True):
            self._flat, self.placeholder = flat, _image_token(processor)
            try:
                with_picture, without = (self._plainly(pictures) for pictures in (1, 0))
            except (TemplateError, _Changed) as error:
                why = f": {error}" if isinstance(error, TemplateError) else ""
                continue
            why = ""
            if all(_shows(*written) for written in (with_picture, without)):
                return flat, _placeholder(processor, with_picture[0], without[0])
        message = f"the chat template cannot show a picture, a question and a marked answer{why}"
        raise ModelError.one("D031", message, help=NAME_A_TEMPLATE)

    def _plainly(self, pictures: int, *, prompt: bool = False) -> tuple[str, list[tuple[int, int]]]:
        question = Turn("user", (*(ImageRef(data=b""),) * pictures, QUESTION))
        turns = (question,) if prompt else (question, Turn("assistant", (ANSWER,)))
        return self._render([self._message(turn) for turn in turns], prompt=prompt)


def _shows(text: str, spans: Sequence[tuple[int, int]]) -> bool:
    return any(ANSWER in text[start:end] for start, end in spans) and "'type'" not in text


def _image_token(processor: Processor) -> str:
    """The processor's placeholder; the oldest processors have none."""
    try:
        return str(processor.image_token)
    except AttributeError:
        return ""


class _Changed(Exception):
    """The template rewrites an answer; its number is the argument."""


def _text(content: str | list[_Piece]) -> str:
    return content if isinstance(content, str) else "".join(piece["text"] for piece in content)


def _between(text: str, around: Sequence[str], answers: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where answers stand in a text, by what stands around them; a template may trim them, else `_Changed`."""
    place = len(around[0])
    if len(around) != len(answers) + 1 or not text.startswith(around[0]):
        raise _Changed(1)
    for number, (answer, after) in enumerate(zip(answers, around[1:], strict=True), 1):
        last = number == len(answers)
        for form in (answer, answer.strip(), answer.lstrip(), answer.rstrip()):
            end = place + len(form)
            if text.startswith(form + after, place) and (not last or len(text) == end + len(after)):
                break
        else:
            raise _Changed(number)
        yield place, end
        place = end + len(after)


def _placeholder(processor: Processor, shown: str, without: str) -> str:
    """The token that a picture adds to the text; empty when the template leaves it to the processor.

    Mostly the processor's own image token; Gemma 3 writes another one, which its processor expands.
    """
    once = [token.content for token in processor.tokenizer.added_tokens_decoder.values()]
    once = [token for token in once if shown.count(token) == 1 and token not in without]
    own = [_image_token(processor), *(str(value) for value in vars(processor).values() if isinstance(value, str))]
    return next((token for token in own if token in once), once[0] if once else "")


def _training_template(processor: Processor) -> str:
    """The processor's template, or TRL's form of it for training, with answers between generation markers."""
    owner = processor if processor.chat_template is not None else processor.tokenizer
    template = owner.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template is None:
        raise ModelError.one("D030", "the base has no chat template", help=NAME_A_TEMPLATE)
    if MARKERS.search(template):
        return str(template)
    from trl import get_training_chat_template

    try:
        with guarded_template():
            patched = get_training_chat_template(owner)
    except TemplateError:
        patched = None
    return str(patched or template)


def _control_pattern(processor: Processor, template: str, placeholder: str) -> re.Pattern[str]:
    """Matches the first character of a control token: special, a picture marker, or in the template."""
    added = processor.tokenizer.added_tokens_decoder.values()
    control = {token.content for token in added if token.special or token.content in template}
    control |= {_image_token(processor), placeholder}
    escaped = [re.escape(token) for token in sorted(control) if len(token) > 1 and not token.isspace()]
    return re.compile(f"(?={'|'.join(escaped)}).", re.DOTALL)
