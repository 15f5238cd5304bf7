"""Sources -> samples, with every problem found on the way and a fingerprint of what was read.

Where a source names no format, the first rows are shown to every format. Of those that detect a row, the one of the
highest rank takes it (`qlmm.data.contract.Format.rank`); two of the same rank are an error, not a guess.

Usage: ``loaded = load_samples(recipe.data.sources, max_bad_rows=0.01, resolve=builtin_path)``
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic

from qlmm.core import naming
from qlmm.core.errors import DataError, Problem, Where
from qlmm.data.contract import MOST_NAMES, Format, RawRow, present
from qlmm.data.errors import BadRow, MissingPicture, NoRowLeft, OtherKind, put_back
from qlmm.data.fingerprint import DataFingerprint, SourceCount
from qlmm.data.media.images import BadImage, check
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.media.remembered import NOTHING, Remembered
from qlmm.data.reading.notices import Notices
from qlmm.data.reading.readers import Resolve, picture_folder, read_rows
from qlmm.data.sample import Example, Feedback, ImageRef, Kind, Origin, Part, Planned, Preference, Row, Sample, Turn
from qlmm.data.tracked import Tracked
from qlmm.recipe.schema import Source

__all__ = ["TAKEN", "Bad", "Loaded", "check_images", "detect_format", "identity", "load_format", "load_samples"]

FORMATS = "qlmm.data.formats"
ROWS_TO_DETECT = 20
MOST_NAMED = 10
# Each is kept with its reason; a file of nothing else must not fill the memory.
MOST_BAD = 100_000
# Kinds of rows that serve where one is wanted: a pair is feedback on two answers.
TAKEN: dict[Kind, tuple[Kind, ...]] = {
    "conversation": ("conversation",),
    "preference": ("preference",),
    "feedback": ("feedback", "preference"),
}
_SAYS: dict[Kind, str] = {
    "conversation": "conversations, with one answer each",
    "preference": "preferences, with a chosen and a rejected answer each",
    "feedback": "feedback, with one judged answer each",
}


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that was not taken."""

    origin: Origin
    problem: Problem
    picture: Path | None = None  # the one that is not there


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Row]):
    """All samples in order, per sample the place of its source in ``sources``, and what was left out.

    ``problems`` are those of ``bad``, missing pictures of a source together. ``unused`` names the keys of rows that
    were not read, a line a source; ``warnings`` are what the texts of rows have that is not learned as it may be meant.

    ``pictures`` are the files that were looked at. ``unreadable`` are rows among the samples whose pictures could be
    read when their run was started and now cannot. ``spare`` is how many rows may be left out beside the bad ones.
    """

    samples: tuple[Row, ...]
    source: tuple[int, ...]
    bad: tuple[Bad, ...]
    problems: tuple[Problem, ...]
    sources: tuple[SourceCount, ...]
    fingerprint: str
    unused: tuple[str, ...]
    warnings: tuple[str, ...]
    pictures: Mapping[Path, Planned]
    unreadable: tuple[Bad, ...]
    spare: float

    @property
    def data(self) -> DataFingerprint:
        """The rows as run record and manifest name them."""
        return DataFingerprint(self.fingerprint, self.sources)


@dataclass(slots=True)
class _Read:
    """One source while it is read."""

    source: Source
    images: ImageRoot
    notices: Notices
    format_name: str = "none"
    samples: list[Example] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    pictures: dict[Path, Planned] = field(default_factory=dict)
    unreadable: list[Bad] = field(default_factory=list)

    def count(self) -> SourceCount:
        kept = len(self.samples)
        text_only = sum(not sample.images for sample in self.samples)
        return SourceCount(
            self.source.path, self.format_name, self.source.weight, kept + len(self.bad), kept, text_only
        )


def load_format(name: str) -> Format:
    """The format of a name; UsageError N001 for an unknown one."""
    return naming.load(FORMATS, name, "FORMAT", Format)


