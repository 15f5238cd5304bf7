"""A batch in pieces: as many rows at once as memory takes, with the gradients and the loss of the whole batch.

Usage: ``class PartsTrainer(PiecesTrainer): …``
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch

from qlmm.core.errors import Problem
from qlmm.data.batching.bins import bins
from qlmm.data.batching.collators import Batch
from qlmm.data.encoding.encoder import IGNORED
from qlmm.training.batches import PIECES, ROWS, Batches, Bins, Made, received
from qlmm.training.left_out import LeftOut
from qlmm.training.memory import no_memory, out_of_memory, untouched
from qlmm.training.plan import Plan

__all__ = ["Items", "PiecesTrainer", "rows_of"]

Items = torch.Tensor | int | None


class PiecesTrainer:
    """Mixed in before a trainer of TRL.

    Attributes:
        batches: what the data loader makes batches with.
        halved: is called with the step and the rows at once, when memory did not suffice for more.
        left_out: is given the rows whose pictures cannot be read; no other row moves to another place.
    """

    model: Any
    state: Any
    accelerator: Any
    optimizer: torch.optim.Optimizer | None
    current_gradient_accumulation_steps: float
    batches: Batches
    halved: Callable[[int, int], None]
    left_out: LeftOut
    _plan: Plan
    _fitted: bool
    _passed: list[list[int]]
    _empty: int
    _rowless: bool = False

    def take_pieces(self, plan: Plan, collator: Any) -> None:
        """Begin with whole batches."""
        training = plan.recipe.training
        together = self._bins(plan) if training.tokens_per_batch is not None else None
        self.batches = Batches(collator, workers=training.workers, rows=training.rows_at_once, bins=together)
        self.halved = lambda step, rows: None
        self.left_out = LeftOut(0, 0, (), lambda event: None)
        # Whether the longest rows were tried, and the rows of the step under way.
        self._fitted, self._passed = False, []
        # How many of its batches have no row left, and whether none has.
        self._empty, self._rowless = 0, False

    def _bins(self, plan: Plan) -> Bins:
        """Which rows of a step go together; of a pair without a shared prompt, both sides count."""
        lengths, tokens = [one.total for one in plan.lengths], plan.recipe.training.tokens_per_batch or 0
        sides = 2 if plan.objective.rows == "preference" else 1
        return lambda rows, most: bins(rows, lengths, tokens=tokens // sides, most=most, padded=self.pads)

    @property
    def pads(self) -> bool:
        """Whether the language model computes padding."""
        return True

    def get_train_dataloader(self) -> Any:
        """Transformers' loader, with batches that know their rows, made by workers that outlive signals."""
        loader: Any = super().get_train_dataloader()  # type: ignore[misc]  # Trainer's
        self.batches.serve(loader.base_dataloader)
        return loader

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *args: Any) -> Any:
        """The batches of a step and how many tokens they learn; what failed in a worker is raised here."""
        batches = [self._taken(received(batch)) for batch in islice(epoch_iterator, num_batches)]
        self._empty = batches.count([])
        self._rowless = 0 < self._empty == len(batches)
        pieces = [piece for batch in batches for piece in batch]
        _, items = super().get_batch_samples(iter(pieces), len(pieces), *args)  # type: ignore[misc]  # Trainer's
        # Transformers looks at what a batch has for the model.
        return [{**(batch[0] if batch else {}), PIECES: batch} for batch in batches], items

    def _taken(self, made: Made) -> list[Batch]:
        """The pieces of a batch; rows that are in none are left out."""
        for one in made:
            if isinstance(one, Problem):
                self.left_out.add(self.state.global_step + 1, one)
        return _pieces(made)

    def training_step(self, model: torch.nn.Module, inputs: Batch, items: Items = None) -> Any:
        """The loss of a batch; one that does not fit into memory is taken in halves, and so is every batch after it."""
        if not self._fitted:
            self.fit_longest(model, items)
        pieces, numbers = inputs[PIECES], rows_of(inputs)
        self._passed.append(numbers)
        if pieces and max(len(piece[ROWS]) for piece in pieces) > self.batches.at_once:
            pieces = self._taken(self.batches.of(numbers))
        loss = self._tried(model, pieces, items)
        while loss is None:
            self._halve(pieces)
            # Gradients of the half that did fit are in with those of earlier batches: the step begins anew.
            model.zero_grad()
            for rows in self._passed:
                loss = self._tried(model, self._taken(self.batches.of(rows)), items)
                if loss is None:
                    break
        if self.accelerator.sync_gradients:
            self._passed = []
        return loss

    def _tried(self, model: torch.nn.Module, pieces: Sequence[Batch], items: Items) -> torch.Tensor | None:
        """The loss of a batch, its gradients added to the parameters; None where memory does not suffice."""
        if not pieces:
            return self._nothing()
        learned, steps = [_learned(piece) for piece in pieces], self.current_gradient_accumulation_steps
        # A mean is over the batches that have rows.
        filled = max(1, steps - self._empty)
        try:
            losses = []
            for piece, share in zip(pieces, learned, strict=True):
                # What Trainer divides a mean by; a sum over the step's tokens is divided by their number already.
                self.current_gradient_accumulation_steps = (
                    filled * sum(learned) / share if share < sum(learned) else filled
                )
                inputs = {name: value for name, value in piece.items() if name != ROWS}
                with self.around(inputs):
                    losses.append(super().training_step(model, inputs, items))  # type: ignore[misc]  # Trainer's
            return torch.stack(losses).sum() if len(losses) > 1 else losses[0]
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return None
        finally:
            self.current_gradient_accumulation_steps = steps

    def around(self, inputs: Batch) -> AbstractContextManager[None]:
        """What a batch's forward and backward pass run in; nothing here."""
        return nullcontext()

    def _nothing(self) -> torch.Tensor:
        """The loss of a batch without rows: 0, with gradients of 0, which what follows expects to be there."""
        loss = torch.stack([p.sum() for p in self.model.parameters() if p.requires_grad]).sum() * 0
        self.accelerator.backward(loss)
        return loss.detach()

    def fit_longest(self, model: torch.nn.Module, items: Items) -> None:
        """Take the longest rows forward and backward, with room for the optimizer's moments, until they fit."""
        lengths = self._plan.lengths
        by_length = sorted(self._plan.readable, key=lambda row: lengths[row].total + lengths[row].supervised)
        self._fitted = True
        while True:
            with untouched(self, model):
                room = self._moments()
                longest = _pieces(self.batches.of(by_length[-self.batches.at_once :]))[:1]
                found = self._tried(model, longest, items)
                del room
            model.zero_grad()
            if found is not None:
                return
            self._halve(longest)

    def _moments(self) -> list[torch.Tensor]:
        """What Adam in 32 bits will keep, where it keeps nothing yet."""
        if self._plan.recipe.training.optimizer != "adamw" or (self.optimizer and self.optimizer.state):
            return []
        return [torch.empty_like(p) for p in self.model.parameters() if p.requires_grad for _ in range(2)]

    def _halve(self, pieces: Sequence[Batch]) -> None:
        """Take half as many rows at once as these pieces have from here on; RunError G003 where that cannot be."""
        training, rows = self._plan.recipe.training, max(len(piece[ROWS]) for piece in pieces)
        rows = min(rows, self.batches.at_once)
        if rows == 1 or not self._plan.objective.separable(training):
            raise no_memory(self._plan, self.state.global_step + 1, rows)
        self.batches.at_once = rows // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.halved(self.state.global_step + 1, self.batches.at_once)


def _pieces(made: Made) -> list[Batch]:
    return [one for one in made if not isinstance(one, Problem)]


def rows_of(inputs: Batch) -> list[int]:
    """The row numbers of a trainer's batch."""
    return [number for piece in inputs[PIECES] for number in piece[ROWS]]


def _learned(piece: Batch) -> int:
    """What a piece counts in the mean of its batch: tokens of the likelihood, else rows."""
    # A shifted label at the first place is not learned.
    found = int((piece["labels"][:, 1:] != IGNORED).sum()) if "labels" in piece else len(piece[ROWS])
    return max(1, found)
