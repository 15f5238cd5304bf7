"""``qlmm model show``: what qlmm would make of a model; only its configuration is fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from qlmm.cli.arguments import AsJson, Overrides, loaded_recipe, prepare_packaged
from qlmm.cli.output.console import out
from qlmm.core.errors import UsageError
from qlmm.core.units import memory, share

if TYPE_CHECKING:
    from qlmm.model.inspection.describe import ExpertsShown, LoraShown, ModelShown, PartShown
    from qlmm.model.inspection.pictures import PicturesShown, SizeShown, Tried
    from qlmm.recipe.load import LoadedRecipe

__all__ = ["group", "show"]

group = typer.Typer(help="Look at a model before training it.", no_args_is_help=True, rich_markup_mode=None)

MOST_NAMES = 4
SERVERS = "vLLM and its like"
WORDS_FOR_EXPERTS = "adapter.targets=[all-linear, experts]"

Rows = list[tuple[str, str]]


@group.command(epilog="Example: qlmm model show Qwen/Qwen3-VL-4B-Instruct --size 800x600")
def show(
    target: Annotated[str, typer.Argument(metavar="ID|FOLDER|RECIPE", help="A model's Hub id or folder, or a recipe.")],
    overrides: Overrides = None,
    size: Annotated[
        list[str] | None, typer.Option(metavar="WxH", help="A picture size in pixels; give the option again for more.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a model's parts, tokens, memory."""
    from qlmm.cli.output.screens import facts_screen
    from qlmm.proof.records import to_json
    from qlmm.recipe.library import is_recipe

    sizes = [_size(text) for text in size or ()]
    named = is_recipe(target)
    loaded = loaded_recipe(target, overrides) if named else _of_model(target, overrides)
    # Without a recipe there is no line that a refusal could point at.
    with loaded.placing() if named else nullcontext():
        prepare_packaged(loaded.recipe, rows=False)
        from qlmm.model.inspection.describe import describe

        shown = describe(loaded.recipe, sizes)
    if as_json:
        out.json(to_json(shown))
    else:
        out.screen(facts_screen(_sections(shown)))


def _size(text: str) -> tuple[int, int]:
    from qlmm.data.media.images import MAX_PIXELS

    found = re.fullmatch(r"([1-9]\d{0,5})[x×]([1-9]\d{0,5})", text)
    if found is None:
        raise UsageError.one("U032", f"--size {text} is not a picture size", help="width x height in pixels: 1024x768")
    width, height = int(found[1]), int(found[2])
    if width * height > MAX_PIXELS:
        message = f"--size {text} is more than the {MAX_PIXELS:,} pixels that a picture may have"
        raise UsageError.one("U032", message, help="name a smaller size")
    return width, height


def _of_model(target: str, overrides: Sequence[str] | None) -> LoadedRecipe:
    """A recipe that leaves everything but the base at its default."""
    from qlmm.recipe.load import parse_recipe
    from qlmm.recipe.yaml_reader import dump

    # A recipe names rows and a run directory too; neither is looked at here.
    whole = {"version": 1, "base": {"model": target}, "data": {"sources": [{"path": "-"}]}, "output": {"dir": "-"}}
    return parse_recipe(dump(whole), target, overrides or ())


def _sections(shown: ModelShown) -> Mapping[str, Rows]:
    own, one = "by a decoder of their own (encoder-decoder)", "after the question, by one decoder"
    refused = f"refused: {shown.refused}. All figures are for base.quantize=none"
    return {
        "model": [
            ("base", shown.base),
            ("class", f"{shown.class_name} ({shown.model_type}), {shown.kind}"),
            ("parameters", f"{shown.parameters:,}"),
            ("answers", own if shown.encoder_decoder else one),
        ],
        "parts": [*_parts(shown), *([("quantised", refused)] if shown.refused is not None else [])],
        "LoRA": [*_lora(shown.lora), *_experts(shown.experts)],
        "pictures": _pictures(shown.pictures) if shown.pictures else [("not known", shown.unseen or "")],
        "adapter": _adapter(shown),
        "memory": [("forecast", _memory(shown))],
    }


def _parts(shown: ModelShown) -> Iterator[tuple[str, str]]:
    for part in shown.parts:
        lines = [_counted(part)]
        if part.part == "connector":
            lines += [f"{place}: {_names(names)}" for place, names in shown.connector.items()]
        else:
            lines.append(_names(part.modules))
        yield part.part, "\n".join(lines)
    if not shown.connector:
        yield "connector", "none"


