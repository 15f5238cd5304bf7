"""Rows end to end compute the same as rows that are padded, and a head at supervised positions as one at all."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qlmm.core.errors import UsageError
from qlmm.model.reuse.supervised_head import SupervisedHead
from qlmm.model.reuse.unpadded import Unpadded
from qlmm.training.objective import objective as objective_of
from qlmm.training.plan import make_plan
from qlmm.training.run import build
from tests.runs import TinyRun, pair_row, picture_row

CLOSE = 1e-5


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Rows of lengths that differ much, some without a picture."""
    folder = tmp_path_factory.mktemp("packing")
    made = TinyRun.make(folder)
    rows = [picture_row(folder, number) for number in range(8)]
    for number, row in enumerate(rows):
        row["messages"][-1]["content"] = "yes " * (1 + number * 5)
    rows += [{"messages": [{"role": "user", "content": "and?"}, {"role": "assistant", "content": "no"}]}]
    (folder / "long.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    pairs = [pair_row(folder, number, picture=number % 4 != 3) for number in range(8)]
    for number, pair in enumerate(pairs):
        pair["rejected"] = "no " * (1 + number * 3)
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    return made


class Directory:
    """A run's directory, as far as a trainer needs it before its first step."""

    def __init__(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        self.path, self.saving, self.record = path, path / ".part", SimpleNamespace(frozen_sha256="b")

    def writing(self, what: str) -> AbstractContextManager[None]:
        return nullcontext()


def trainer(tiny: TinyRun, name: str, *overrides: str) -> Any:
    source = "long" if name == "sft" else "pairs"
    plan = make_plan(
        tiny.recipe(
            f"training.objective={name}",
            "adapter.dropout=0.0",
            "training.batch_size=4",
            "training.precision=fp32",
            f"data.sources=[{{path: {tiny.folder}/{source}.jsonl}}]",
            f"output.dir={tiny.folder}/unused",
            *overrides,
        ).recipe
    )
    model, _ = build(plan)
    moved = [p for p in model.parameters() if p.requires_grad]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = objective_of(name).trainer()(model, plan, callbacks=[])
        for parameter in moved:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def gradients(made: Any, rows: int = 6) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a batch as a step of training computes them, checkpointing included."""
    model = made.model
    model.train()
    if made.args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = made._prepare_inputs(made.data_collator([{"row": row} for row in range(rows)]))
    with made.around(inputs):
        with made.compute_loss_context_manager():
            loss = made.compute_loss(model, inputs)
        loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=CLOSE)
    assert one[1].keys() == other[1].keys()
    assert any(gradient.abs().max() > 0 for gradient in other[1].values())
    for name, gradient in other[1].items():
        assert float((one[1][name] - gradient).norm() / gradient.norm().clamp(min=1e-8)) < CLOSE, name


@pytest.mark.parametrize("checkpointing", ["true", "false"])
@pytest.mark.parametrize(
    ("objective", "further"),
    [("sft", ()), ("dpo", ()), ("dpo", ("training.reuse=[]",)), ("orpo", ()), ("simpo", ()), ("kto", ())],
)
def test_losses_and_gradients_are_those_of_padded_rows(
    tiny: TinyRun, objective: str, further: tuple[str, ...], checkpointing: str
) -> None:
    keys = (f"training.gradient_checkpointing={checkpointing}", *further)
    packed, padded = (trainer(tiny, objective, *keys, f"training.packing={on}") for on in ("true", "false"))
    assert packed.pads == (objective == "kto")
    assert padded.pads
    same(gradients(packed), gradients(padded))


def test_a_decoder_is_given_real_tokens_only(tiny: TinyRun) -> None:
    made = trainer(tiny, "sft")
    widths: list[tuple[int, ...]] = []
    layer = next(m for m in made.model.get_base_model().get_decoder().modules() if hasattr(m, "self_attn"))
    layer.register_forward_hook(lambda module, args, found: widths.append(tuple(args[0].shape[:2])))
    batch = made.data_collator([{"row": row} for row in range(6)])
    gradients(made)
    assert set(widths) == {(1, int(batch["attention_mask"].sum()))}
    assert batch["attention_mask"].numel() > 1.3 * batch["attention_mask"].sum()


@pytest.mark.parametrize("objective", ["sft", "dpo", "orpo", "kto"])
def test_the_head_scores_supervised_positions_only(
    tiny: TinyRun, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tiny, objective)
    scored: list[int] = []
    backbone = made.model.get_base_model().base_model
    backbone.register_forward_hook(lambda module, args, found: scored.append(found.last_hidden_state.shape[1]))
    found = gradients(made)
    batch = made.data_collator([{"row": row} for row in range(6)])
    positions = batch["input_ids"].shape[1]
    assert scored
    assert max(scored) != positions
    plain = trainer(tiny, objective)
    monkeypatch.setattr(SupervisedHead, "of", lambda self, model: model)
    same(found, gradients(plain))


def test_a_model_that_computes_otherwise_is_padded_and_says_so(tiny: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = Unpadded._attend

    def leaking(self: Unpadded, module: Any, query: Any, key: Any, value: Any, mask: Any, **how: Any) -> Any:
        found, weights = attend(self, module, query, key, value, mask, **how)
        return found.flip(1), weights

    monkeypatch.setattr(Unpadded, "_attend", leaking)
    made = trainer(tiny, "sft")
    assert made.pads
    assert any(note.startswith("rows of a pass are padded to the longest: losses would differ") for note in made.notes)


def test_another_form_of_attention_is_padded_and_says_so(tiny: TinyRun) -> None:
    made = trainer(tiny, "sft", "training.packing=false")
    base = made.model.get_base_model()
    base.set_attn_implementation("eager")
    assert Unpadded(base).objection == "base attention is not sdpa"


def test_a_batch_with_another_mask_is_refused(tiny: TinyRun) -> None:
    made = trainer(tiny, "sft")
    inputs = made._prepare_inputs(made.data_collator([{"row": 0}, {"row": 7}]))
    other = {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])}
    with made.around(inputs), pytest.raises(Exception, match="M055"):
        made.compute_loss(made.model, other)


@pytest.mark.parametrize("further", [(), ("training.packing=false",), ("training.workers=2",)])
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_passes_filled_by_tokens_have_the_same_curve(
    tiny: TinyRun, objective: str, further: tuple[str, ...], tmp_path: Path
) -> None:
    def curve(name: str, *overrides: str) -> list[float]:
        keys = ("training.batch_size=2", "training.accumulation=3", "training.steps=4", "training.log_every=1")
        made = trainer(tiny, objective, *keys, f"output.dir={tmp_path}/{name}", *overrides)
        made.prepare(Directory(tmp_path / name))
        made.train()
        return [entry["loss"] for entry in made.state.log_history if "loss" in entry]

    by_rows, by_tokens = curve("rows"), curve("tokens", "training.tokens_per_batch=120", *further)
    assert by_tokens == pytest.approx(by_rows, rel=CLOSE)


def test_passes_hold_as_many_tokens_as_asked(tiny: TinyRun) -> None:
    made = trainer(tiny, "sft", "training.batch_size=9", "training.tokens_per_batch=120")
    lengths = made._plan.lengths
    rows = range(len(lengths))
    pieces = made.batches.of(rows)
    assert sorted(row for piece in pieces for row in piece["row_numbers"]) == list(rows)
    assert 1 < len(pieces) < len(rows)
    for piece in pieces:
        held = sum(lengths[row].total for row in piece["row_numbers"])
        assert held == piece["attention_mask"].sum()
        assert held <= 120 or len(piece["row_numbers"]) == 1


@pytest.mark.parametrize("objective", ["orpo", "kto"])
def test_losses_that_compare_rows_are_not_filled_by_tokens(tiny: TinyRun, objective: str) -> None:
    with pytest.raises(UsageError, match=r"T006.*compares the rows of a batch"):
        trainer(tiny, objective, "training.tokens_per_batch=120")


def test_one_row_a_pass_is_left_as_it_is(tiny: TinyRun, tmp_path: Path) -> None:
    made = trainer(tiny, "sft", "training.batch_size=1")
    assert made.pads
    assert made.notes == []
