"""Which weights bitsandbytes had in a run, found again from the recipe and the base's configuration."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes
import pytest

from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.merge.base_storage import held_by
from qlmm.model.loading.base import Base
from qlmm.model.numerics.precision import Precision
from tests.runs import TinyRun
from tests.unit.artifacts.adapters import manifest


def of(run: TinyRun, *overrides: str) -> Manifest:
    return manifest(recipe=run.recipe(*overrides).recipe)


def test_they_are_those_that_the_loader_quantises(tmp_path: Path) -> None:
    made = of(TinyRun.make(tmp_path), "base.quantize=nf4")
    base = Base.resolve(made.recipe.base)
    model = base.load(Precision("cpu", "fp32"), seed=0)
    real = {name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    assert held_by(made, base).quantised == {f"{name}.weight" for name in real}
    assert real


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_without_quantisation_only_the_precision_is_left(precision: str, tmp_path: Path) -> None:
    made = of(TinyRun.make(tmp_path)).model_copy(update={"precision": precision})
    held = held_by(made, Base.resolve(made.recipe.base))
    assert (held.kind, held.quantised) == ("none", frozenset())
    assert str(held.dtype).endswith({"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[precision])
