"""The code that a card shows is run as it stands: with plain PEFT, a native adapter gives what qlmm gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from qlmm.api import finetune, load
from qlmm.artifacts.adapter.manifest import read_manifest
from qlmm.artifacts.cards.adapter_card import picture_name
from qlmm.proof.probe import probe_rows
from tests.runs import TinyRun


def blocks(card: str, language: str) -> list[str]:
    """The card's blocks of code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


def test_the_card_of_a_run_can_be_followed(tmp_path: Path) -> None:
    run = TinyRun.make(tmp_path)
    outcome = finetune(run.recipe("training.steps=4", "evaluation.answers=2"))
    assert outcome.adapter is not None
    card = (outcome.adapter / "README.md").read_text("utf-8")
    for number in (1, 2):
        assert f"]({picture_name(number)})" in card
        assert (outcome.adapter / picture_name(number)).is_file()
        assert picture_name(number) in read_manifest(outcome.adapter).files
    assert "what colour is this" in card
    peft, ours = blocks(card, "python")
    made: dict[str, Any] = {}
    # A base in a folder is named without its place: whoever follows the card puts in where it lies.
    placed = peft.replace('"base"', repr(str(run.folder / "base")))
    exec(compile(placed.replace('"PATH"', repr(str(outcome.adapter))), "card", "exec"), made)
    exec(compile(ours.replace('"PATH"', repr(str(outcome.adapter))), "card", "exec"), made)
    loaded = load(outcome.adapter)
    batch = loaded.encoder.batch(list(loaded.encoder.fit(probe_rows(outcome.adapter)).samples))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        expected = loaded.model(**inputs).logits
        for model in (made["model"].eval(), made["loaded"].model):
            assert torch.equal(model(**inputs).logits, expected)
    assert type(made["processor"]) is type(loaded.processor)
