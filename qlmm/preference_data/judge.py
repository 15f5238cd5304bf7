"""A model that judges answers: it splits them into statements, and gives each a probability of being true.

How likely yes and no are as the judge's next token decides, not what it writes (RLAIF-V, arXiv 2405.17220).

Usage: ``judge = Judge.of(loaded); split = judge.split(question, answer, pictures)``
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import nn

from qlmm.artifacts.adapter.load import LoadedAdapter, LoadedBase
from qlmm.core.errors import ModelError
from qlmm.data.encoding.encoder import IGNORED
from qlmm.data.sample import ImageRef, Origin, Sample, Turn
from qlmm.generation.answers import answer
from qlmm.model.token_losses import needs_pictures
from qlmm.preference_data.pairing import Verdict, sentences, statements

__all__ = ["JUDGE", "Judge", "Loaded", "Split", "Words", "asks_with_pictures"]

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


Loaded = LoadedAdapter | LoadedBase


def asks_with_pictures(loaded: Loaded) -> bool:
    """Whether a model needs a picture with every question."""
    model = loaded.model
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return not loaded.encoder.takes_text_only or needs_pictures(base)


@dataclass(frozen=True, slots=True)
class Split:
    """An answer as the judge's statements, or as its own sentences where the judge wrote nothing that comes from it."""

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

        Where a word is not a single token, the first token of each spelling counts, unless both words share it; J006
        when they begin alike.
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


@dataclass(frozen=True, slots=True)
class Judge:
    """A loaded model that judges, with its tokens for yes and no."""

    loaded: Loaded
    words: Words
    needs_pictures: bool

    @classmethod
    def of(cls, loaded: Loaded) -> Judge:
        """Make a judge of a loaded model; ModelError J006 when its tokenizer cannot tell yes from no."""
        return cls(loaded, Words.of(loaded.encoder.processor.tokenizer), asks_with_pictures(loaded))

    def split(self, question: str, reply: str, pictures: Sequence[ImageRef], *, longest: int) -> Split:
        """Split an answer; the judge writes at most ``longest`` tokens, and sees the pictures only where it must."""
        own = sentences(reply)
        if not own:
            return Split((), "sentences")
        asked = _asked(SPLIT.format(question=question, answer=reply), pictures if self.needs_pictures else ())
        with self.loaded.precision.autocast():
            written = answer(self.loaded.model, self.loaded.encoder, asked, longest)
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
        device = next(self.loaded.model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in self.loaded.encoder.batch(rows).items()}
        labels = inputs.pop("labels")
        with self.loaded.precision.autocast():
            return _before_answers(self.loaded.model, inputs, labels)


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
    # Some models can compute logits at chosen places only.
    if "logits_to_keep" not in inspect.signature(type(base).forward).parameters:
        logits = model(**inputs).logits
        return logits[rows, before]
    # A language model's head over a long prompt would take gigabytes.
    keep, place = torch.unique(before, return_inverse=True)
    logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits
    return logits[rows, place]
