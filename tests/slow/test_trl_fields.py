"""Every field of TRL's settings works in `training.extra`, or is refused by the plan with the reason."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, get_type_hints
from unittest.mock import patch

import pytest
import torch
import transformers

from qlmm.core.errors import UsageError
from qlmm.model.numerics.precision import Precision
from qlmm.recipe.schema import OutputSection, TrainingSection
from qlmm.training.objective import objective, objectives
from qlmm.training.plan import make_plan
from qlmm.training.run import build
from qlmm.training.trl_settings import trainer_config
from tests.runs import TinyRun, pair_row

# A value of each field that is passed on, which is not its default, and what else it needs.
VALUES: dict[str, Any] = {
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.98,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 0.3,
    "lr_scheduler_kwargs": {"num_cycles": 0.4},
    "label_smoothing_factor": 0.1,
    "neftune_noise_alpha": 5.0,
    "torch_empty_cache_steps": 1,
    "full_determinism": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "loss_type": "dft",
    "dataloader_prefetch_factor": 3,
    "dataloader_persistent_workers": True,
    "dataloader_multiprocessing_context": "fork",
    "run_name": "x",
    "project": "x",
    "log_level": "error",
    "skip_memory_metrics": False,
    "beta": 0.2,
    "label_smoothing": 0.1,
    "ld_alpha": 0.5,
    "f_divergence_type": "js_divergence",
    "f_alpha_divergence_coef": 0.7,
    "use_weighting": True,
    "discopop_tau": 0.1,
    "desirable_weight": 1.2,
    "undesirable_weight": 1.2,
    "simpo_gamma": 1.0,
}
# Needs a GPU of these years; refused by transformers elsewhere.
OF_A_GPU = {"tf32"}
LOSSES = {"label_smoothing": {"robust": 1.0}, "discopop_tau": {"discopop": 1.0}}
FIELDS = [(name, field) for name, one in objectives().items() for field in sorted(one.passed_on - OF_A_GPU)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A tiny base, rows, and pairs."""
    run = TinyRun.make(tmp_path_factory.mktemp("fields"))
    pairs = [json.dumps(pair_row(run.folder, number)) for number in range(10)]
    (run.folder / "pairs.jsonl").write_text("\n".join(pairs), encoding="utf-8")
    return run


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    """Some fields change the process: it is left as it was found."""
    verbosity = transformers.logging.get_verbosity()
    with patch.dict(os.environ):
        yield
    torch.use_deterministic_algorithms(False)
    transformers.logging.set_verbosity(verbosity)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_what_is_passed_on_trains(name: str, field: str, tiny: TinyRun) -> None:
    rows = "rows" if name == "sft" else "pairs"
    keys = {"extra": {field: VALUES[field]}, "objective": name}
    if name == "dpo" and field in LOSSES:
        keys["losses"] = LOSSES[field]
    if field.startswith("dataloader_"):
        keys["workers"] = 1
    sources = f"data.sources=[{{path: {tiny.folder / rows}.jsonl}}]"
    overrides = [f"training.{key}={json.dumps(value)}" for key, value in keys.items()]
    recipe = tiny.recipe("training.steps=1", f"output.dir={tiny.folder / name}", sources, *overrides).recipe
    plan = make_plan(recipe)
    model, start = build(plan)
    trainer = objective(name).trainer()(model, plan, callbacks=[])
    trainer.train()
    trainer.finish()
    proofs = start.compare(model, trainer.take_grad_norms())
    assert all(proof.frozen_identical for proof in proofs)
    assert {proof.part for proof in proofs if proof.moved_tensors} == plan.placement.asked


@pytest.mark.parametrize("name", list(objectives()))
def test_every_other_field_is_refused_with_the_reason(name: str) -> None:
    one = objective(name)
    others = get_type_hints(one.config()).keys() - one.passed_on
    assert {"torch_compile", "activation_offloading", "use_liger_kernel", "push_to_hub"} & others
    for field in others:
        training = TrainingSection.model_validate({"objective": name, "extra": {field: True}})
        with pytest.raises(UsageError, match=rf"T001.*`{field}` (is set by qlmm itself|cannot be passed on: it)"):
            trainer_config(training, OutputSection(dir="x"), Precision("cpu", "fp32"), steps=1)
