"""A few rows and the trained model's logits on them, kept with the adapter so that its answers can be checked again.

The rows are text and pictures, not tensors: a comparison encodes them anew with the processor that lies beside them,
which proves the processor too. Of pictures the pixels are stored, without what else a camera wrote into the file.

Usage: ``write_probe(folder, model, encoder, precision, rows); difference(folder, loaded.model, loaded.encoder, …)``
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import BytesIO
from itertools import count
from math import isfinite, isqrt, prod
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from qlmm.core.errors import ModelError
from qlmm.core.filenames import PICTURES, PROBE
from qlmm.core.files import atomic_write
from qlmm.core.json_files import read_small
from qlmm.core.secrets import redact
from qlmm.data.encoding.encoder import Encoder
from qlmm.data.media.images import decode, size
from qlmm.data.sample import ImageRef, Origin, Part, Role, Sample, Turn
from qlmm.model.numerics.precision import Precision
from qlmm.model.token_losses import evaluating, last_logits

__all__ = ["ROWS", "check_answers", "difference", "explained", "probe_rows", "tolerance", "write_probe"]

ROWS = 2
MOST_BYTES = 280_000  # of all pictures together
POSITIONS, LARGEST = 4, 32
# An upper bound for noise: three bytes a pixel, and what the format adds.
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
    """Store the smallest of these rows in an adapter folder, with the model's largest logits of their last positions.

    Rows of one kind are stored: with pictures where there are any.
    """
    (folder / PICTURES).mkdir(exist_ok=True)
    kind = [row for row in rows if row.images] or list(rows)
    numbers = count(1)
    recorded = []
    for row in sorted(kind, key=_size)[:ROWS]:
        share = MOST_BYTES // (ROWS * max(1, len(row.images)))
        stored = row.with_images(tuple(_stored(folder, ref, next(numbers), share) for ref in row.images))
        # Without keys before it is answered: what is stored is what was asked.
        stored = replace(stored, turns=tuple(replace(turn, parts=_without_keys(turn)) for turn in stored.turns))
        largest = _logits(model, encoder, precision, stored)
        values, ids = largest.topk(min(LARGEST, largest.shape[1]), dim=1)
        turns = [_Turn(role=turn.role, parts=[_written(part) for part in turn.parts]) for turn in stored.turns]
        recorded.append(_Row(turns=turns, ids=ids.tolist(), values=values.tolist()))
    probe = _Probe(precision=precision.name, rows=recorded)
    atomic_write(folder / PROBE, probe.model_dump_json(indent=1) + "\n")


def probe_rows(folder: Path) -> tuple[Sample, ...]:
    """The rows of a probe, pictures included.

    Raises:
        ModelError: A011 when there is no probe, or it is damaged; so for everything that reads one.
    """
    return _samples(folder, _read(folder))


def difference(folder: Path, model: nn.Module, encoder: Encoder, precision: Precision) -> float:
    """The largest absolute difference to the recorded logits; infinite when one of them is not a number."""
    probe, found = _read(folder), 0.0
    for row, sample in zip(probe.rows, _samples(folder, probe), strict=True):
        logits = _logits(model, encoder, precision, sample)
        ids, values = torch.tensor(row.ids), torch.tensor(row.values)
        if ids.shape[0] != logits.shape[0] or int(ids.max()) >= logits.shape[1]:
            return float("inf")
        apart = (logits.gather(1, ids) - values).abs().max()
        # A NaN compares as "no difference" nowhere: it must fail.
        found = max(found, float(apart) if torch.isfinite(apart) else float("inf"))
    return found


def check_answers(folder: Path, model: nn.Module, encoder: Encoder, precision: Precision) -> str:
    """Ask base and adapter the probe's rows once more; returns how far apart the logits are, in words.

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
    """The difference that arithmetic alone explains: that of the coarser precision of then and now."""
    probe = _read(folder)
    peak = max((abs(value) for row in probe.rows for values in row.values for value in values), default=0.0)
    return explained(peak, [probe.precision] if probe.precision == precision.name else TOLERANCE)


def explained(peak: float, precisions: Iterable[str]) -> float:
    """How far logits of this size may be apart when they were computed, or weights stored, in these precisions."""
    # Logits that are not numbers explain nothing.
    larger = max(1.0, peak / USUAL_LOGITS) if isfinite(peak) else 1.0
    return max(TOLERANCE[name] for name in precisions) * larger


def _read(folder: Path) -> _Probe:
    try:
        return _Probe.model_validate_json(read_small(folder / PROBE))
    except (OSError, ValidationError) as error:
        why = "is missing" if isinstance(error, OSError) else "is damaged"
        raise ModelError.one(
            "A011",
            f"{folder / PROBE} {why}: the trained model's answers cannot be compared",
            help="fetch the adapter again; one that an older qlmm made has no probe",
        ) from error


def _samples(folder: Path, probe: _Probe) -> tuple[Sample, ...]:
    def part(written: str | _Picture) -> Part:
        return written if isinstance(written, str) else ImageRef(path=folder / written.picture)

    return tuple(
        Sample(
            tuple(Turn(turn.role, tuple(part(one) for one in turn.parts)) for turn in row.turns),
            Origin(str(folder / PROBE), number),
        )
        for number, row in enumerate(probe.rows, 1)
    )


def _size(row: Sample) -> tuple[int, int]:
    """Pixels and characters of a row."""
    return sum(prod(size(ref)) for ref in row.images), sum(len(turn.text) for turn in row.turns)


def _stored(folder: Path, ref: ImageRef, number: int, most: int) -> ImageRef:
    """A picture's pixels as a PNG file, scaled down where they would take more than `most` bytes."""
    picture, content = decode(ref), BytesIO()
    picture.save(content, "PNG", optimize=True)
    if content.tell() > most:
        side = max(SMALLEST_SIDE, isqrt(int(most / PNG_BYTES_PER_PIXEL)))
        picture.thumbnail((side, side))
        content = BytesIO()
        picture.save(content, "PNG", optimize=True)
    path = folder / PICTURES / f"{number}.png"
    path.write_bytes(content.getvalue())
    return ImageRef(path=path)


def _without_keys(turn: Turn) -> tuple[Part, ...]:
    return tuple(redact(part) if isinstance(part, str) else part for part in turn.parts)


def _written(part: Part) -> str | _Picture:
    return part if isinstance(part, str) else _Picture(picture=f"{PICTURES}/{part.name}")


def _logits(model: nn.Module, encoder: Encoder, precision: Precision, row: Sample) -> Tensor:
    """Logits (4, vocabulary) of a row's last four positions, in fp32 on the host."""
    batch = {name: value.to(precision.device) for name, value in encoder.batch([row]).items() if name != "labels"}
    with evaluating(model), precision.autocast():
        return last_logits(model, batch, POSITIONS)[0].float().cpu()
