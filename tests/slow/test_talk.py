"""`qlmm ask` and `qlmm chat` on a trained adapter: what they print is what plain PEFT and transformers generate."""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from qlmm.api import finetune
from qlmm.cli.app import main
from tests.runs import TinyRun

LONGEST = 24
QUESTION = "what colour is this ?"
LEARNS = (
    "training.steps=60", "training.batch_size=4", "training.learning_rate=1e-2", "adapter.dropout=0.0",
    "training.connector_learning_rate=1e-2", "training.save_every=1000", "evaluation.every=1000", "adapter.r=16",
)  # fmt: skip


class Trained:
    """An adapter that qlmm trained, and the same adapter on plain PEFT with prompts spelt out by hand."""

    def __init__(self, folder: Path) -> None:
        outcome = finetune(TinyRun.make(folder).recipe(*LEARNS))
        assert outcome.adapter is not None
        self.folder, self.adapter = folder, outcome.adapter
        self.processor = LlavaProcessor.from_pretrained(folder / "base")
        base = LlavaForConditionalGeneration.from_pretrained(folder / "base", dtype=torch.float32)
        self.model: Any = PeftModel.from_pretrained(base, str(self.adapter)).eval()

    def picture(self, number: int) -> str:
        """Path of a picture."""
        return str(self.folder / f"{number}.png")

    @torch.no_grad()
    def says(self, prompt: str, *pictures: int) -> str:
        """The likeliest answer to a prompt as the vicuna template has it."""
        shown = [Image.open(self.picture(number)) for number in pictures] or None
        batch = self.processor(text=prompt, images=shown, return_tensors="pt", add_special_tokens=False)
        ids = self.model.generate(**batch, max_new_tokens=LONGEST, do_sample=False)[0, batch["input_ids"].shape[1] :]
        return str(self.processor.tokenizer.decode(ids, skip_special_tokens=True)).strip()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("talk"))


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command as typed, with lines on its standard input; returns the lines it printed."""

    def run(*words: str, lines: tuple[str, ...] = ()) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["qlmm", *words, "--max-new-tokens", str(LONGEST)])
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == 0, said.err
        return [line.strip() for line in said.out.splitlines()]

    return run


@pytest.mark.slow
def test_ask_prints_what_the_adapter_answers_about_a_picture(trained: Trained, typed: Any) -> None:
    answers = [typed("ask", str(trained.adapter), "--image", trained.picture(number), QUESTION) for number in range(5)]
    assert answers == [[trained.says(f"<s>USER: <image>\n{QUESTION} ASSISTANT:", number)] for number in range(5)]
    # The adapter has learned something, so that equal answers are not merely empty ones, and it looks at the picture.
    assert all(answer.startswith("it is ") for (answer,) in answers)
    assert len({answer for (answer,) in answers}) > 1


def showing(count: int) -> str:
    """A question about several pictures."""
    return "<s>USER: " + "\n".join(["<image>"] * count + [QUESTION]) + " ASSISTANT:"


@pytest.mark.slow
def test_ask_shows_any_number_of_pictures_in_the_order_given(trained: Trained, typed: Any) -> None:
    orders = list(itertools.permutations(range(5), 3))
    # An answer that depends on the order, so that another order would be noticed.
    telling = next(one for one in orders if trained.says(showing(3), *one) != trained.says(showing(3), *one[::-1]))
    for pictures in ((), (0, 4), telling, telling[::-1]):
        options = [word for number in pictures for word in ("--image", trained.picture(number))]
        expected = trained.says(showing(len(pictures)), *pictures)
        assert typed("ask", str(trained.adapter), *options, QUESTION) == [expected]


@pytest.mark.slow
def test_chat_answers_in_the_light_of_all_turns_and_pictures(trained: Trained, typed: Any) -> None:
    lines = (QUESTION, f"/image {trained.picture(4)}", f"/image {trained.picture(2)}", "and this ?", "and one more ?",
             "/reset", QUESTION, "/quit", "never read")  # fmt: skip
    first = f"<s>USER: <image>\n{QUESTION} ASSISTANT:"
    one = trained.says(first, 1)
    second = f"{first} {one}</s>USER: <image>\n<image>\nand this ? ASSISTANT:"
    two = trained.says(second, 1, 4, 2)
    three = trained.says(f"{second} {two}</s>USER: and one more ? ASSISTANT:", 1, 4, 2)
    alone = trained.says(f"<s>USER: {QUESTION} ASSISTANT:")
    assert typed("chat", str(trained.adapter), "--image", trained.picture(1), lines=lines) == [one, two, three, alone]


@pytest.mark.slow
def test_a_seed_decides_what_is_drawn(trained: Trained, typed: Any) -> None:
    drawn = [typed("ask", str(trained.adapter), "--sample", "--seed", seed, "and ?") for seed in ("1", "1", "2")]
    assert drawn[0] == drawn[1] != drawn[2]
