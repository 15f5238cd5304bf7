"""How image processors spell a picture budget: one row of the table ``KINDS`` for each way there is.

Rows go by the attributes that an image processor has, not by names of models. A row gives new values of attributes;
``qlmm.model.image_budget.budget`` sets them. A tile budget counts the tiles that a picture is cut into; the small
picture of the whole, which most models add, comes on top.

Usage: ``kind = next(kind for kind in KINDS if kind.fits(facts)); kind.change(Asked(image_processor, facts, budget))``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from qlmm.core.errors import ModelError
from qlmm.recipe.schema import DataSection

__all__ = ["KINDS", "Asked", "Budget", "Changes", "Kind", "NotFollowed", "check_order"]

# Gemma 4 was trained with these many tokens a picture, and its processor takes no others.
SOFT_TOKENS = (70, 140, 280, 560, 1120)
Changes = dict[str, Any]


class NotFollowed(ModelError):
    """A key of the pixel budget that a processor has no setting for."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A recipe's keys of picture size, under ``data``; None leaves it to the model."""

    max_pixels: int | None = None
    min_pixels: int | None = None
    max_tiles: int | None = None

    @classmethod
    def of(cls, data: DataSection) -> Budget:
        """The budget of a recipe."""
        return cls(data.max_pixels, data.min_pixels, data.max_tiles)

    def tiles(self, area: int) -> int:
        """The most tiles of an area in pixels that both limits allow."""
        allowed = (self.max_tiles, _units(self.max_pixels, area, "tile"))
        return min(count for count in allowed if count is not None)


@dataclass(frozen=True, slots=True)
class Asked:
    """An image processor and the budget it is to follow.

    Attributes:
        facts: its attributes, and what the whole processor passes to it instead.
    """

    processor: Any
    facts: Mapping[str, Any]
    budget: Budget

    def edges(self, **values: int | None) -> Changes:
        """A new ``size`` with other edges; None leaves an edge as it is."""
        size = self.facts["size"]
        given = {edge: value for edge, value in values.items() if value is not None}
        return {"size": type(size)(**{**dict(size), **given})}

    @property
    def token(self) -> int:
        """Side of the square that becomes one token, in pixels."""
        return int(self.facts["patch_size"] * self.facts["merge_size"])

    def refuse(self, key: str, why: str) -> NotFollowed:
        """M060: the budget's key cannot be followed."""
        name = type(self.processor).__name__
        return NotFollowed.one("M060", f"this base's {name} {why}", help=f"leave data.{key} out", key=f"data.{key}")


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to spell a budget.

    Attributes:
        marks: attributes that an image processor of the kind has; ``size.longest_edge`` is one of a size.
        follows: keys of the budget it can follow; ``why_not`` is the reason for the others.
        change: new values of its attributes, for a budget with at least one of these keys.
    """

    marks: tuple[str, ...]
    follows: tuple[str, ...]
    change: Callable[[Asked], Changes]
    why_not: str

    def fits(self, facts: Mapping[str, Any]) -> bool:
        """Whether an image processor with these attributes is of this kind."""
        parted = [mark.partition(".") for mark in self.marks]
        return all(
            name in facts if not edge else dict(facts.get(name) or {}).get(edge) is not None for name, _, edge in parted
        )


def check_order(least: int | None, most: int | None, own: str = "") -> None:
    """Refuse (M061) a smallest size above the largest, which is the model's ``own`` if the recipe has none."""
    if least is not None and most is not None and least > most:
        where = f"the model's own largest picture, {most:,} pixels ({own})" if own else f"data.max_pixels ({most:,})"
        help = "lower data.min_pixels, or give a larger data.max_pixels"
        raise ModelError.one("M061", f"{least:,} is above {where}", help=help, key="data.min_pixels")


def _units(max_pixels: int | None, area: int, what: str) -> int | None:
    """How many tiles, tokens or patches of an area fit, None for None; raises M062 when not even one does."""
    if max_pixels is None:
        return None
    if max_pixels < area:
        message = f"data.max_pixels ({max_pixels:,}) is less than one {what} of this base, which has {area:,} pixels"
        raise ModelError.one("M062", message, help=f"give at least {area:,}, or leave data.max_pixels out")
    return max_pixels // area


