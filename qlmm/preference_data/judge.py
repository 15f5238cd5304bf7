"""A model that judges answers: it splits them into statements, and gives each a probability of being true.

What a judge writes decides nothing. A statement is judged by how likely yes and no are as the judge's next token
(RLAIF-V, arXiv 2405.17220).

Usage: ``judge = Judge.of(loaded); split = judge.split(question, answer, pictures)``
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from peft import PeftModel
from torch import nn

from qlmm.core.errors import ModelError
from qlmm.data.encoding.encoder import IGNORED
from qlmm.data.sample import ImageRef, Origin, Sample, Turn
from qlmm.generation.answers import Prompter, answer
from qlmm.model.token_losses import needs_pictures
from qlmm.preference_data.pairing import Verdict, sentences, statements

__all__ = ["Asked", "Judge", "Split", "Words", "asks_with_pictures", "question_about"]

BATCH = 8
SPLIT = """An answer to a question follows. Write every single fact that the answer states as a short sentence of its \
own that can be understood alone. Write one sentence per line, nothing else, and add nothing that the answer does not \
say.

Question: {question}
Answer: {answer}"""
JUDGE = """Question: {question}
A statement from an answer: {statement}

Look closely. Is the statement true? Answer yes or no."""
HERE = Origin("judging", 1)


class Encoding(Prompter, Protocol):
    """What judging needs of the data layer's encoder."""

    takes_text_only: bool

    def batch(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """A right-padded batch, its labels on the answers alone."""


class Computing(Protocol):
    """What judging needs of a precision."""

    def autocast(self) -> AbstractContextManager[object]:
        """The context forward passes run in."""


class Asked(Protocol):
    """A loaded model that can be asked, with an adapter or without."""

    @property
    def model(self) -> Any:
        """The model, in evaluation mode."""

    @property
    def encoder(self) -> Any:
        """Its encoder."""

    @property
    def precision(self) -> Any:
        """Where and how it computes."""


def asks_with_pictures(loaded: Asked) -> bool:
    """Whether a model needs a picture with every question."""
    model = loaded.model
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return not loaded.encoder.takes_text_only or needs_pictures(base)


@dataclass(frozen=True, slots=True)
class Split:
    """An answer as statements.

    Attributes:
        by: the judge, or the sentences of the answer where the judge wrote nothing that comes from it.
    """

    statements: tuple[str, ...]
    by: Literal["judge", "sentences"]


@dataclass(frozen=True, slots=True)
class Words:
    """Tokens that begin a yes and tokens that begin a no."""

    yes: tuple[int, ...]
    no: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> Words:
        """Every token that is a whole yes or no, small or capital, with or without a blank before it.

        Where a word is not a single token, the first token of each spelling counts, unless both words share it.

        Raises:
            ModelError: J006 when the two words begin alike.
        """
        yes, no = (_whole(tokenizer, word) for word in ("yes", "no"))
        if not yes or not no:
            begins = [_first(tokenizer, word) for word in ("yes", "no")]
            yes, no = begins[0] - begins[1], begins[1] - begins[0]
        if not yes or not no:
            message = "the judge's tokenizer begins yes and no with the same token: neither can be read off"
            raise ModelError.one("J006", message, help="name another judge: --judge")
        return cls(tuple(sorted(yes)), tuple(sorted(no)))

    def verdict(self, logits: torch.Tensor) -> Verdict:
        """The probabilities of yes and of no, from the logits (vocabulary) of a next token."""
        chances = logits.float().softmax(-1)
        return float(chances[list(self.yes)].sum()), float(chances[list(self.no)].sum())


def _whole(tokenizer: Any, word: str) -> set[int]:
    """Tokens that read as the word and nothing else, blanks aside."""
    wanted = {word, word.capitalize()}
    ends = tuple(wanted)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    near = (number for token, number in vocabulary.items() if token.endswith(ends))
    return {number for number in near if tokenizer.decode([number]).strip() in wanted}


def _first(tokenizer: Any, word: str) -> set[int]:
    spellings = [blank + spelt for blank in ("", " ") for spelt in (word, word.capitalize())]
    return {tokenizer(spelling, add_special_tokens=False)["input_ids"][0] for spelling in spellings}


def question_about(statement: str, question: str) -> str:
    """What the judge is asked about a statement; a short answer means something only beside its question."""
    return JUDGE.format(question=question, statement=statement)


@dataclass(frozen=True, slots=True)
class Judge:
    """A loaded model that judges.

    Attributes:
        words: its tokens for yes and no.
        needs_pictures: whether it needs a picture with every question.
    """

    model: nn.Module
    encoder: Encoding
    precision: Computing
    words: Words
    needs_pictures: bool

    @classmethod
    def of(cls, loaded: Asked) -> Judge:
        """Make a judge of a loaded model.

        Raises:
            ModelError: J006 when its tokenizer cannot tell yes from no.
        """
        words = Words.of(loaded.encoder.processor.tokenizer)
        return cls(loaded.model, loaded.encoder, loaded.precision, words, asks_with_pictures(loaded))

    def split(self, question: str, reply: str, pictures: Sequence[ImageRef], *, longest: int) -> Split:
        """Split an answer; its own sentences serve where the judge writes nothing that comes from it.

        Args:
            question: what was asked.
            reply: the answer.
            pictures: shown only to a judge that needs them.
            longest: most tokens the judge writes.
        """
        own = sentences(reply)
        if not own:
            return Split((), "sentences")
        asked = _asked(SPLIT.format(question=question, answer=reply), pictures if self.needs_pictures else ())
        with self.precision.autocast():
            written = answer(self.model, self.encoder, asked, longest)
        found = statements(written, reply)
        return Split(tuple(found), "judge") if found else Split(tuple(own), "sentences")

    def verdicts(self, questions: Sequence[str], pictures: Sequence[ImageRef]) -> list[Verdict]:
        """How likely the judge's next token is a yes, and a no, for each question about the pictures."""
        found: list[Verdict] = []
        for start in range(0, len(questions), BATCH):
            # Any answer: the tokens before it are what the judge is asked.
            rows = [_asked(text, pictures, "yes") for text in questions[start : start + BATCH]]
            found += [self.words.verdict(logits) for logits in self._next(rows)]
        return found

    @torch.no_grad()
    def _next(self, rows: Sequence[Sample]) -> torch.Tensor:
        """Logits (rows, vocabulary) of the token that begins each row's answer."""
        device = next(self.model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in self.encoder.batch(rows).items()}
        labels = inputs.pop("labels")
        with self.precision.autocast():
            return _before_answers(self.model, inputs, labels)


def _asked(text: str, pictures: Sequence[ImageRef], reply: str | None = None) -> Sample:
    asked = Turn("user", (*pictures, text))
    return Sample((asked,) if reply is None else (asked, Turn("assistant", (reply,))), HERE)


def _before_answers(model: nn.Module, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Logits where each row's answer begins; a decoder of its own begins with its first position."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    rows = torch.arange(len(labels), device=labels.device)
    if base.config.is_encoder_decoder:
        logits: torch.Tensor = model(**inputs, labels=labels).logits
        return logits[:, 0]
    before = labels.ne(IGNORED).int().argmax(dim=1) - 1
    # Some models compute logits at chosen places only, which the signature tells.
    if "logits_to_keep" not in inspect.signature(type(base).forward).parameters:
        logits = model(**inputs).logits
        return logits[rows, before]
    # A language model's head over a long prompt would take gigabytes.
    keep, place = torch.unique(before, return_inverse=True)
    logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits
    return logits[rows, place]