def _counted(part: PartShown) -> str:
    if not part.parameters:
        return "shares the weights of the embeddings"
    # The bytes of a quantised storage are an estimate.
    about = {name: "" if name in ("bf16", "fp16", "fp32") else " about" for name in part.stored}
    stored = " + ".join(f"{name}{about[name]} {memory(size)}" for name, size in part.stored.items() if size)
    words = {"frozen": "frozen", "LoRA": f"LoRA: {part.trained:,} trained", "whole": f"{part.trained:,} trained"}
    return f"{part.parameters:,} parameters ({stored}), {words[part.training]}"


def _names(names: Sequence[str]) -> str:
    """Module names, layer numbers and long lists shortened."""
    from qlmm.model.peft.targets import alike

    listed = [f"{shape} ({len(same)})" if len(same) > 1 else same[0] for shape, same in alike(names).items()]
    more = len(listed) - MOST_NAMES
    return ", ".join([*listed[:MOST_NAMES], *([f"and {more} more"] if more > 0 else [])])


def _lora(lora: LoraShown) -> Rows:
    if not lora.layers:
        return [("layers", "none")]
    where = ", ".join(f"{count:,} in the {part} part" for part, count in lora.layers.items())
    endings = ", ".join(f"{ending} ({count:,})" for ending, count in lora.endings.items())
    return [("layers", f"{where}, by {lora.patterns:,} patterns"), ("endings", endings)]


def _experts(experts: ExpertsShown | None) -> Rows:
    if experts is None:
        return []
    kind = "fused weights that bitsandbytes cannot quantise" if experts.fused else "linear layers"
    needed = f"{WORDS_FOR_EXPERTS}{' adapter.dropout=0' if experts.fused else ''}"
    adapted = "adapted" if experts.adapted else f"not adapted ({needed} adapts them)"
    rows = [("experts", f"{experts.weights:,} {kind}, {share(experts.share)} of the language model; {adapted}")]
    named = f": {_names(experts.routers)}" if experts.routers else ""
    return [*rows, ("routers", f"left alone{named}")]


def _pictures(pictures: PicturesShown) -> Rows:
    rows = [(f"{size.width} x {size.height}", _tokens(size)) for size in pictures.sizes]
    if pictures.budget:
        rows.append(("budget", ", ".join(pictures.budget)))
    if pictures.refused:
        rows.append(("budget", f"refused: {pictures.refused}"))
    if pictures.follows:
        rows.append(("can follow", ", ".join(pictures.follows)))
    reasons: dict[str, list[str]] = {}
    for key, reason in pictures.ignores.items():
        reasons.setdefault(reason, []).append(key)
    rows += [("cannot", f"{', '.join(keys)}: {reason}") for reason, keys in reasons.items()]
    taken = {"without a picture": pictures.without_picture, "with two pictures": pictures.several}
    return [*rows, ("rows", "\n".join(f"{row}: {_taken(tried)}" for row, tried in taken.items()))]


def _tokens(size: SizeShown) -> str:
    counted = size.tokens if size.budgeted is None else size.budgeted
    if counted is None:
        return "refused by the processor"
    own = "refused" if size.tokens is None else f"{size.tokens:,}"
    budget = f" ({own} without the budget)" if size.budgeted is not None else ""
    return f"{counted:,} token{'' if counted == 1 else 's'}{budget}"


def _taken(tried: Tried) -> str:
    return "taken by the processor" if tried.possible else f"not possible, {tried.why_not}"


def _adapter(shown: ModelShown) -> Rows:
    adapter = shown.adapter
    counts = {"of LoRA": adapter.lora, "of whole modules": adapter.whole, "bare": adapter.bare}
    listed = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    rows = [("contains", f"{sum(counts.values()):,} tensors, {memory(adapter.size)} in fp32: {listed}")]
    servers = f"refuse {'; '.join(adapter.obstacles)}" if adapter.obstacles else "take it"
    rows.append(("servers", f"{SERVERS} {servers}"))
    if shown.start_from is not None:
        rows.append(("starts from", f"{shown.start_from}, not looked at; what it has whole is saved too"))
    return rows


def _memory(shown: ModelShown) -> str:
    pieces = ", ".join(f"{name} {memory(size)}" for name, size in shown.memory.items())
    work = f"to train on one row of {shown.row_tokens:,} tokens in {shown.compute}"
    return f"about {memory(sum(shown.memory.values()))} {work}: {pieces}"
