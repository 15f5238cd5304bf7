"""``qlmm combine``: several adapters of one base made into one, and what each of them loses on the same rows.

Usage: ``combine(["runs/a", "runs/b"], Path("both"), Asked("cat", "0.5,0.5"), as_json=False)``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qlmm.cli.output.console import out, visible
from qlmm.cli.output.library_noise import quiet
from qlmm.core.errors import UsageError

if TYPE_CHECKING:
    from qlmm.artifacts.combine.combine import Combined

__all__ = ["Asked", "combine", "read_weights"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options say.

    Attributes:
        method: how LoRA is combined.
        weights: numbers with commas between them.
        density: share of values that ties keeps.
        rows: rows to measure on; unset: those that the adapters' runs held out.
        image_root: where the pictures of these rows are.
    """

    method: Literal["cat", "linear", "ties"]
    weights: str
    density: float = 0.5
    rows: Path | None = None
    image_root: Path | None = None


def read_weights(text: str) -> tuple[float, ...]:
    """Numbers with commas between them.

    Raises:
        UsageError: K002 when it is something else.
    """
    try:
        return tuple(float(one) for one in text.split(","))
    except ValueError as error:
        help = "give numbers with commas between them, such as 0.7,0.3"
        raise UsageError.one("K002", f"--weights: `{text}` is no list of numbers", help=help) from error


def combine(adapters: Sequence[str], folder: Path, asked: Asked, *, as_json: bool) -> None:
    """Combine, measure, print.

    Args:
        adapters: adapter folders, run directories, Hub ids or zoo:NAME.
        folder: the folder to make.
        asked: how.
        as_json: print one JSON object.

    Raises:
        QlmmError: whatever stands against it.
    """
    weights = read_weights(asked.weights)
    quiet()
    from qlmm.artifacts.combine.combine import Settings
    from qlmm.artifacts.combine.combine import combine as run
    from qlmm.artifacts.combine.heldout import measure_on

    made = run(
        adapters,
        folder,
        Settings(asked.method, weights, asked.density),
        measuring=partial(measure_on, file=asked.rows, image_root=asked.image_root),
        tell=out.talk,
    )
    if as_json:
        facts = {"folder": str(made.folder), "rank": made.rank, "losses": dict(made.losses), "rows": made.rows}
        out.json(facts | {"max_difference": made.proof.max_difference})
    else:
        _show(made)


def _show(made: Combined) -> None:
    out.print(f"combined: {visible(str(made.folder))} (rank {made.rank})")
    for name, loss in made.losses.items():
        out.print(f"held-out loss of {visible(name)}: {loss:.4f} nats per token")
    if made.losses:
        out.print(f"measured on {visible(made.rows)}")
    else:
        out.print(f"note: {visible(made.rows)}; --rows FILE measures on others")
    found = made.proof
    out.print(f"proof: read back in a fresh process, {found.rows} rows differ by {found.max_difference:.3g} at most")
    out.print(f'next: qlmm ask {visible(str(made.folder))} --image picture.png "What is this?"')