def load_samples(
    sources: Sequence[Source],
    *,
    kind: Kind | None = "conversation",
    max_bad_rows: float = 0.0,
    resolve: Resolve = None,
    max_frames: int = 8,
    check_pictures: bool = False,
    remembered: Remembered = NOTHING,
) -> Loaded[Any]:
    """Read all sources; the samples are of the class that belongs to the kind.

    Without a ``kind`` they are of every kind; where feedback is wanted, preferences are taken, too. Up to
    ``max_bad_rows`` bad rows are left out, below 1 a share of all rows; more are refused, with all of them listed. With
    ``check_pictures`` a picture whose header cannot be read makes a bad row.

    A run that goes on has the rows that it was started with: those left out then stay out, and a row whose pictures are
    ``remembered`` keeps its place though they are gone.

    Raises:
        DataError: D001 bad rows, D002/D003 unreadable sources, D004 unknown format, D005 missing pictures,
            D006 too many bad rows, D007 nothing to learn from, D010 rows of the other kind.
    """
    parts = []
    for source in sources:
        root = ImageRoot(picture_folder(source, resolve=resolve), max_frames=max_frames, remembered=remembered)
        parts.append(_read(source, kind, resolve, root, check_pictures))
    bad = [one for part in parts for one in part.bad]
    unreadable = [one for part in parts for one in part.unreadable]
    samples = [sample for part in parts for sample in part.samples]
    problems = tuple(problem for part in parts for problem in _problems(part))
    total, wrong = len(bad) + len(samples), len(bad) + len(unreadable)
    gone = [replace(one.problem, help=put_back(wrong)) for one in unreadable]
    allowed = max_bad_rows if max_bad_rows >= 1 else math.floor(max_bad_rows * total)
    if wrong and max_bad_rows == 0:
        raise DataError([*gone, *problems])
    if wrong > allowed:
        message = f"{wrong} of {total} rows are bad, more than data.max_bad_rows ({max_bad_rows:g})"
        raise DataError([Problem("D006", message), *gone, *problems])
    if not samples:
        nothing = Problem(
            "D007",
            f"nothing to learn from in {', '.join(source.path for source in sources)}: no row is left",
            help="is it the right file? `qlmm data check FILE` lists what is wrong with each row",
        )
        raise NoRowLeft([nothing, *problems])
    return Loaded(
        samples=tuple(samples),
        source=tuple(place for place, part in enumerate(parts) for _ in part.samples),
        bad=tuple(bad),
        problems=problems,
        sources=tuple(part.count() for part in parts),
        fingerprint=_fingerprint(parts),
        unused=tuple(line for part in parts for line in part.notices.unused()),
        warnings=tuple(line for part in parts for line in part.notices.warnings()),
        pictures={path: one for part in parts for path, one in part.pictures.items()},
        unreadable=tuple(unreadable),
        spare=allowed - len(bad),
    )


def _read(source: Source, kind: Kind | None, resolve: Resolve, images: ImageRoot, check_pictures: bool) -> _Read:
    read = _Read(source, images, Notices(source.path))
    rows = read_rows(source, resolve=resolve)
    first = list(islice(rows, ROWS_TO_DETECT))
    objects = [row for _, row in first if not isinstance(row, BadRow)]
    if source.format is None and not objects:
        read.bad += [Bad(origin, row.problem(origin)) for origin, row in chain(first, rows) if isinstance(row, BadRow)]
        return read
    read.format_name = source.format or detect_format(source.path, objects, kind)
    form = load_format(read.format_name)
    if kind is not None and form.kind not in TAKEN[kind]:
        message = f"the rows are {_SAYS[form.kind]} (format {read.format_name}); wanted are {_SAYS[kind]}"
        raise OtherKind(f"{source.path}: {message}", form.kind, _kinds_formats(kind, objects))
    for origin, row in chain(first, rows):
        try:
            read.samples.append(_sample(form, origin, row, read, check_pictures))
        except BadRow as bad:
            picture = bad.path if isinstance(bad, MissingPicture) else None
            read.bad.append(Bad(origin, bad.problem(origin), picture))
        if len(read.bad) > MOST_BAD:
            message = f"{source.path}: more than {MOST_BAD:,} rows are bad; the first of them follow"
            raise DataError([Problem("D006", message), *(one.problem for one in read.bad[:MOST_NAMED])])
    return read


