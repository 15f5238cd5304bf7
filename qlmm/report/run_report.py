"""The curve, the pictures and the report of a finished run, from what it wrote down.

Usage: ``report_run(folder, read_record(folder))``
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qlmm.core.errors import RunError
from qlmm.core.filenames import PICTURES
from qlmm.core.files import atomic_write
from qlmm.core.staging import emptied
from qlmm.recipe.load import as_yaml
from qlmm.report.plot import loss_png, preferences_png
from qlmm.report.report import RunReport, write_report
from qlmm.training.logbook import read_metrics
from qlmm.training.run_dir import RunRecord

__all__ = ["CURVE", "METRICS", "REPORT", "report_run"]

METRICS, CURVE, REPORT = "metrics.jsonl", "loss.png", "report.html"


def report_run(path: Path, record: RunRecord) -> None:
    """The curve and the report, from what the run wrote down; the report comes last."""
    if record.proof is None:
        raise RunError.one("C004", "there is no proof to report")
    metrics, answers = read_metrics(path / METRICS), record.answers or ()
    atomic_write(path / CURVE, loss_png(metrics))
    if (preferences := preferences_png(metrics)) is not None:
        atomic_write(path / "preferences.png", preferences)
    pictures = emptied(path / PICTURES)
    for number, one in enumerate(answers, 1):
        atomic_write(pictures / f"{number}.png", one.picture)
    changed = tuple(f"changed while the run was unfinished: {change}" for change in record.changes)
    missed = ", ".join(map(str, record.proof.skipped))
    skipped = (
        (f"not taken, since a loss or gradient was not finite or no row was left: steps {missed}",) if missed else ()
    )
    gone = tuple(f"not taken from step {one.step} on: {one.why}" for one in record.left_out)
    facts = replace(record.plan, warnings=(*record.plan.warnings, *changed, *skipped, *gone))
    report = RunReport(facts, record.proof, metrics, answers, as_yaml(record.recipe), record.versions)
    write_report(path / REPORT, report)
