"""What adapters must have in common before they can be combined; every check is made before the base is loaded.

Usage: ``sources = read_sources(["runs/a", "runs/b"]); check_same_base(sources, "cat")``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Literal

from qlmm.artifacts.adapter.folder import run_name
from qlmm.artifacts.adapter.load import check_base
from qlmm.artifacts.adapter.local_paths import secrets_in
from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.adapter.preconditions import check_adapter
from qlmm.artifacts.adapter.tensors import found_tensors
from qlmm.artifacts.zoo.find import find_adapter
from qlmm.core.errors import ModelError, UsageError
from qlmm.core.staging import check_place
from qlmm.model.loading.base import Base
from qlmm.model.loading.identity import PartIdentity
from qlmm.recipe.zoo import PREFIX

__all__ = [
    "NAME",
    "Method",
    "Source",
    "check_same_base",
    "check_settings",
    "read_sources",
    "resolve_base",
    "size_of",
]

Method = Literal["cat", "linear", "ties"]
METHODS: tuple[Method, ...] = ("cat", "linear", "ties")
# What the result is called among its sources.
NAME = "combined"
# Scalings that PEFT's arithmetic knows; the others change the base or have weights that it leaves out.
VARIANTS = ("plain", "rslora")
# How far from 1 weights of few decimals may add up to.
WHOLE = 1e-6
# Digits of a commit that tell it from others.
SHORT = 7
PROCESSOR = ("tokenizer.json", "processor_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class Source:
    """An adapter to combine.

    Attributes:
        name: what people call it, never a path; no two of a combination have the same.
    """

    name: str
    folder: Path
    manifest: Manifest


def check_settings(targets: Sequence[str], out: Path, method: str, weights: Sequence[float], density: float) -> None:
    """Refuse a request that no adapters could satisfy.

    Raises:
        UsageError: K001 for fewer than two adapters, K002 for weights that do not fit them or the method, K003 for an
            unknown method or an impossible density, A033 for a place that is taken.
    """
    if len(targets) < 2:
        raise UsageError.one("K001", "one adapter alone cannot be combined", help="name two adapters or more")
    if len(weights) != len(targets):
        raise UsageError.one(
            "K002",
            f"--weights has {len(weights)} numbers for {len(targets)} adapters",
            help="give one per adapter, in their order, such as --weights 0.7,0.3",
        )
    if method not in METHODS:
        raise UsageError.one("K003", f"--method: there is no {method}", help=f"known: {', '.join(METHODS)}")
    _check_weights(method, weights)
    if not 0 < density <= 1:
        raise UsageError.one(
            "K003", f"--density is {density:g}", help="it is the share of values kept, above 0 up to 1"
        )
    check_place(out)


def _check_weights(method: str, weights: Sequence[float]) -> None:
    """Refuse weights that would scale LoRA by something else than modules that were trained whole.

    ``linear`` adds up LoRA's two factors each for itself: the product grows with the square of what the weights add up
    to. ``ties`` divides by the number of adapters that agree on a value, so that weights of 1 are neutral.
    """
    if not all(isfinite(weight) for weight in weights):
        shown = ", ".join(f"{weight:g}" for weight in weights)
        raise UsageError.one("K002", f"--weights: {shown}: a weight must be a finite number", help="such as 0.7,0.3")
    help = "--method cat takes any weights, and is exact"
    if method == "linear" and (min(weights) < 0 or abs(sum(weights) - 1) > WHOLE):
        raise UsageError.one(
            "K002",
            f"--method linear needs weights from 0 that add up to 1, and these add up to {sum(weights):g}"
            + (" with a negative one" if min(weights) < 0 else ""),
            help=help,
        )
    if method == "ties" and (len(set(weights)) > 1 or weights[0] <= 0):
        raise UsageError.one(
            "K002",
            "--method ties scales its average by one number: all weights must be the same, and above 0",
            help=help,
        )


def read_sources(targets: Sequence[str]) -> list[Source]:
    """The adapters, each checked for itself.

    Raises:
        UsageError: A001 and following for what is not a whole adapter.
    """
    sources: list[Source] = []
    for target in targets:
        folder = find_adapter(target)
        manifest = check_adapter(folder)
        sources.append(Source(_name(target, folder, {NAME, *(one.name for one in sources)}), folder, manifest))
    return sources


def resolve_base(sources: Sequence[Source]) -> Base:
    """The base of the adapters, resolved by the first one's recipe.

    Raises:
        ModelError: M003 and following when it is not at hand, A004, A005 when another one is.
    """
    first = sources[0].manifest
    base = Base.resolve(first.recipe.base)
    check_base(first, base, commit=True)
    return base


def _name(target: str, folder: Path, taken: set[str]) -> str:
    """The target itself where it is an id or from the zoo, else the run's name; numbered where that is taken."""
    name = target
    if not target.startswith(PREFIX) and Path(target).is_dir():
        name = run_name(folder)
    # A commit reads like an access key; the manifest holds it in full.
    id, _, revision = name.partition("@")
    name = f"{id}@{revision[:SHORT]}" if revision else id
    name = "adapter" if not name or secrets_in(name) else name
    others = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return next(one for one in (name, *others) if one not in taken)


