"""Assembled bases of every connector, and how they are trained: for tests of what is made of their adapters.

Usage: ``finetune(assembled(folder, CASES["abstractor"], "training.steps=2"))``
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qlmm.recipe.load import LoadedRecipe, parse_recipe
from tests.assembling import image_processor, llama, tower
from tests.runs import RECIPE, TinyRun
from tests.tiny import tiny_tokenizer

__all__ = ["CASES", "Case", "assembled"]

SMALL = "queries: 5, layers: 2, heads: 4, inner: 48"


@dataclass(frozen=True)
class Case:
    """An assembled base and how it is trained."""

    connector: str
    overrides: tuple[str, ...] = ()
    tied: bool = False


CASES = {
    "linear": Case("linear"),
    "linear-lora": Case("linear", ("adapter.connector=lora",)),
    "mlp": Case("mlp", tied=True),
    "mlp-frozen": Case("mlp", ("adapter.connector=frozen",)),
    "abstractor": Case(f"abstractor, {SMALL}"),
}


def assembled(folder: Path, case: Case, *overrides: str) -> LoadedRecipe:
    """A recipe for an assembled base whose language model lacks a row for the picture's token."""
    TinyRun.make(folder)
    tower("clip").save_pretrained(folder / "vision")
    image_processor("clip").save_pretrained(folder / "vision")
    words = tiny_tokenizer()
    short = {"initializer_range": 0.05, "tie_word_embeddings": case.tied}
    llama(len(words) - 2, **short).save_pretrained(folder / "language")
    words.save_pretrained(folder / "language")
    base = (
        f"vision: {folder}/vision, language: {folder}/language, connector: {{kind: {case.connector}}}, "
        "quantize: none, chat_template: chatml"
    )
    text = RECIPE.format(folder=folder).replace(f"model: {folder}/base, quantize: none", base)
    return parse_recipe(text, "assembled.yaml", [*case.overrides, *overrides])
