"""Numbers that are not finite are found in every file that keeps some, and by everything that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qlmm.core.errors import ModelError, RunError
from qlmm.evaluation.measures import Measures
from qlmm.generation.answers import answer
from qlmm.model.numerics.finite import is_finite, not_finite
from qlmm.model.peft.warm_start import Earlier
from qlmm.proof.records import PictureProof

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "finite"),
    [
        (torch.ones(2), True),
        (torch.tensor([1.0, NAN]), False),
        (torch.tensor([-INF], dtype=torch.bfloat16), False),
        (torch.tensor([255], dtype=torch.uint8), True),
        (torch.empty(0), True),
        (1, True),
        (NAN, False),
        ("nan", True),
        (None, True),
    ],
)
def test_what_is_finite(value: object, finite: bool) -> None:
    assert is_finite(value) is finite


def test_every_number_of_an_optimizer_is_looked_at(tmp_path: Path) -> None:
    moments = {"exp_avg": torch.zeros(3), "exp_avg_sq": torch.tensor([1.0, INF])}
    torch.save({"state": {0: moments}, "param_groups": [{"lr": NAN, "betas": (0.9, 0.999)}]}, tmp_path / "optimizer.pt")
    assert not_finite(tmp_path) == [
        "optimizer.pt: state.0.exp_avg_sq is not finite",
        "optimizer.pt: param_groups.0.lr is not finite",
    ]


def test_a_poisoned_adapter_is_no_start(tmp_path: Path) -> None:
    save_file({"base_model.model.lora_A.weight": torch.tensor([NAN])}, tmp_path / "adapter_model.safetensors")
    parts: Any = None
    with pytest.raises(ModelError, match=r"(?s)M050.*lora_A.weight is not finite"):
        Earlier.read(tmp_path, parts)


def test_held_out_figures_that_are_not_finite_are_never_passed_on() -> None:
    class Found:
        def measure(self, model: object) -> PictureProof | None:
            return PictureProof(4, 1.0, NAN, 2.0) if model == "broken" else None

    measures, told = object.__new__(Measures), list[object]()
    vars(measures).update(_rows=Found(), _pairs=Found())
    model: Any = "broken"
    with pytest.raises(RunError, match="held-out losses at step 3: shuffled is nan"):
        measures(model, step=3, listener=told.append)
    assert told == []


def test_logits_that_are_not_finite_give_no_answer() -> None:
    from qlmm.data.sample import Origin, Sample, Turn
    from tests.tiny import tiny_llava, tiny_processor

    processor = tiny_processor()
    model = tiny_llava(processor)

    class Encoder:
        def __init__(self) -> None:
            self.processor = processor

        def prompt(self, sample: Sample) -> dict[str, torch.Tensor]:
            ids = torch.tensor([[1, 65, 66]])
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    asked = Sample((Turn("user", ("hello",)),), Origin("rows.jsonl", 1))
    assert isinstance(answer(model, Encoder(), asked, 2), str)
    with torch.no_grad():
        model.lm_head.weight[7] = NAN
    with pytest.raises(RunError, match="G005"):
        answer(model, Encoder(), asked, 2)