def size_of(sources: Sequence[Source], method: str) -> int:
    """The most bytes that the combined weights take: whole modules once, the ranks of ``cat`` together."""
    whole, *lora = (
        sum(4 * prod(shape) for name, (shape, _) in found_tensors(source.folder).items() if (".lora_" in name) == kind)
        for kind, source in ((False, sources[0]), *((True, source) for source in sources))
    )
    return whole + (sum(lora) if method == "cat" else max(lora))


def check_same_base(sources: Sequence[Source], method: str) -> None:
    """Refuse adapters whose weights mean different things.

    Raises:
        ModelError: K004 for different bases, K005 for LoRA that cannot be combined, K006 for different layers, K007 for
            different ranks where the method needs equal ones, K008 for different processors.
    """
    first = sources[0]
    for source in sources:
        if source.manifest.recipe.adapter.variant not in VARIANTS:
            raise ModelError.one(
                "K005",
                f"{source.name} is {source.manifest.recipe.adapter.variant}, which cannot be combined by arithmetic",
                help=f"combine adapters that are {' or '.join(VARIANTS)}",
            )
        if "experts" in source.manifest.recipe.adapter.targets:
            raise ModelError.one("K005", f"{source.name} has LoRA in fused experts, which PEFT cannot combine")
        _check_base(first, source)
        _check_layers(first, source, method)
        _check_processor(first, source)


def _check_base(first: Source, other: Source) -> None:
    """Configuration and commit say which part differs; the hash of the frozen weights has the last word."""
    for one in first.manifest.base.differs(other.manifest.base):
        # Copies of one checkpoint may have two names.
        if one.field != "id":
            ours, theirs = (_part(part, one.field) for part in (one.recorded, one.present))
            raise _other_base(first, other, f"{one.role}: {ours} against {theirs}")
    if _names(first) == _names(other) and first.manifest.frozen_sha256 != other.manifest.frozen_sha256:
        raise _other_base(
            first, other, "their frozen weights differ: another quantisation, precision, seed, or weights of that name"
        )


def _part(part: PartIdentity | None, field: str) -> str:
    if part is None:
        return "nothing"
    return f"{part.id} (revision {part.revision})" if field == "revision" else f"{part.id} ({part.config_sha256})"


def _other_base(first: Source, other: Source, why: str) -> ModelError:
    return ModelError.one(
        "K004",
        f"{first.name} and {other.name} were not trained on the same base; {why}",
        help="only adapters of one base, held in one way, can be combined",
    )


def _names(source: Source) -> set[str]:
    return set(found_tensors(source.folder))


def _check_layers(first: Source, other: Source, method: str) -> None:
    if (apart := sorted(_names(first) ^ _names(other))) != []:
        raise ModelError.one(
            "K006",
            f"{first.name} and {other.name} hold different weights, such as {apart[0]}",
            help="combine adapters of the same adapter.targets, adapter.connector and adapter.vision",
        )
    ours, theirs = (one.manifest.recipe.adapter.r for one in (first, other))
    if ours != theirs and method != "cat":
        raise ModelError.one(
            "K007",
            f"{first.name} has rank {ours}, {other.name} {theirs}; {method} needs equal ranks",
            help="use --method cat, which is exact; its ranks add up",
        )


def _check_processor(first: Source, other: Source) -> None:
    for name in PROCESSOR:
        if first.manifest.files.get(name) != other.manifest.files.get(name):
            raise ModelError.one(
                "K008",
                f"{first.name} and {other.name} were trained with different processors: {name} differs",
                help="train both with the same base.chat_template and the same pixel budget",
            )
