"""A picture budget is kept by the image processors themselves, each in its own spelling, or refused with a reason."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import transformers
from PIL import Image
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

from qlmm.core.errors import ModelError
from qlmm.model.image_budget.budget import Budget, agree, apply
from qlmm.model.image_budget.processors import KINDS

LARGE = (1200, 900)
PICTURES = (LARGE, (300, 200), (300, 1500))
Shown = tuple[int, int]
Measure = Callable[[Any, Any], Shown]


def in_patches(out: Any, processor: Any) -> Shown:
    _, height, width = out["image_grid_thw"][0].tolist()
    return 1, height * width * processor.patch_size**2


def in_pixels(out: Any, processor: Any) -> Shown:
    height, width = out["image_sizes"][0].tolist()
    return 1, height * width


def without_overview(count: int, side: int) -> Shown:
    """Tiles, of which one is the whole picture where there are several."""
    return max(1, count - 1), max(1, count - 1) * side**2


def in_slices(out: Any, processor: Any) -> Shown:
    sizes = [height * width * processor.patch_size**2 for height, width in out["target_sizes"].tolist()]
    return max(1, len(sizes) - 1), sum(sizes[1:] or sizes)


def in_lfm2_tiles(out: Any, processor: Any) -> Shown:
    sizes = [height * width * processor.encoder_patch_size**2 for height, width in out["spatial_shapes"].tolist()]
    return max(1, len(sizes) - 1), sum(sizes[:-1] or sizes)


@dataclass(frozen=True)
class Case:
    """An image processor, how to see what it made of a picture, and the keys it follows."""

    name: str
    measure: Measure
    settings: dict[str, Any]
    follows: tuple[str, ...] = ("max_pixels",)

    def build(self) -> Any:
        return getattr(transformers, self.name)(**self.settings)

    def shown(self, processor: Any, size: tuple[int, int]) -> Shown:
        return self.measure(processor(Image.new("RGB", size), return_tensors="pt"), processor)


def case(name: str, measure: Measure, *follows: str, **settings: Any) -> Case:
    return Case(name, measure, settings, follows or ("max_pixels",))


TILES = ("max_pixels", "max_tiles")
SIZES = ("max_pixels", "min_pixels")
CASES = (
    case("Qwen2VLImageProcessorPil", in_patches, *SIZES),
    case("Glm4vImageProcessorPil", in_patches, *SIZES),
    case("PaddleOCRVLImageProcessorPil", in_patches, *SIZES),
    case("HunYuanVLImageProcessorPil", in_patches, *SIZES),
    case("VideoLlama3ImageProcessorPil", in_patches, *SIZES),
    case("Cosmos3EdgeImageProcessorPil", in_patches, *SIZES),
    case("Glm5NextImageProcessorPil", in_patches, *SIZES),
    case("Emu3ImageProcessor", in_pixels, *SIZES),
    case("PixtralImageProcessorPil", in_pixels),
    case("Idefics3ImageProcessorPil", lambda out, p: without_overview(out["pixel_values"].shape[1], 364), *TILES),
    case("GotOcr2ImageProcessorPil", lambda out, p: without_overview(int(out["num_patches"][0]), 384), *TILES,
         crop_to_patches=True),
    case("Ovis2ImageProcessorPil", lambda out, p: without_overview(out["pixel_values"].shape[0], 384), *TILES,
         crop_to_patches=True),
    case("DeepseekOcr2ImageProcessorPil",
         lambda out, p: (int(out["num_local_patches"][0]), int(out["num_local_patches"][0]) * 768**2), *TILES),
    case("GraniteDoclingImageProcessorPil", lambda out, p: without_overview(out["pixel_values"].shape[1], 512), *TILES),
    case("LlavaNextImageProcessorPil", lambda out, p: without_overview(out["pixel_values"].shape[1], 336),
         *TILES, "min_pixels", size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336},
         image_grid_pinpoints=[[336 * rows, 336 * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]),
    case("LlavaOnevisionImageProcessorPil", lambda out, p: without_overview(out["pixel_values"].shape[1], 384),
         *TILES, "min_pixels"),
    case("MiniCPMV4_6ImageProcessorPil", in_slices, *TILES),
    case("Gemma3ImageProcessorPil", lambda out, p: (int(out["num_crops"][0]), 0), "max_tiles", do_pan_and_scan=True,
         pan_and_scan_min_crop_size=50, pan_and_scan_max_num_crops=5, pan_and_scan_min_ratio_to_activate=1.2),
    case("Gemma4ImageProcessorPil", lambda out, p: (1, int(out["num_soft_tokens_per_image"][0]) * 48**2)),
)  # fmt: skip
# transformers has these for torchvision alone.
TORCHVISION = (
    case("Lfm2VlImageProcessor", in_lfm2_tiles, *TILES),
    case("Llama4ImageProcessor", lambda out, p: without_overview(out["pixel_values"].shape[0], 336), *TILES),
    case("PerceptionLMImageProcessor", lambda out, p: without_overview(out["pixel_values"].shape[1], 448), *TILES),
    case("Molmo2ImageProcessor", lambda out, p: without_overview(int(out["image_num_crops"][0]), 378), *TILES),
    case("MuseGlimmerImageProcessor", in_patches),
)
needs_torchvision = pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs torchvision")
ALL = [
    *(pytest.param(one, id=one.name) for one in CASES),
    *(pytest.param(one, id=one.name, marks=needs_torchvision) for one in TORCHVISION),
]


def whole(pictures: Any) -> Any:
    """An image processor as a whole processor has it."""
    return SimpleNamespace(image_processor=pictures)


def follow(one: Case, **budget: int) -> list[Shown]:
    pictures = one.build()
    assert apply(whole(pictures), Budget(**budget))
    set_once = pictures.to_dict()
    apply(whole(pictures), Budget(**budget))
    assert pictures.to_dict() == set_once
    return [one.shown(pictures, size) for size in PICTURES]


@pytest.mark.parametrize("one", ALL)
def test_a_budget_in_pixels_is_kept_and_used(one: Case) -> None:
    if "max_pixels" not in one.follows:
        with pytest.raises(ModelError, match="M060"):
            apply(whole(one.build()), Budget(max_pixels=700_000))
        return
    before = max(one.shown(one.build(), size)[1] for size in PICTURES)
    most = min(before - 1, 700_000)
    pixels = [pixels for _, pixels in follow(one, max_pixels=most)]
    assert max(pixels) <= most < before
    assert pixels[PICTURES.index(LARGE)] > most / 6


@pytest.mark.parametrize("one", ALL)
def test_a_smallest_size_is_kept_or_refused(one: Case) -> None:
    if "min_pixels" not in one.follows:
        with pytest.raises(ModelError, match=rf"M060.*data\.min_pixels: this base's {one.name} "):
            apply(whole(one.build()), Budget(min_pixels=400_000))
        return
    before = min(one.shown(one.build(), size)[1] for size in PICTURES)
    assert min(pixels for _, pixels in follow(one, min_pixels=400_000)) >= 400_000 > before


@pytest.mark.parametrize("one", ALL)
@pytest.mark.parametrize("most", [1, 3])
def test_a_number_of_tiles_is_kept_or_refused(one: Case, most: int) -> None:
    if "max_tiles" not in one.follows:
        with pytest.raises(ModelError, match=rf"M060.*data\.max_tiles: this base's {one.name} "):
            apply(whole(one.build()), Budget(max_tiles=most))
        return
    before = max(one.shown(one.build(), size)[0] for size in PICTURES)
    assert max(tiles for tiles, _ in follow(one, max_tiles=most)) <= most < before


def test_every_kind_is_tried() -> None:
    tried = []
    for one in (*CASES, case("MllamaImageProcessorPil", in_pixels)):
        facts = {"spatial_merge_size": 1, **vars(one.build())}
        tried.append(next(kind for kind in KINDS if kind.fits(facts)))
    left = [kind.marks for kind in KINDS if kind not in tried]
    assert left == [
        ("max_tiles", "tile_size", "max_image_tokens"),
        ("max_num_tiles", "tile_size"),
        ("max_crops", "size.height"),
        ("max_patches", "size.height"),
    ]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("CLIPImageProcessorPil", "gives every picture the same size, 224 × 224"),
        ("SiglipImageProcessorPil", "gives every picture the same size, 224 × 224"),
        ("MllamaImageProcessorPil", "a number of tiles that the model's weights fix (max_image_tiles)"),
        ("FuyuImageProcessorPil", "has no setting for it that qlmm knows"),
    ],
)
@pytest.mark.parametrize("key", ["max_pixels", "min_pixels", "max_tiles"])
def test_a_processor_that_cannot_follow_says_why(name: str, why: str, key: str) -> None:
    pictures = getattr(transformers, name)()
    before = pictures.to_dict()
    with pytest.raises(ModelError) as caught:
        apply(whole(pictures), Budget(**{key: 100_000}))
    (problem,) = caught.value.problems
    assert (problem.code, problem.help) == ("M060", f"leave data.{key} out")
    assert problem.text.startswith(f"data.{key}: this base's {name} ")
    assert why in problem.message
    assert pictures.to_dict() == before


def test_no_budget_changes_nothing() -> None:
    assert apply(whole(transformers.CLIPImageProcessorPil()), Budget()) == ()


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (Budget(max_pixels=5_000, min_pixels=5_001), r"data.min_pixels: 5,001 is above data.max_pixels \(5,000\)"),
        (Budget(min_pixels=2_000_000), "above the model's own largest picture, 1,003,520 pixels"),
    ],
)
def test_a_smallest_size_above_the_largest_is_refused(budget: Budget, says: str) -> None:
    with pytest.raises(ModelError, match=f"M061.*{says}"):
        apply(whole(transformers.Qwen2VLImageProcessorPil()), budget)


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("Qwen2VLImageProcessorPil", 28**2),
        ("Glm5NextImageProcessorPil", 28**2),
        ("Emu3ImageProcessor", 8**2),
        ("PixtralImageProcessorPil", 16**2),
        ("Idefics3ImageProcessorPil", 364**2),
        ("GotOcr2ImageProcessorPil", 384**2),
        ("LlavaOnevisionImageProcessorPil", 384**2),
        ("Gemma4ImageProcessorPil", 70 * 48**2),
    ],
)
def test_less_than_one_tile_or_patch_is_refused_and_the_least_is_named(name: str, least: int) -> None:
    with pytest.raises(ModelError, match=f"M062.*{least:,}"):
        apply(whole(getattr(transformers, name)()), Budget(max_pixels=least - 1))
    assert apply(whole(getattr(transformers, name)()), Budget(max_pixels=least))


def test_what_was_set_is_told_in_words() -> None:
    told = apply(whole(transformers.Qwen2VLImageProcessorPil()), Budget(max_pixels=1_003_520, min_pixels=50_176))
    assert told == ("size.longest_edge 1,003,520 pixels", "size.shortest_edge 50,176 pixels")
    told = apply(whole(transformers.Idefics3ImageProcessorPil()), Budget(max_tiles=1))
    assert told == ("size.longest_edge 364 pixels", "do_image_splitting off")
    told = apply(whole(transformers.LlavaNextImageProcessorPil()), Budget(max_pixels=300_000))
    assert told == ("image_grid_pinpoints: 2 grids",)


def test_the_side_is_a_whole_number_of_merged_patches() -> None:
    pictures = transformers.PixtralImageProcessorPil(patch_size={"height": 14, "width": 14})
    apply(SimpleNamespace(image_processor=pictures, spatial_merge_size=2), Budget(max_pixels=500_000))
    assert pictures.size.longest_edge == 700
    assert pictures(Image.new("RGB", (999, 999)), patch_size=28, return_tensors="pt")["image_sizes"].tolist() == [
        [700] * 2
    ]


class Passing:
    """A processor whose class passes settings to its image processor at every call, as Aya's and DeepSeek's do."""

    images_kwargs: ClassVar = {"crop_to_patches": True, "min_patches": 2, "max_patches": 6}

    def __init__(self, pictures: Any) -> None:
        self.image_processor = pictures

    def tiles(self, size: tuple[int, int]) -> int:
        out = self.image_processor(Image.new("RGB", size), return_tensors="pt", **self.images_kwargs)
        return int(out["num_local_patches"][0])


def test_settings_that_a_class_passes_do_not_undo_the_budget() -> None:
    first, second = (Passing(transformers.DeepseekOcr2ImageProcessorPil()) for _ in range(2))
    apply(first, Budget(max_tiles=2))
    assert (first.tiles(LARGE), second.tiles(LARGE)) == (2, 6)


def test_the_model_is_told_which_grids_are_left() -> None:
    grids = [[28, 56], [56, 28], [56, 56]]
    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 8, "intermediate_size": 8, "image_size": 28,
                       "patch_size": 14, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 8},
        text_config={"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8,
                     "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2},
        image_grid_pinpoints=grids, vision_feature_layer=-1, image_token_id=15,
    )  # fmt: skip
    model = LlavaNextForConditionalGeneration(config).eval()
    side = {"height": 28, "width": 28}
    pictures = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size=side, image_grid_pinpoints=grids
    )
    apply(whole(pictures), Budget(max_tiles=2))
    seen = pictures(Image.new("RGB", (56, 57)), return_tensors="pt")
    with torch.no_grad(), pytest.raises((ValueError, RuntimeError)):
        model.get_image_features(seen["pixel_values"], seen["image_sizes"])
    agree(model, whole(pictures))
    with torch.no_grad():
        assert model.get_image_features(seen["pixel_values"], seen["image_sizes"])
    assert pictures.image_grid_pinpoints == model.config.image_grid_pinpoints == grids[:2]
