"""The proof's material: one changed bit anywhere in what is frozen is seen, and movement is measured, not assumed."""

from __future__ import annotations

import copy

import pytest
import torch

from qlmm.model.parts.split import Parts, split
from qlmm.model.peft.adapter import attach, place
from qlmm.proof.fingerprint import Start, base_digest, digest
from qlmm.recipe.schema import AdapterSection
from tests.tiny import tiny_llava, tiny_processor


@pytest.fixture
def trained() -> tuple[torch.nn.Module, Parts]:
    llava = tiny_llava(tiny_processor())
    parts, section = split(llava), AdapterSection(r=2, targets=("q_proj",))
    return attach(llava, place(llava, parts, section), section, seed=0), parts


def test_nothing_moved_yet(trained: tuple[torch.nn.Module, Parts]) -> None:
    model, parts = trained
    proofs = Start.of(model, parts, frozenset({"connector", "language"})).compare(model, {})
    assert {proof.part: proof.moved_tensors for proof in proofs} == dict.fromkeys(
        ("vision", "connector", "language", "head"), 0
    )
    assert all(proof.frozen_identical for proof in proofs)


@pytest.mark.parametrize("part", ["vision", "language", "head", "connector"])
def test_one_changed_bit_in_a_frozen_weight_is_seen_in_its_part(
    trained: tuple[torch.nn.Module, Parts], part: str
) -> None:
    model, parts = trained
    start = Start.of(model, parts, frozenset({"connector", "language"}))
    frozen = [p for name, p in model.named_parameters() if not p.requires_grad and parts.of(name) == part]
    with torch.no_grad():
        frozen[-1].view(-1).view(torch.int32)[0] ^= 1
    changed = [proof.part for proof in start.compare(model, {}) if not proof.frozen_identical]
    assert changed == [part]


def test_movement_is_counted_per_weight_and_per_tensor(trained: tuple[torch.nn.Module, Parts]) -> None:
    model, parts = trained
    start = Start.of(model, parts, frozenset({"connector"}))
    connector = [p for name, p in model.named_parameters() if p.requires_grad and parts.of(name) == "connector"]
    with torch.no_grad():
        connector[0].view(-1)[:2] += 0.5
    proof = next(proof for proof in start.compare(model, {"connector": 0.25}) if proof.part == "connector")
    total = sum(p.numel() for p in connector)
    assert (proof.moved_tensors, proof.trained_tensors) == (1, len(connector))
    assert proof.moved_share == pytest.approx(2 / total)
    assert proof.mean_movement == pytest.approx(1.0 / total)
    assert proof.grad_norm_max == 0.25


def test_the_base_has_one_hash_whatever_the_adapter_holds(trained: tuple[torch.nn.Module, Parts]) -> None:
    model, parts = trained
    start = Start.of(model, parts, frozenset())
    other = copy.deepcopy(model)
    for name, parameter in other.named_parameters():
        if parameter.requires_grad:
            parameter.data += 1.0
        parameter.requires_grad_(False)
        del name
    assert base_digest(other) == start.base_sha256


def test_digest_sees_the_sign_of_zero_and_nan() -> None:
    assert digest(torch.tensor([0.0])) != digest(torch.tensor([-0.0]))
    nan = torch.tensor([float("nan")])
    assert digest(nan) == digest(nan.clone())
    assert digest(nan) != digest(-nan)
