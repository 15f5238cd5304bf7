"""Questions about pictures with short answers: VQA, TextVQA, DocVQA, ScienceQA, A-OKVQA and data sets like them.

Facts: the columns of these data sets on the Hub. Of several people's answers the most frequent is learned, the first of
equals. A question with choices lists them by letter, and the letter is learned, as LLaVA 1.5 asks (arXiv 2310.03744,
its prompts for evaluation).

Usage: ``FORMAT.read(row, ImageRoot("images"))``
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from qlmm.data.contract import MARK, Format, Media, RawRow, present, unpacked
from qlmm.data.errors import BadRow
from qlmm.data.formats import messages
from qlmm.data.sample import Turn

__all__ = ["FORMAT"]

CHOICES = ("choices", "options")
ANSWER = ("answer", "multiple_choice_answer", "correct_choice_idx", "answers", "direct_answers")
LETTER = "Answer with the option's letter from the given choices directly."


def _parse(row: RawRow, images: Media) -> list[Turn]:
    question, context = row["question"], row["hint"] if present(row, "hint") else ""
    if not isinstance(question, str) or not isinstance(context, str):
        raise BadRow("`question` and `hint` must be text")
    answer = next(row[key] for key in ANSWER if present(row, key))
    choices = next((unpacked(row[key]) for key in CHOICES if present(row, key)), ())
    if not isinstance(choices, (list, tuple)) or not all(isinstance(choice, str) for choice in choices):
        raise BadRow("the choices are not a list of texts")
    lines = [context, question]
    if choices:
        answer = _letter(answer, choices)
        lines += [*(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)), LETTER]
    asked = "\n".join(line for line in lines if line.strip())
    entries = [{"role": "user", "content": asked}, {"role": "assistant", "content": _agreed(answer)}]
    return messages.read_messages(entries, row, images)


def _agreed(answer: object) -> str:
    """The answer, of several the most frequent; numbers and yes or no as text."""
    value = unpacked(answer)
    given = [_text(one) for one in (value if isinstance(value, (list, tuple)) else [answer])]
    counted = Counter(text for text in given if text.strip())
    if not counted:
        raise BadRow("empty answer")
    return counted.most_common(1)[0][0]


def _text(answer: object) -> str:
    value = answer.get("answer") if isinstance(answer, Mapping) else answer
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadRow(f"the answer is {type(value).__name__}, not text")
    return str(value)


def _letter(answer: object, choices: Sequence[str]) -> str:
    """The letter of the right choice, which may be given by number from 0, by letter, or as it stands."""
    if len(choices) > len(ascii_uppercase):
        raise BadRow(f"{len(choices)} choices are more than there are letters")
    letters = ascii_uppercase[: len(choices)]
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return letters[answer]
    if isinstance(answer, str) and answer in choices:
        return letters[choices.index(answer)]
    if isinstance(answer, str) and (answer == MARK or (len(answer) == 1 and answer in letters)):
        return answer
    raise BadRow(f"the answer {answer!r:.40} is none of the {len(choices)} choices")


def _answered(row: RawRow) -> RawRow:
    return row if any(present(row, key) for key in ANSWER) or not present(row, "question") else {**row, "answer": MARK}


FORMAT = Format(
    doc="VQA, TextVQA, DocVQA, ScienceQA and their like: question, image, and answer (or multiple_choice_answer) or "
    "answers: a list, of which the most frequent is learned; with choices, the answer's letter, place from 0 or text; "
    "hint stands before the question.",
    example={"image": "cat.jpg", "question": "What is this?", "answers": ["cat", "a cat", "cat"]},
    required=("question", "|".join(ANSWER)),
    detect=lambda row: present(row, "question") and any(present(row, key) for key in ANSWER),
    parse=_parse,
    media=messages.FORMAT.media,
    answered=_answered,
)
