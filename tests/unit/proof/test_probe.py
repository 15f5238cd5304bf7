"""The rows an adapter keeps: small, whole, and of no danger to whoever reads them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from qlmm.core.errors import ModelError
from qlmm.core.filenames import PROBE
from qlmm.data.encoding.encoder import Encoder
from qlmm.data.media.images import decode
from qlmm.data.sample import ImageRef, Origin, Sample, Turn
from qlmm.model.numerics.precision import Precision
from qlmm.proof.probe import MOST_BYTES, ROWS, check_answers, difference, explained, probe_rows, tolerance, write_probe
from tests.tiny import tiny_llava, tiny_processor

FP32 = Precision("cpu", "fp32")


def row(path: Path | None, text: str = "what ?") -> Sample:
    asked = (ImageRef(path=path), text) if path is not None else (text,)
    return Sample((Turn("user", asked), Turn("assistant", ("a cat",))), Origin("rows", 1))


@pytest.fixture
def parts() -> tuple[torch.nn.Module, Encoder]:
    processor = tiny_processor("vicuna")
    return tiny_llava(processor), Encoder.make(processor, max_length=200)


def noise(path: Path, side: int) -> Path:
    Image.frombytes("RGB", (side, side), random.Random(side).randbytes(3 * side * side)).save(path)
    return path


def test_what_was_said_is_said_again(parts: tuple[torch.nn.Module, Encoder], tmp_path: Path) -> None:
    rows = [row(noise(tmp_path / f"{side}.png", side)) for side in (60, 40, 50)]
    write_probe(tmp_path, *parts, FP32, rows)
    kept = probe_rows(tmp_path)
    assert [decode(one.images[0]).size for one in kept] == [(40, 40), (50, 50)]
    assert [one.turns[1] for one in kept] == [rows[0].turns[1]] * ROWS
    assert difference(tmp_path, *parts, FP32) == 0
    assert tolerance(tmp_path, FP32) < tolerance(tmp_path, Precision("cpu", "bf16"))


def test_another_model_or_another_processor_says_something_else(
    parts: tuple[torch.nn.Module, Encoder], tmp_path: Path
) -> None:
    model, encoder = parts
    write_probe(tmp_path, model, encoder, FP32, [row(noise(tmp_path / "x.png", 40))])
    assert difference(tmp_path, tiny_llava(tiny_processor("vicuna"), seed=1), encoder, FP32) > 1e-3
    dark = tiny_processor("vicuna")
    dark.image_processor.rescale_factor /= 4
    assert difference(tmp_path, model, Encoder.make(dark, max_length=200), FP32) > tolerance(tmp_path, FP32)
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    assert difference(tmp_path, model, encoder, FP32) == float("inf")


def test_large_pictures_are_scaled_down(parts: tuple[torch.nn.Module, Encoder], tmp_path: Path) -> None:
    rows = [row(noise(tmp_path / f"{side}.png", side)) for side in (900, 800)]
    write_probe(tmp_path, *parts, FP32, rows)
    stored = list((tmp_path / "held-out").iterdir())
    assert len(stored) == ROWS
    assert MOST_BYTES / 3 < sum(path.stat().st_size for path in stored) <= MOST_BYTES
    assert difference(tmp_path, *parts, FP32) == 0


def test_a_picture_keeps_nothing_but_its_pixels(parts: tuple[torch.nn.Module, Encoder], tmp_path: Path) -> None:
    picture = Image.open(noise(tmp_path / "x.png", 40))
    exif = picture.getexif()
    exif[0x010E] = "where it was taken"
    picture.save(tmp_path / "x.jpg", exif=exif)
    write_probe(tmp_path, *parts, FP32, [row(tmp_path / "x.jpg")])
    (stored,) = (tmp_path / "held-out").iterdir()
    assert b"where it was taken" not in stored.read_bytes()
    assert decode(ImageRef(path=stored)).tobytes() == decode(ImageRef(path=tmp_path / "x.jpg")).tobytes()


def test_rows_without_a_picture_serve_where_there_are_no_others(
    parts: tuple[torch.nn.Module, Encoder], tmp_path: Path
) -> None:
    write_probe(tmp_path, *parts, FP32, [row(None, "what is it ?"), row(None)])
    assert [one.turns[0].text for one in probe_rows(tmp_path)] == ["what ?", "what is it ?"]


@pytest.mark.parametrize(
    "picture", ["../secret.png", "held-out/../../x.png", "/etc/passwd", "held-out/1.png\n", "held-out/x.png"]
)
def test_a_probe_cannot_point_elsewhere(picture: str, parts: tuple[torch.nn.Module, Encoder], tmp_path: Path) -> None:
    write_probe(tmp_path, *parts, FP32, [row(noise(tmp_path / "x.png", 40))])
    content = json.loads((tmp_path / PROBE).read_text())
    content["rows"][0]["turns"][0]["parts"][0] = {"picture": picture}
    (tmp_path / PROBE).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"A011.*damaged"):
        probe_rows(tmp_path)


def test_an_adapter_without_a_probe_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"A011.*missing"):
        probe_rows(tmp_path)


def test_answers_are_checked_against_the_recorded_ones(parts: tuple[torch.nn.Module, Encoder], tmp_path: Path) -> None:
    model, encoder = parts
    write_probe(tmp_path, model, encoder, FP32, [row(noise(tmp_path / "x.png", 40))])
    assert "1 rows, largest difference of logits 0 " in check_answers(tmp_path, model, encoder, FP32)
    with pytest.raises(ModelError, match="A016"):
        check_answers(tmp_path, tiny_llava(tiny_processor("vicuna"), seed=1), encoder, FP32)


def test_a_probe_without_rows_proves_nothing(parts: tuple[torch.nn.Module, Encoder], tmp_path: Path) -> None:
    (tmp_path / PROBE).write_text('{"version": 1, "precision": "fp32", "rows": []}')
    with pytest.raises(ModelError, match="A011"):
        check_answers(tmp_path, *parts, FP32)


def test_larger_logits_are_rounded_in_larger_steps() -> None:
    assert explained(5.0, ["fp32"]) == explained(10.0, ["fp32"]) == pytest.approx(1e-4)
    assert explained(30.0, ["fp32", "bf16"]) == pytest.approx(0.3)
    assert explained(float("inf"), ["fp32"]) == explained(float("nan"), ["fp32"]) == pytest.approx(1e-4)


@pytest.mark.parametrize("values", [[[float("inf")]], [[float("nan")]]])
def test_logits_that_are_no_numbers_prove_nothing(
    values: list[list[float]], parts: tuple[torch.nn.Module, Encoder], tmp_path: Path
) -> None:
    write_probe(tmp_path, *parts, FP32, [row(noise(tmp_path / "x.png", 40))])
    probe = json.loads((tmp_path / PROBE).read_text("utf-8"))
    probe["rows"][0] |= {"ids": [[0]] * 4, "values": values * 4}
    (tmp_path / PROBE).write_text(json.dumps(probe))
    with pytest.raises(ModelError, match="A016"):
        check_answers(tmp_path, *parts, FP32)


def test_a_row_without_logits_is_no_crash(parts: tuple[torch.nn.Module, Encoder], tmp_path: Path) -> None:
    write_probe(tmp_path, *parts, FP32, [row(noise(tmp_path / "x.png", 40))])
    probe = json.loads((tmp_path / PROBE).read_text("utf-8"))
    probe["rows"][0] |= {"ids": [[]], "values": [[]]}
    (tmp_path / PROBE).write_text(json.dumps(probe))
    with pytest.raises(ModelError, match=r"A011|A016"):
        check_answers(tmp_path, *parts, FP32)
