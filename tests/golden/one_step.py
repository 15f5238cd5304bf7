"""One step of a run on a tiny model whose policy is not its reference, and an oracle that knows nothing of qlmm.

The oracle calls transformers' own processor and model, one row at a time and unpadded, and takes log-probabilities from
the logits. Prompts are spelt out here, not rendered by the encoder.

Usage: ``step = one_step(prepared(folder), "dpo", {"ipo": 1.0}); step.loss; step.policy.total(row, row.chosen)``
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from qlmm.training.plan import make_plan
from qlmm.training.run import build
from tests.runs import TinyRun

__all__ = ["ROWS", "Oracle", "Row", "Step", "one_step", "prepared", "trainer_for"]

# Noise on all that is trained; log-probabilities of answers then differ from the start's by several nats.
MOVED = 1.0


@dataclass(frozen=True)
class Row:
    """One row: a picture's file, a better answer and a worse one."""

    picture: str
    chosen: str
    rejected: str

    @property
    def prompt(self) -> str:
        """The prompt as the vicuna template has it."""
        return "<s>USER: <image>\nwhat colour is this ? ASSISTANT:"


# Answers of four different lengths, so that a mean over tokens is not a mean over rows.
ROWS = (
    Row("0.png", "it is red", "green I would say"),
    Row("1.png", "it is green , I would say", "blue"),
)


class Oracle:
    """Log-probabilities per answer token, from plain logits: of every answer to every row's prompt."""

    def __init__(self, model: Any, processor: LlavaProcessor, folder: Path) -> None:
        pairs = [(row, answer) for row in ROWS for other in ROWS for answer in (other.chosen, other.rejected)]
        self._found = {(row, answer): tokens(model, processor, folder, row, answer) for row, answer in pairs}

    def tokens(self, row: Row, answer: str) -> torch.Tensor:
        """One log-probability per token of the answer, its end token included."""
        return self._found[row, answer]

    def total(self, row: Row, answer: str) -> float:
        """The answer's log-probability."""
        return float(self.tokens(row, answer).sum())

    def mean(self, row: Row, answer: str) -> float:
        """The answer's log-probability per token."""
        return float(self.tokens(row, answer).mean())


@dataclass(frozen=True)
class Step:
    """What one step of training logged, and the two models it compared.

    Attributes:
        loss: the loss that was logged.
        metrics: everything that was logged with it.
        policy: what was trained, as it was before the step.
        start: the model that the run began with, which is the reference of objectives that have one.
    """

    loss: float
    metrics: Mapping[str, float]
    policy: Oracle
    start: Oracle


@torch.no_grad()
def tokens(model: Any, processor: LlavaProcessor, folder: Path, row: Row, answer: str) -> torch.Tensor:
    """Log-probabilities (tokens,) of an answer, its end token included."""
    picture = Image.open(folder / row.picture)
    known = processor(text=row.prompt, images=picture, return_tensors="pt", add_special_tokens=False)
    whole = processor(text=f"{row.prompt} {answer}</s>", images=picture, return_tensors="pt", add_special_tokens=False)
    begins, ids = known["input_ids"].shape[1], whole["input_ids"][0]
    assert torch.equal(ids[:begins], known["input_ids"][0])
    scores = model(**whole).logits[0, begins - 1 : -1].double().log_softmax(-1)
    return scores.gather(1, ids[begins:, None])[:, 0]


def prepared(folder: Path) -> TinyRun:
    """A tiny base, and `ROWS` as supervised rows, pairs and judged answers."""
    run = TinyRun.make(folder)
    question = "<image>what colour is this ?"
    asked = {"role": "user", "content": question}
    of = {
        "sft": [{"messages": [asked, {"role": "assistant", "content": row.chosen}], "images": [row.picture]}
                for row in ROWS],
        "pairs": [{"prompt": question, "chosen": row.chosen, "rejected": row.rejected, "images": [row.picture]}
                  for row in ROWS],
        # The first answer is a desirable one, the second is not.
        "judged": [{"prompt": question, "completion": answer, "label": good, "images": [row.picture]}
                   for row, answer, good in zip(ROWS, (ROWS[0].chosen, ROWS[1].rejected), (True, False), strict=True)],
    }  # fmt: skip
    for name, rows in of.items():
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return run


def trainer_for(run: TinyRun, objective: str, losses: Mapping[str, float], rows: str, extra: Mapping[str, Any]) -> Any:
    """The trainer that a recipe of this objective gets, for one step on all rows at once."""
    path = f"{run.folder}/{rows}.jsonl"
    recipe = run.recipe(
        f"training.objective={objective}",
        f"training.losses={json.dumps(dict(losses))}",
        f"training.extra={json.dumps(dict(extra))}",
        f"training.batch_size={len(ROWS)}",
        "training.steps=1",
        "adapter.dropout=0.0",
        f"data.sources=[{{path: {path}}}]",
    )
    plan = make_plan(recipe.recipe)
    model, _ = build(plan)
    return plan.objective.trainer()(model, plan, callbacks=[])


def one_step(
    run: TinyRun,
    objective: str,
    losses: Mapping[str, float] | None = None,
    *,
    rows: str = "pairs",
    seed: int = 0,
    **extra: Any,
) -> Step:
    """Train one step on all rows at once, from a policy that is far from its start.

    Args:
        run: from `prepared`.
        objective: as in a recipe.
        losses: ``training.losses``.
        rows: which file of rows.
        seed: of the noise that makes the policy.
        extra: ``training.extra``.
    """
    trainer = trainer_for(run, objective, losses or {}, rows, extra)
    move(trainer.model, seed)
    processor = LlavaProcessor.from_pretrained(run.folder / "base")
    with at_rest(trainer.model):
        policy = Oracle(trainer.model, processor, run.folder)
    trainer.train()
    metrics = trainer.state.log_history[0]
    trainer.finish()
    return Step(metrics["loss"], metrics, policy, start_of(run.folder))


@cache
def start_of(folder: Path) -> Oracle:
    """The base as transformers itself loads it."""
    base = LlavaForConditionalGeneration.from_pretrained(folder / "base", dtype=torch.float32).eval()
    return Oracle(base, LlavaProcessor.from_pretrained(folder / "base"), folder)


def move(model: torch.nn.Module, seed: int) -> None:
    """Add noise to all that is trained."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=noise) * MOVED)


@contextmanager
def at_rest(model: torch.nn.Module) -> Iterator[None]:
    """Measure a model without dropout, and leave it training or not as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
