"""Whole runs in a moment: a tiny base on disk, a few coloured pictures, a recipe for them.

Usage: ``run = TinyRun.make(tmp_path); finetune(run.recipe())``
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from qlmm.recipe.load import LoadedRecipe, parse_recipe
from tests.tiny import tiny_llava, tiny_processor

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0), "pink": (255, 100, 200)}

RECIPE = """
version: 1
base: {{model: {folder}/base, quantize: none}}
adapter: {{r: 4, dropout: 0.1}}
data:
  sources: [{{path: {folder}/rows.jsonl}}]
  max_length: 200
training:
  steps: 8
  batch_size: 2
  learning_rate: 1e-3
  connector_learning_rate: 1e-3
  warmup: 0
  log_every: 1
  save_every: 2
  gradient_checkpointing: false
evaluation: {{rows: 4, every: 3, answers: 1, max_new_tokens: 4}}
output: {{dir: {folder}/run}}
"""


@dataclass(frozen=True)
class TinyRun:
    """A folder with everything a run needs."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> TinyRun:
        """Write base, pictures and rows."""
        processor = tiny_processor("vicuna")
        tiny_llava(processor).save_pretrained(folder / "base")
        processor.save_pretrained(folder / "base")
        rows = [picture_row(folder, number) for number in range(24)] + [text_row(number) for number in range(4)]
        (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return cls(folder)

    def recipe(self, *overrides: str) -> LoadedRecipe:
        """The recipe, with changes."""
        return parse_recipe(RECIPE.format(folder=self.folder), "tiny.yaml", list(overrides))


def picture_row(folder: Path, number: int, *, more: str = "") -> dict[str, object]:
    """A row about a picture of one colour, whose picture is drawn here; its answer may go on."""
    colour = list(COLOURS)[number % len(COLOURS)]
    Image.new("RGB", (40 + number, 40), COLOURS[colour]).save(folder / f"{number}.png")
    question = {"role": "user", "content": "what colour is this ?"}
    return {
        "messages": [question, {"role": "assistant", "content": f"it is {colour}{more}"}],
        "images": [f"{number}.png"],
    }


def text_row(number: int) -> dict[str, object]:
    """A row without a picture."""
    question = {"role": "user", "content": f"what is {number} and one ?"}
    return {"messages": [question, {"role": "assistant", "content": str(number + 1)}]}


def pair_row(folder: Path, number: int, *, picture: bool = True) -> dict[str, object]:
    """The right colour against a wrong one."""
    row = picture_row(folder, number)
    colours = list(COLOURS)
    right, wrong = (colours[(number + step) % len(colours)] for step in (0, 1))
    shown = {"images": row["images"]} if picture else {}
    question = ("<image>" if picture else "") + "what colour is this ?"
    return {"prompt": question, "chosen": f"it is {right}", "rejected": f"it is {wrong} indeed", **shown}
