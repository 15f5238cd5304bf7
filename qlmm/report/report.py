"""The report of a run: one HTML file that needs nothing outside itself, to keep beside the adapter or to send on.

Questions and answers come from data and from a model, so all text is escaped, and a policy in the page forbids scripts.

Usage: ``write_report(folder / "report.html", RunReport(plan, proof, metrics, answers, recipe_text, versions))``
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from qlmm.core import files, units
from qlmm.core.events import Event, Finished, StepDone, Warned
from qlmm.core.secrets import shareable
from qlmm.proof.records import Answer, PlanFacts, Proof
from qlmm.proof.verdicts import COMPARED, matches, verdicts
from qlmm.report.plot import loss_png, preferences_png

__all__ = ["RunReport", "render_report", "write_report"]


@dataclass(frozen=True, slots=True)
class RunReport:
    """The facts that the report shows: the recipe as YAML, versions by name in the order to show."""

    plan: PlanFacts
    proof: Proof
    metrics: Sequence[Event]
    answers: Sequence[Answer]
    recipe_text: str
    versions: Mapping[str, str]


def write_report(path: Path, report: RunReport) -> None:
    """Write the report in one step, so that a reader never meets half of it."""
    # Half a surrogate pair, which a broken data row may have, cannot be written as UTF-8: it becomes a question mark.
    files.atomic_write(path, render_report(report).encode("utf-8", "replace"))


def render_report(report: RunReport) -> str:
    """The report as HTML."""
    finished = [event.seconds for event in report.metrics if isinstance(event, Finished)]
    warned = [event.message for event in report.metrics if isinstance(event, Warned)]
    peaks = [event.memory_bytes for event in report.metrics if isinstance(event, StepDone)]
    environment = Environment(
        loader=PackageLoader("qlmm.report", ""),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        finalize=_without_secrets,
    )
    environment.filters |= {
        "png": _png, "short": _short, "same": matches,
        "share": units.share, "memory": units.memory, "clock": units.clock,
    }  # fmt: skip
    return environment.get_template("report.html.jinja").render(
        title=PurePath(report.plan.output_dir).name or report.plan.output_dir,
        plan=report.plan,
        proof=report.proof,
        verdicts=verdicts(report.proof),
        compared=COMPARED,
        answers=report.answers,
        recipe_text=report.recipe_text.rstrip(),
        versions=report.versions,
        curve=_png(loss_png(report.metrics)),
        dark_curve=_png(loss_png(report.metrics, dark=True)),
        preferences=_png(preferences_png(report.metrics)),
        dark_preferences=_png(preferences_png(report.metrics, dark=True)),
        seconds=finished[-1] if finished else None,
        # A continued run repeats its warnings.
        warnings=dict.fromkeys([*report.plan.warnings, *warned]),
        peak_bytes=max(peaks, default=0),
    )


def _without_secrets(value: object) -> object:
    """Text as it may be published; pictures and numbers pass."""
    return shareable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _png(picture: bytes | None) -> Markup | None:
    if picture is None:
        return None
    return Markup("data:image/png;base64,{}").format(base64.b64encode(picture).decode("ascii"))


def _short(count: int) -> str:
    """A count of parameters in short: 134.5 M."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
