"""``run.json``: what a run was asked to do, how far it came, and what it proved.

Usage: ``record = RunRecord.model_validate_json(text); record.status``
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from qlmm.data.fingerprint import DataFingerprint
from qlmm.model.loading.identity import BaseIdentity
from qlmm.proof.records import IN_JSON, Answer, HeldOutProof, PlanFacts, Proof
from qlmm.recipe.schema import Recipe

__all__ = ["Before", "RunRecord", "Status"]

Status = Literal["new", "unfinished", "finished", "unproven"]


class Before(BaseModel):
    """What was measured and answered before the first step, for a continued run to remember."""

    model_config = ConfigDict(**IN_JSON, frozen=True)

    held_out: HeldOutProof
    answers: tuple[str, ...]


class RunRecord(BaseModel):
    """One run; what is None is not known yet.

    Attributes:
        recipe: as it ran, overrides and defaults included.
        recipe_file: the name it was read under.
        overrides: what the command line changed.
        versions: versions of the packages that decide what a run computes.
        base: what the base is, part by part.
        data: which rows it learns from.
        plan: what was known before the first step.
        status: how far it came; `unproven` means that training ended but a promise was broken.
        writer: the process that wrote last.
        frozen_sha256: one hash over the base's tensors.
        adapter: name of the adapter's folder.
        answers: held-out questions, answered before and after training.
    """

    model_config = ConfigDict(**IN_JSON, frozen=True)

    version: Literal[1] = 1
    recipe: Recipe
    recipe_file: str
    overrides: tuple[str, ...] = ()
    versions: dict[str, str]
    base: BaseIdentity
    data: DataFingerprint
    plan: PlanFacts
    status: Status = "new"
    writer: str | None = None
    before: Before | None = None
    frozen_sha256: str | None = None
    proof: Proof | None = None
    adapter: str | None = None
    answers: tuple[Answer, ...] | None = None

    def to_text(self) -> str:
        """The record as it lies on the disk: what is not known yet is left out."""
        unknown = {name for name in type(self).model_fields if vars(self)[name] is None}
        return self.model_dump_json(indent=1, exclude=unknown) + "\n"
