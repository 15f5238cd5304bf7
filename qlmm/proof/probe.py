"""A few rows and what the trained model said to them, kept with the adapter so that anybody can ask it again.

The rows are text and pictures, not tensors: whoever compares encodes them anew with the processor that lies beside
them, which proves the processor too. Pictures are stored as the model was shown them, without what else a camera
wrote into the file.

Usage: ``write_probe(folder, model, encoder, precision, rows); difference(folder, loaded.model, loaded.encoder, …)``
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from itertools import count
from math import isfinite, isqrt
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from qlmm.core.errors import ModelError
from qlmm.core.filenames import PICTURES, PROBE
from qlmm.core.files import atomic_write
from qlmm.data.encoding.encoder import Encoder
from qlmm.data.media.images import decode, size
from qlmm.data.sample import ImageRef, Origin, Part, Role, Sample, Turn
from qlmm.model.numerics.precision import Precision
from qlmm.model.token_losses import last_logits

__all__ = [
    "ROWS",
    "check_answers",
    "difference",
    "explained",
    "probe_rows",
    "tolerance",
    "write_probe",
]

ROWS = 2
MOST_BYTES = 280_000  # of all pictures together
POSITIONS, LARGEST = 4, 32
# An upper bound of what a byte of PNG holds of noise: three bytes a pixel, and what the format adds.
PNG_BYTES_PER_PIXEL = 3.1
SMALLEST_SIDE = 8

# The same arithmetic on the same machine should give the same bits; these bounds only leave room for kernels that pick
# another order of summation. A lost connector changes logits by whole units.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
# Logits of this size are what they were made for; larger ones are rounded in larger steps.
USUAL_LOGITS = 10.0


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")


class _Picture(_Record):
    # Nothing but a name of our own making: a probe from elsewhere must not read other files.
    picture: Annotated[str, Field(pattern=r"^held-out/[0-9]+\.png$")]


class _Turn(_Record):
    role: Role
    parts: list[str | _Picture]


class _Row(_Record):
    """A conversation, and per position (from the fourth last to the last) ids and values of the largest logits."""

    turns: list[_Turn]
    ids: list[list[int]]
    values: list[list[float]]


class _Probe(_Record):
    version: Literal[1] = 1
    precision: Literal["bf16", "fp16", "fp32"]
    rows: Annotated[list[_Row], Field(min_length=1)]


def write_probe(folder: Path, model: nn.Module, encoder: Encoder, precision: Precision, rows: Sequence[Sample]) -> None:
    """Store the smallest rows with pictures, and the model's largest logits of their last positions.

    Args:
        folder: the adapter folder.
        model: base and adapter, as trained.
        encoder: as trained with.
        precision: what the model computes in.
        rows: rows to choose from.
    """
    (folder / PICTURES).mkdir(exist_ok=True)
    numbers = count(1)
    stored = [_store(folder, row, numbers) for row in _smallest(rows)]
    probe = _Probe(precision=precision.name, rows=[_said(folder, row, model, encoder, precision) for row in stored])
    atomic_write(folder / PROBE, probe.model_dump_json(indent=1) + "\n")


def probe_rows(folder: Path) -> tuple[Sample, ...]:
    """The rows of a probe, pictures included.

    Raises:
        ModelError: A011 when there is no probe, or it is damaged.
    """
    return tuple(_sample(folder, row.turns, number) for number, row in enumerate(_read(folder).rows, 1))


def difference(folder: Path, model: nn.Module, encoder: Encoder, precision: Precision) -> float:
    """The largest absolute difference to the recorded logits; infinite when one of them is no number.

    Raises:
        ModelError: A011 when there is no probe, or it is damaged.
    """
    found = 0.0
    for number, row in enumerate(_read(folder).rows, 1):
        logits = _logits(model, encoder, precision, _sample(folder, row.turns, number))
        ids, values = torch.tensor(row.ids), torch.tensor(row.values)
        if ids.shape[0] != logits.shape[0] or int(ids.max()) >= logits.shape[1]:
            return float("inf")
        apart = (logits.gather(1, ids) - values).abs().max()
        # A NaN compares as "no difference" nowhere: it must fail.
        found = max(found, float(apart) if torch.isfinite(apart) else float("inf"))
    return found


def check_answers(folder: Path, model: nn.Module, encoder: Encoder, precision: Precision) -> str:
    """Ask base and adapter the probe's rows once more.

    Raises:
        ModelError: A011 without a whole probe, A016 when the answers are not the recorded ones.
    """
    apart, most = difference(folder, model, encoder, precision), tolerance(folder, precision)
    if not apart <= most:
        raise ModelError.one(
            "A016",
            f"logits differ from the recorded ones by {apart:.3g}, more than {most:.2g}",
            help="base, processor or adapter are not those of the run, although they look alike; pin the base as "
            "id@revision and fetch both again",
        )
    return f"{len(_read(folder).rows)} rows, largest difference of logits {apart:.3g} (at most {most:.2g})"


def tolerance(folder: Path, precision: Precision) -> float:
    """The difference that arithmetic alone explains: that of the coarser precision of then and now.

    Raises:
        ModelError: A011 when there is no probe, or it is damaged.
    """
    probe = _read(folder)
    peak = max((abs(value) for row in probe.rows for values in row.values for value in values), default=0.0)
    return explained(peak, [probe.precision] if probe.precision == precision.name else TOLERANCE)


def explained(peak: float, precisions: Iterable[str]) -> float:
    """How far logits of this size may be apart when they were computed, or weights stored, in these precisions."""
    # Logits that are no numbers explain nothing.
    larger = max(1.0, peak / USUAL_LOGITS) if isfinite(peak) else 1.0
    return max(TOLERANCE[name] for name in precisions) * larger


def _read(folder: Path) -> _Probe:
    try:
        return _Probe.model_validate_json((folder / PROBE).read_bytes())
    except (OSError, ValidationError) as error:
        why = "is missing" if isinstance(error, OSError) else "is damaged"
        raise ModelError.one(
            "A011",
            f"{folder / PROBE} {why}: what the trained model said cannot be compared",
            help="fetch the adapter again; one that an older qlmm made has no probe",
        ) from error


def _smallest(rows: Sequence[Sample]) -> list[Sample]:
    """The rows of fewest pixels, of one kind: with pictures where there are any."""
    kind = [row for row in rows if row.images] or list(rows)
    return sorted(kind, key=lambda row: (sum(_pixels(ref) for ref in row.images), _letters(row)))[:ROWS]


def _pixels(ref: ImageRef) -> int:
    width, height = size(ref)
    return width * height


def _letters(row: Sample) -> int:
    return sum(len(turn.text) for turn in row.turns)


def _store(folder: Path, row: Sample, numbers: Iterator[int]) -> Sample:
    """Write a row's pictures; the row that shows the files instead."""
    share = MOST_BYTES // (ROWS * max(1, len(row.images)))
    kept = []
    for ref in row.images:
        path = folder / PICTURES / f"{next(numbers)}.png"
        path.write_bytes(_png(ref, share))
        kept.append(ImageRef(path=path))
    return row.with_images(tuple(kept))


