"""Held-out pairs: what is won, by how much, and how far from the reference, are what a plain loop over logits gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from qlmm.data.encoding.encoder import Encoder
from qlmm.data.sample import ImageRef, Origin, Preference, Turn
from qlmm.evaluation.pairs import HeldOutPairs
from qlmm.model.numerics.precision import Precision
from qlmm.proof.records import PairProof
from tests.tiny import tiny_llava, tiny_processor
from tests.unit.evaluation.pictures import colour

FP32 = Precision("cpu", "fp32")
ANSWERS = (("it is red", "no"), ("blue", "it is the green one in the back"), ("what", "cat"), ("the cat", "a red cat"))


def pair(number: int, *pictures: ImageRef, swapped: bool = False) -> Preference:
    chosen, rejected = ANSWERS[number % len(ANSWERS)][:: -1 if swapped else 1]
    prompt = (Turn("user", ("hi",)), Turn("assistant", ("ho",)), Turn("user", (*pictures, "what is this ?")))
    return Preference(prompt, chosen, rejected, Origin("pairs.jsonl", number))


SHOWN = tuple(pair(number, colour(number)) for number in range(4))
PAIRS = (SHOWN[0], pair(4), *SHOWN[1:], pair(5))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.make(tiny_processor(), max_length=500)


@pytest.fixture
def model(encoder: Encoder) -> PeftModel:
    """A LoRA that says something, and a copy of the projector."""
    torch.manual_seed(1)
    base = tiny_llava(encoder.processor)  # type: ignore[arg-type]  # the tiny processor it was made with
    made = get_peft_model(base, config())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert isinstance(made, PeftModel)
    return made


def config() -> LoraConfig:
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["multi_modal_projector"])


def with_reference(model: PeftModel) -> PeftModel:
    """The model and its reference, equal to the last bit."""
    model.add_adapter("ref", config())
    values = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in values.items():
            if ".ref." in name:
                parameter.copy_(values[name.replace(".ref.", ".default.")])
    return model


def nudge(model: PeftModel) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".default." in name:
                parameter.add_(0.05 * torch.ones_like(parameter))


@torch.no_grad()
def said(model: nn.Module, encoder: Encoder, one: Preference) -> Iterator[list[torch.Tensor]]:
    """For chosen and rejected answer alone: the log-probabilities of the whole vocabulary, then those of the tokens."""
    for side in ("chosen", "rejected"):
        batch = encoder.pairs([one])
        row = 0 if side == "chosen" else 1
        mask = batch.pop("completion_mask")[row]
        likely = torch.log_softmax(model.eval()(**batch).logits[row].double(), dim=-1)
        places = [place for place in range(1, len(mask)) if mask[place]]
        own = [likely[place - 1, batch["input_ids"][row, place]] for place in places]
        yield [torch.stack([likely[place - 1] for place in places]), torch.stack(own)]


def by_hand(model: nn.Module, encoder: Encoder, pairs: Sequence[Preference]) -> tuple[float, float]:
    """Share won and mean margin, one pair at a time."""
    won, margins = 0, []
    for one in pairs:
        (_, chosen), (_, rejected) = said(model, encoder, one)
        won += bool(chosen.mean() > rejected.mean())
        margins.append(float(chosen.sum() - rejected.sum()))
    return won / len(margins), sum(margins) / len(margins)


@pytest.mark.parametrize("batch_size", [1, 4, 8])
def test_they_are_those_of_a_plain_loop(batch_size: int, model: PeftModel, encoder: Encoder) -> None:
    measured = HeldOutPairs(PAIRS, encoder, FP32, batch_size).measure(model)
    assert measured is not None
    assert (measured.rows, measured.swapped_rows, measured.kl) == (6, 4, None)
    won, margin = by_hand(model, encoder, PAIRS)
    others = [one.with_images(SHOWN[(number + 1) % 4].images) for number, one in enumerate(SHOWN)]
    won_swapped, margin_swapped = by_hand(model, encoder, others)
    assert 0 < measured.won < 1
    assert (measured.won, measured.won_swapped) == (won, won_swapped)
    assert measured.margin == pytest.approx(margin, abs=1e-5)
    assert measured.margin_swapped == pytest.approx(margin_swapped, abs=1e-5)
    assert abs(margin - margin_swapped) > 1e-4


def test_an_answer_is_not_won_by_being_short(model: PeftModel, encoder: Encoder) -> None:
    """Every token of a random model is about as likely: by sums the shorter answer would always win."""
    measured = HeldOutPairs([pair(1)], encoder, FP32, 1).measure(model)
    turned = HeldOutPairs([pair(1, swapped=True)], encoder, FP32, 1).measure(model)
    assert measured is not None
    assert turned is not None
    assert measured.margin == pytest.approx(-turned.margin, abs=1e-4)
    assert measured.won + turned.won == 1
    (_, chosen), (_, rejected) = said(model, encoder, pair(1))
    assert measured.won == float(chosen.mean() > rejected.mean())


def test_a_policy_that_is_its_reference_has_not_moved(model: PeftModel, encoder: Encoder) -> None:
    measured = HeldOutPairs(PAIRS, encoder, FP32, 4).measure(with_reference(model))
    assert measured is not None
    assert measured.kl == 0


def test_the_divergence_is_that_of_whole_distributions(model: PeftModel, encoder: Encoder) -> None:
    with_reference(model)
    start = [tables for one in PAIRS for tables, _ in said(model, encoder, one)]
    nudge(model)
    now = [tables for one in PAIRS for tables, _ in said(model, encoder, one)]
    measured = HeldOutPairs(PAIRS, encoder, FP32, 4).measure(model)
    p, q = torch.cat(now), torch.cat(start)
    expected = float((p.exp() * (p - q)).sum() / len(p))
    assert measured is not None
    assert expected > 1e-3
    assert measured.kl == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_everything_as_it_was(training: bool, model: PeftModel, encoder: Encoder) -> None:
    with_reference(model).train(training)
    # As a part that is only carried along: frozen though its adapter is active.
    for name, parameter in model.named_parameters():
        if "modules_to_save.default" in name:
            parameter.requires_grad_(False)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert any(trained.values())
    HeldOutPairs(PAIRS, encoder, FP32, 4).measure(model)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained
    assert model.active_adapter == "default"
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_after_a_failure_the_trained_adapter_is_active_again(
    model: PeftModel, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_reference(model).train()
    whole = model.forward

    def failing(*args: object, **inputs: object) -> object:
        if model.active_adapter == "ref":
            raise RuntimeError("no memory")
        return whole(*args, **inputs)

    monkeypatch.setattr(model, "forward", failing)
    with pytest.raises(RuntimeError, match="no memory"):
        HeldOutPairs(SHOWN, encoder, FP32, 4).measure(model)
    assert model.active_adapter == "default"
    assert model.training


def test_pairs_of_words_alone_have_no_figures_with_swapped_pictures(model: PeftModel, encoder: Encoder) -> None:
    measured = HeldOutPairs([pair(0), pair(1)], encoder, FP32, 2).measure(model)
    assert isinstance(measured, PairProof)
    assert (measured.swapped_rows, measured.won_swapped, measured.margin_swapped) == (0, None, None)


def test_no_pairs_are_nothing_to_measure(model: PeftModel, encoder: Encoder) -> None:
    assert HeldOutPairs((), encoder, FP32, 2).measure(model) is None