def _sample(form: Format, origin: Origin, row: RawRow | BadRow, read: _Read, headers: bool) -> Example:
    if isinstance(row, BadRow):
        raise row
    tracked = Tracked(row)
    turns = form.read(tracked, read.images)
    sample: Example = Sample(turns, origin)
    if form.kind == "preference":
        sample = Preference(turns[:-2], turns[-2].text, turns[-1].text, origin)
    elif form.kind == "feedback":
        sample = Feedback(turns[:-1], turns[-1].text, form.desirable(row), origin)
    if (origin.file, origin.line) in read.images.remembered.left_out:
        raise BadRow("it was bad when the run was started", "leave data.max_bad_rows as it was, or start a new run")
    sample = _looked_at(sample, read, headers)
    read.notices.add(tracked, sample)
    return sample


def _looked_at(sample: Example, read: _Read, headers: bool) -> Example:
    """The row once its pictures are checked; those that a run had and that are gone, as they are remembered."""
    try:
        read.pictures.update(check_images(sample.images, headers=headers))
        return sample
    except BadRow as bad:
        recalled = read.images.remembered.recalled(sample.images)
        if recalled is None:
            raise
        where = Where(sample.origin.file, sample.origin.line)
        read.unreadable.append(Bad(sample.origin, Problem("D036", bad.reason, where)))
        return sample.with_images(recalled)


def check_images(images: Sequence[ImageRef], *, headers: bool = True) -> dict[Path, Planned]:
    """The files of a row's pictures, with ``headers``; BadRow for the first that is not there or cannot be read."""
    found: dict[Path, Planned] = {}
    for ref in images:
        if ref.path is not None and not os.path.isfile(ref.path):
            raise MissingPicture(ref.path)
        try:
            width, height = check(ref) if headers else (0, 0)
        except BadImage as bad:
            raise BadRow(bad.message, "replace or remove the picture") from None
        if headers and ref.path is not None:
            earlier = found[ref.path].frames if ref.path in found else ()
            frames = (*earlier, str(ref.at)) if ref.at is not None else ()
            found[ref.path] = Planned(_bytes(ref.path), width, height, frames)
    return found


def _bytes(path: Path) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        raise MissingPicture(path) from None


def _detected(row: RawRow, path: str, *, question: bool) -> str | None:
    known = {name: load_format(name) for name in naming.names(FORMATS)}
    ranks = {name: form.rank for name, form in known.items() if form.detect(form.answered(row) if question else row)}
    best = [name for name, rank in ranks.items() if rank == max(ranks.values())]
    if len(best) > 1:
        message = f"{path}: the rows fit the formats {' and '.join(best)} alike"
        raise DataError.one("D011", message, help="name the one that is meant: `format` of this source, or --format")
    return best[0] if best else None


def detect_format(path: str, rows: Sequence[RawRow], kind: Kind | None = None, *, question: bool = False) -> str:
    """The format of a source's first rows; where feedback is wanted, a row without a verdict is a bad one.

    With ``question``, rows that end with their question count as answered.

    Raises:
        DataError: D004 when no format detects a row, D011 when two of the same rank do.
    """
    found = [name for row in rows if (name := _detected(row, path, question=question)) is not None]
    wanted = [name for name in found if kind == load_format(name).kind == "feedback"]
    if found:
        return (wanted or found)[0]
    keys = ", ".join(f"`{key}`" for key in list(rows[0])[:8]) or "none"
    message = f"{path}: the rows are in no known format; their keys are {keys}"
    raise DataError.one("D004", message, help=_nearest(rows[0], question=question))