def _areas(asked: Asked) -> Changes:
    budget, size = asked.budget, asked.facts["size"]
    _units(budget.max_pixels, asked.token**2, "token")
    frames = _frames_counted(asked)
    most = budget.max_pixels and budget.max_pixels * frames
    least = budget.min_pixels and budget.min_pixels * frames
    if most is None:
        check_order(budget.min_pixels, size["longest_edge"] // frames, "size.longest_edge")
    return asked.edges(longest_edge=most, shortest_edge=least or (most and min(most, size["shortest_edge"])))


def _frames_counted(asked: Asked) -> int:
    """How often a still picture's pixels count: GLM-4V counts it as the frames of a clip, Qwen2-VL once.

    Found by trying: a picture of exactly as many pixels as are allowed keeps its size, unless it counts more than once.
    """
    side = 8 * asked.token
    size = {"longest_edge": side**2, "shortest_edge": asked.token**2}
    shown = asked.processor(Image.new("RGB", (side, side)), size=size, return_tensors="pt")["image_grid_thw"][0]
    whole = int(shown[1] * shown[2]) * asked.facts["patch_size"] ** 2 == side**2
    return 1 if whole else int(asked.facts["temporal_patch_size"])


def _attributes(asked: Asked) -> Changes:
    budget, facts = asked.budget, asked.facts
    most = budget.max_pixels or facts["max_pixels"]
    _units(most, facts["spatial_factor"] ** 2, "patch")
    check_order(budget.min_pixels, most, "max_pixels")
    least = budget.min_pixels or min(most, facts["min_pixels"])
    return {"max_pixels": most, "min_pixels": least, "size": {"min_pixels": least, "max_pixels": most}}


def _tokens(asked: Asked) -> Changes:
    budget, facts, area = asked.budget, asked.facts, asked.token**2
    most = _units(budget.max_pixels, area, "token") or facts["max_image_tokens"]
    changes = {"max_image_tokens": most}
    if "min_image_tokens" in facts:
        check_order(budget.min_pixels, most * area, "max_image_tokens")
        least = math.ceil((budget.min_pixels or 0) / area)
        changes["min_image_tokens"] = least or min(most, facts["min_image_tokens"])
    elif budget.min_pixels is not None:
        raise asked.refuse("min_pixels", "has no smallest size")
    return changes


def _soft_tokens(asked: Asked) -> Changes:
    area = (asked.facts["patch_size"] * asked.facts["pooling_kernel_size"]) ** 2
    most = asked.budget.max_pixels
    _units(most, SOFT_TOKENS[0] * area, "picture")
    return {"max_soft_tokens": max(tokens for tokens in SOFT_TOKENS if tokens * area <= (most or 0))}


def _sides(asked: Asked) -> Changes:
    """The longest side: a square of it is the largest picture there is."""
    facts, most = asked.facts, asked.budget.max_pixels or 0
    patch = facts["patch_size"]
    unit = (patch if isinstance(patch, int) else patch["height"]) * facts["spatial_merge_size"]
    _units(most, unit**2, "token")
    return asked.edges(longest_edge=math.isqrt(most) // unit * unit)


def _tiled_side(asked: Asked) -> Changes:
    """Idefics 3 scales the longest side, up or down, to a whole number of tiles."""
    tile = asked.facts["max_image_size"]["longest_edge"]
    rows = math.isqrt(asked.budget.tiles(tile**2))
    return {**asked.edges(longest_edge=rows * tile), **({"do_image_splitting": False} if rows == 1 else {})}


def _grid(asked: Asked) -> Changes:
    """GotOcr2 (InternVL, Aya) and its descendants cut along the best of all grids between two numbers of tiles."""
    facts, budget = asked.facts, asked.budget
    size, tile = facts["size"], facts.get("tile_size")
    most = budget.tiles(tile**2 if tile else size["height"] * size["width"])
    lower = {name: min(most, facts[name]) for name in ("min_patches", "dense_max_patches") if facts.get(name)}
    return {"max_patches": most, **lower}


def _grids(asked: Asked) -> Changes:
    """LLaVA-NeXT fits a picture into the best of a list of grids, each (height, width) in pixels."""
    facts, budget = asked.facts, asked.budget
    crop, size = dict(facts.get("crop_size") or {}), dict(facts["size"])
    tile = crop.get("height") or size.get("height") or size["shortest_edge"]
    grids = [(height * width, [height, width]) for height, width in facts["image_grid_pinpoints"]]
    most = min(budget.max_pixels or math.inf, (budget.max_tiles or math.inf) * tile**2)
    kept = [grid for area, grid in grids if (budget.min_pixels or 0) <= area <= most]
    if not kept:
        listed = ", ".join(f"{area:,}" for area in sorted({area for area, _ in grids})[:4])
        message = f"no grid of this base has the size that data asks for; in pixels, they have {listed} …"
        raise ModelError.one("M062", message, help="allow at least one of them")
    return {"image_grid_pinpoints": kept}


def _slices(asked: Asked) -> Changes:
    """MiniCPM-V rounds each slice to whole tokens, which adds up to half a token's side."""
    unit = asked.facts["patch_size"] * (2 if asked.facts["downsample_mode"] == "4x" else 4)
    return {"max_slice_nums": asked.budget.tiles((asked.facts["scale_resolution"] + unit // 2) ** 2)}


def _tiles(name: str) -> Callable[[Asked], Changes]:
    """Tiles of one size, counted under this name."""

    def change(asked: Asked) -> Changes:
        side = asked.facts.get("tile_size") or asked.facts["size"]["height"]
        return {name: asked.budget.tiles(side**2)}

    return change


def _tiles_or_tokens(asked: Asked) -> Changes:
    """LFM2-VL shows small pictures whole, within a number of tokens, and cuts large ones into two tiles or more."""
    facts, budget = asked.facts, asked.budget
    unit = (facts["encoder_patch_size"] * facts["downsample_factor"]) ** 2
    whole = _units(budget.max_pixels, unit, "token") or facts["max_image_tokens"]
    tile = facts["tile_size"] ** 2
    small = budget.max_pixels is not None and budget.max_pixels < tile
    tiles = 1 if small else budget.tiles(tile)
    if tiles > 1:
        return {"max_tiles": tiles}
    tokens = min(whole, facts["max_image_tokens"])
    least = min(tokens, facts["min_image_tokens"])
    return {"do_image_splitting": False, "max_image_tokens": tokens, "min_image_tokens": least}


def _crops(asked: Asked) -> Changes:
    most = asked.budget.max_tiles
    return {"pan_and_scan_max_num_crops": most, **({"do_pan_and_scan": False} if most == 1 else {})}


PIXELS, TILES = ("max_pixels", "min_pixels"), ("max_pixels", "max_tiles")
NO_TILES, NO_LEAST = "does not cut pictures into tiles", "has no smallest size"
ONLY_MOST = "only follows data.max_pixels"
FIXED = "has a number of tiles that the model's weights fix (max_image_tiles)"
# The first whose marks an image processor has decides; comments name the models.
KINDS = (
    # Qwen2-VL to 4, GLM-4V, ERNIE, PaddleOCR, Hunyuan, VideoLLaMA 3: edges that are areas in pixels.
    Kind(("merge_size", "size.longest_edge", "size.shortest_edge"), PIXELS, _areas, NO_TILES),
    # LFM2-VL.
    Kind(("max_tiles", "tile_size", "max_image_tokens"), TILES, _tiles_or_tokens, NO_LEAST),
    # GLM-5, Muse.
    Kind(("max_image_tokens", "merge_size"), PIXELS, _tokens, NO_TILES),
    # Idefics 3, SmolVLM.
    Kind(("max_image_size", "do_image_splitting", "size.longest_edge"), TILES, _tiled_side, NO_LEAST),
    # InternVL, GOT, Aya, Cohere, Ovis 2, DeepSeek-OCR, Granite Docling.
    Kind(("crop_to_patches", "max_patches"), TILES, _grid, NO_LEAST),
    # LLaVA-NeXT, LLaVA-OneVision, Granite Vision.
    Kind(("image_grid_pinpoints",), (*TILES, "min_pixels"), _grids, ""),
    # Llama 3.2 Vision: its weights have one embedding per arrangement of tiles, numbered by the model's own limit.
    Kind(
        ("max_image_tiles",),
        (),
        lambda asked: {},
        "has a number of tiles that the model's weights fix (max_image_tiles)",
    ),
    # Gemma 3.
    Kind(("pan_and_scan_max_num_crops",), ("max_tiles",), _crops, "gives every picture and crop the same size"),
    # Gemma 4.
    Kind(("max_soft_tokens", "pooling_kernel_size"), ("max_pixels",), _soft_tokens, ONLY_MOST),
    # MiniCPM-V.
    Kind(("max_slice_nums", "scale_resolution"), TILES, _slices, NO_LEAST),
    # Perception LM, Molmo 2.
    Kind(("max_num_tiles", "tile_size"), TILES, _tiles("max_num_tiles"), NO_LEAST),
    Kind(("max_crops", "size.height"), TILES, _tiles("max_crops"), NO_LEAST),
    # Llama 4.
    Kind(("max_patches", "size.height"), TILES, _tiles("max_patches"), NO_LEAST),
    # Pixtral, Mistral 3, LightOnOCR.
    Kind(("size.longest_edge", "patch_size"), ("max_pixels",), _sides, ONLY_MOST),
    # Emu 3.
    Kind(("min_pixels", "max_pixels", "spatial_factor"), PIXELS, _attributes, NO_TILES),
)