def _png(ref: ImageRef, most: int) -> bytes:
    """The picture's pixels as PNG; scaled down where they would take more than so many bytes."""
    picture = decode(ref)
    whole = BytesIO()
    picture.save(whole, "PNG", optimize=True)
    if whole.tell() <= most:
        return whole.getvalue()
    side = max(SMALLEST_SIDE, isqrt(int(most / PNG_BYTES_PER_PIXEL)))
    picture.thumbnail((side, side))
    small = BytesIO()
    picture.save(small, "PNG", optimize=True)
    return small.getvalue()


def _said(folder: Path, row: Sample, model: nn.Module, encoder: Encoder, precision: Precision) -> _Row:
    largest = _logits(model, encoder, precision, row)
    values, ids = largest.topk(min(LARGEST, largest.shape[1]), dim=1)
    turns = [_Turn(role=turn.role, parts=[_written(folder, part) for part in turn.parts]) for turn in row.turns]
    return _Row(turns=turns, ids=ids.tolist(), values=values.tolist())


def _written(folder: Path, part: Part) -> str | _Picture:
    if isinstance(part, str):
        return part
    if part.path is None:
        raise ValueError("a stored row shows files")
    return _Picture(picture=part.path.relative_to(folder).as_posix())


def _sample(folder: Path, turns: Sequence[_Turn], number: int) -> Sample:
    def part(written: str | _Picture) -> Part:
        return written if isinstance(written, str) else ImageRef(path=folder / written.picture)

    return Sample(
        tuple(Turn(turn.role, tuple(part(one) for one in turn.parts)) for turn in turns),
        Origin(str(folder / PROBE), number),
    )


@torch.no_grad()
def _logits(model: nn.Module, encoder: Encoder, precision: Precision, row: Sample) -> Tensor:
    """Logits (4, vocabulary) of a row's last four positions, in fp32 on the host."""
    was_training = model.training
    model.eval()
    batch = {name: value.to(precision.device) for name, value in encoder.batch([row]).items() if name != "labels"}
    with precision.autocast():
        logits = last_logits(model, batch, POSITIONS)[0]
    model.train(was_training)
    return logits.float().cpu()
