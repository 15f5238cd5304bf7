"""What adapters must have in common before they can be combined; every check is made before the base is loaded.

Usage: ``sources = read_sources(["runs/a", "runs/b"]); check_same_base(sources, "cat")``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from qlmm.artifacts.adapter.folder import run_name
from qlmm.artifacts.adapter.load import check_base
from qlmm.artifacts.adapter.local_paths import secrets_in
from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.adapter.tensors import found_tensors
from qlmm.artifacts.adapter.verify import check_adapter
from qlmm.artifacts.zoo.find import find_adapter
from qlmm.core.errors import ModelError, UsageError
from qlmm.model.loading.base import Base
from qlmm.model.loading.identity import PartIdentity
from qlmm.recipe.zoo import PREFIX

__all__ = ["NAME", "Method", "Source", "check_same_base", "check_settings", "read_sources", "resolve_base"]

Method = Literal["cat", "linear", "ties"]
# The name of the result among its sources.
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
    """An adapter to combine, under a name that is never a path and that no other of them has."""

    name: str
    folder: Path
    manifest: Manifest


def check_settings(count: int, method: Method, weights: Sequence[float], density: float) -> None:
    """Refuse a request that no `count` adapters could satisfy.

    ``linear`` adds up LoRA's two factors each for itself: the product grows with the square of what the weights add up
    to. ``ties`` divides by the number of adapters that agree on a value, so that weights of 1 are neutral. Other
    weights would scale LoRA by something else than modules that were trained whole.

    Raises:
        UsageError: K001 for fewer than two adapters, K002 for weights that do not fit them or the method, K003 for an
            impossible density.
    """
    if count < 2:
        raise UsageError.one("K001", "one adapter alone cannot be combined", help="name two adapters or more")
    if len(weights) != count:
        help = "give one per adapter, in their order, such as --weights 0.7,0.3"
        raise UsageError.one("K002", f"--weights has {len(weights)} numbers for {count} adapters", help=help)
    if not all(isfinite(weight) for weight in weights):
        shown = ", ".join(f"{weight:g}" for weight in weights)
        raise UsageError.one("K002", f"--weights: {shown}: a weight must be a finite number", help="such as 0.7,0.3")
    why = ""
    if method == "linear" and (min(weights) < 0 or abs(sum(weights) - 1) > WHOLE):
        why = f"linear needs weights from 0 that add up to 1, and these add up to {sum(weights):g}"
        why += " with a negative one" if min(weights) < 0 else ""
    elif method == "ties" and (len(set(weights)) > 1 or weights[0] <= 0):
        why = "ties scales its average by one number: all weights must be the same, and above 0"
    if why:
        raise UsageError.one("K002", f"--method {why}", help="--method cat takes any weights, and is exact")
    if not 0 < density <= 1:
        help = "it is the share of values kept, above 0 up to 1"
        raise UsageError.one("K003", f"--density is {density:g}", help=help)


def read_sources(targets: Sequence[str]) -> list[Source]:
    """The adapters, each checked for itself.

    Raises:
        UsageError: A001 and following for what is not a whole adapter.
    """
    sources: list[Source] = []
    for target in targets:
        folder = find_adapter(target)
        taken = {NAME, *(one.name for one in sources)}
        sources.append(Source(_name(target, folder, taken), folder, check_adapter(folder)))
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
    here = not target.startswith(PREFIX) and Path(target).is_dir()
    id, _, revision = (run_name(folder) if here else target).partition("@")
    # A commit reads like an access key; the manifest has it in full.
    name = f"{id}@{revision[:SHORT]}" if revision else id
    name = "adapter" if not name or secrets_in(name) else name
    others = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return next(one for one in (name, *others) if one not in taken)


def check_same_base(sources: Sequence[Source], method: Method) -> None:
    """Refuse adapters whose weights mean different things.

    Raises:
        ModelError: K004 for different bases, K005 for LoRA that cannot be combined, K006 for different layers, K007 for
            different ranks where the method needs equal ones, K008 for different processors.
    """
    first, names = sources[0], set(found_tensors(sources[0].folder))
    for source in sources:
        _check_arithmetic(source)
        apart = sorted(names ^ set(found_tensors(source.folder)))
        _check_base(first, source, same_tensors=not apart)
        if apart:
            message = f"{first.name} and {source.name} have different weights, such as {apart[0]}"
            help = "combine adapters of the same adapter.targets, adapter.connector and adapter.vision"
            raise ModelError.one("K006", message, help=help)
        ours, theirs = (one.manifest.recipe.adapter.r for one in (first, source))
        if ours != theirs and method != "cat":
            message = f"{first.name} has rank {ours}, {source.name} {theirs}; {method} needs equal ranks"
            raise ModelError.one("K007", message, help="use --method cat, which is exact; its ranks add up")
        for name in PROCESSOR:
            if first.manifest.files.get(name) != source.manifest.files.get(name):
                message = f"{first.name} and {source.name} were trained with different processors: {name} differs"
                help = "train both with the same base.chat_template and the same pixel budget"
                raise ModelError.one("K008", message, help=help)
        if first.manifest.recipe.data.thinking != source.manifest.recipe.data.thinking:
            message = f"one of {first.name} and {source.name} is asked to think before it answers, the other is not"
            raise ModelError.one("K008", message, help="train both with the same data.thinking")


def _check_arithmetic(source: Source) -> None:
    section = source.manifest.recipe.adapter
    if section.variant not in VARIANTS:
        message = f"{source.name} is {section.variant}, which cannot be combined by arithmetic"
        raise ModelError.one("K005", message, help=f"combine adapters that are {' or '.join(VARIANTS)}")
    if "experts" in section.targets:
        raise ModelError.one("K005", f"{source.name} has LoRA in fused experts, which PEFT cannot combine")


def _check_base(first: Source, other: Source, *, same_tensors: bool) -> None:
    """Configuration and commit show which part differs; the hash of the frozen weights has the last word."""
    # Copies of one checkpoint may have two names.
    why = [
        f"{one.role}: {_part(one.recorded, one.field)} against {_part(one.present, one.field)}"
        for one in first.manifest.base.differs(other.manifest.base)
        if one.field != "id"
    ]
    if same_tensors and first.manifest.frozen_sha256 != other.manifest.frozen_sha256:
        why.append("their frozen weights differ: another quantisation, precision, seed, or weights of that name")
    if why:
        message = f"{first.name} and {other.name} were not trained on the same base; {why[0]}"
        raise ModelError.one("K004", message, help="only adapters of one base, stored in one way, can be combined")


def _part(part: PartIdentity | None, field: str) -> str:
    if part is None:
        return "nothing"
    return f"{part.id} (revision {part.revision})" if field == "revision" else f"{part.id} ({part.config_sha256})"