def _nearest(row: RawRow, *, question: bool) -> str:
    """The format that a row lacks least of, and what is wrong with the row there; all formats where nothing fits."""
    known = {name: load_format(name) for name in naming.names(FORMATS)}
    lacking = {
        name: [keys for keys in form.required if not any(present(row, key) for key in keys.split("|"))]
        for name, form in known.items()
    }
    partly = [name for name, form in known.items() if len(lacking[name]) < len(form.required)]
    if not partly:
        return f"rename the keys to what a known format needs ({'; '.join(map(_needs, known))})"
    name = min(partly, key=lambda name: (len(lacking[name]), -len(known[name].required)))
    try:
        known[name].read(known[name].answered(row) if question else row, ImageRoot("."))
    except BadRow as bad:
        return f"the nearest format is {name}: {bad.reason}; {bad.help}"
    return f"they can be read in the format {name}: name it, `format` of this source, or --format"


def _needs(name: str) -> str:
    """A format and the keys that its rows must have, of several names of a key the usual ones."""
    return f"{name}: {' + '.join('/'.join(keys.split('|')[:MOST_NAMES]) for keys in load_format(name).required)}"


def _kinds_formats(kind: Kind, rows: Sequence[RawRow]) -> str:
    """Which formats rows of a kind come in, and which keys the rows have instead."""
    needs = "; ".join(_needs(name) for name in naming.names(FORMATS) if load_format(name).kind == kind)
    keys = ", ".join(f"`{key}`" for key in list(rows[0])[:8]) if rows else "none"
    return f"{_SAYS[kind]}, come in the formats {needs}; the keys here are {keys}"


def _problems(part: _Read) -> Iterator[Problem]:
    """A source's problems, all missing pictures as one."""
    missing = [bad.picture for bad in part.bad if bad.picture is not None]
    if missing:
        yield _missing(part, missing)
    yield from (bad.problem for bad in part.bad if bad.picture is None)


def _missing(part: _Read, missing: Sequence[Path]) -> Problem:
    root = part.images.folder.resolve()
    named = [str(path.relative_to(root) if path.is_relative_to(root) else path) for path in missing]
    listed = ", ".join(named[:MOST_NAMED]) + (" …" if len(named) > MOST_NAMED else "")
    total = len(part.samples) + len(part.bad)
    message = f"{part.source.path}: {len(missing)} of {total} rows name pictures that are not in {root}: {listed}"
    help = "is `image_root` the folder that the paths start from?"
    if part.source.image_root is None:
        help = "name the folder that the paths start from: `image_root` of this source"
    return Problem("D005", message, help=help)


def _fingerprint(parts: Sequence[_Read]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        root = part.images.folder.resolve()
        for sample in part.samples:
            digest.update(identity(sample.content, root))
    return digest.hexdigest()


def identity(turns: Sequence[Turn], root: Path) -> bytes:
    """Turns as fingerprints see them: pictures by name under their root and size, or by content where inline.

    Hashing every picture would read the whole data set; a changed picture of the same size goes unnoticed.
    """
    parts = [
        [turn.role, *(_identity(one, root) for one in turn.parts), *([] if turn.learned else [{"learned": False}])]
        for turn in turns
    ]
    return json.dumps(parts, ensure_ascii=False).encode("utf-8") + b"\n"


def _identity(part: Part, root: Path) -> object:
    if isinstance(part, str):
        return part
    frame = {} if part.at is None else {"at": str(part.at)}
    if part.path is None:
        return {"sha256": hashlib.sha256(part.data or b"").hexdigest(), **frame}
    name = part.path.relative_to(root) if part.path.is_relative_to(root) else Path(part.path.name)
    # A question that is not asked may name a picture that is not there.
    size = part.planned.bytes if part.planned else os.path.getsize(part.path) if part.path.is_file() else 0
    return {"name": name.as_posix(), "bytes": size, **frame}
