"""The adapter's README: a model card made of facts, so that it cannot promise what was not measured.

A run writes it. A push fills in what only the Hub knows (address, licences), in sections between marks; what the owner
wrote elsewhere by hand stays.

Usage: ``atomic_write(folder / "README.md", card(manifest, proof, answers))``
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from qlmm.artifacts.adapter.local_paths import is_data_set
from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.cards.loading_examples import usage
from qlmm.artifacts.cards.sections import marked, renewed, table
from qlmm.core.errors import ModelError
from qlmm.core.secrets import shareable, visible
from qlmm.core.units import share
from qlmm.data.reading.readers import HUB_ID
from qlmm.proof.records import Answer, PartProof, Proof
from qlmm.proof.verdicts import COMPARED, verdicts

__all__ = ["MOST_PICTURES", "base_table", "card", "data_table", "metadata", "picture_name", "placed", "public_ids"]

MOST_PICTURES = 4
LONGEST_TEXT = 300
NOT_STATED = "not stated"
SEE_BASE = "see the base"
UNPROVEN = (
    "> **Unproven.** This run did not keep its promises, or nobody checked them: the adapter may not be what its "
    "recipe says. The list under Proof has what is known."
)
# What Markdown or HTML would act on instead of showing it.
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|<>~$&])")


def card(manifest: Manifest, proof: Proof, answers: Sequence[Answer] = ()) -> str:
    """The card's text, with the Hub's metadata on top.

    The pictures of the first four answers to held-out questions lie beside the card, see :func:`picture_name`.
    """
    manifest = manifest.shared()
    measured = [_trained(proof), _losses(proof), _pairs(proof), _answers(answers), _promises(proof)]
    sections = [
        _title(manifest),
        "" if proof.holds else UNPROVEN,
        _verdicts(proof),
        marked("base", base_table(manifest, {})),
        *measured,
    ]
    sections += [marked("data", data_table(manifest, {})), f"## Use\n\n{marked('use', usage(manifest, None))}"]
    front = _metadata(manifest, proof).to_yaml()
    return visible(f"---\n{front}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n")


def metadata(manifest: Manifest, relation: str, library: str, tags: Sequence[str], **more: Any) -> ModelCardData:
    """The Hub's metadata of what was made of a base, with its relation to that base."""
    bases, _ = public_ids(manifest)
    return ModelCardData(
        base_model=bases or None,
        base_model_relation=relation if bases else None,
        library_name=library,
        pipeline_tag="image-text-to-text",
        tags=list(tags),
        **more,
    )


def picture_name(number: int) -> str:
    """Where the picture of the card's question ``number``, from 1, lies in the adapter's folder."""
    return f"held-out/answer-{number}.png"


def placed(text: str, manifest: Manifest, repo: str, licences: Mapping[str, str], *, unproven: bool) -> str:
    """A card as it stands on the Hub: with its address, the licences the Hub states, and a warning where one is due.

    The card may have been edited by hand; only sections between marks are written anew. Licences go by the id of a
    model or data set.

    Raises:
        ModelError: H015 when the metadata on top cannot be read.
    """
    try:
        written = ModelCard(text)
    except (ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        help = "mend the lines between the two `---`, or delete README.md: it is then made anew"
        raise ModelError.one("H015", f"the metadata on top of README.md cannot be read: {reason}", help=help) from error
    if written.data.eval_results:
        written.data.model_name = repo.partition("/")[2]
    body = renewed(written.text, "use", usage(manifest, repo))
    body = renewed(body, "base", base_table(manifest, licences))
    body = renewed(body, "data", data_table(manifest, licences))
    if unproven and UNPROVEN not in body:
        body = f"\n{UNPROVEN}\n{body}"
    written.text = body
    return visible(str(written))


def public_ids(manifest: Manifest) -> tuple[list[str], list[str]]:
    """Hub ids of the base's parts, and of the data sets, without revisions; folders and packaged things have none."""
    parts = manifest.base.parts.values()
    # Only what came from the Hub has a revision.
    bases = [part.name for part in parts if part.revision and HUB_ID.fullmatch(part.id)]
    data = [source.path.partition("@")[0] for source in manifest.data.sources if is_data_set(source.path)]
    return list(dict.fromkeys(bases)), list(dict.fromkeys(data))


def _metadata(manifest: Manifest, proof: Proof) -> ModelCardData:
    recipe, results = manifest.recipe, _results(manifest, proof)
    tags = ["lora", "vision", "qlmm", manifest.base.kind]
    tags += ["qlora"] if recipe.base.quantize != "none" else []
    tags += [recipe.training.objective] if recipe.training.objective != "sft" else []
    return metadata(
        manifest,
        "adapter",
        "peft",
        tags,
        datasets=public_ids(manifest)[1] or None,
        model_name=Path(recipe.output.dir).name if results else None,
        eval_results=results or None,
    )


def _results(manifest: Manifest, proof: Proof) -> list[EvalResult]:
    """What was measured on held-out rows, as the Hub lists it, without numbers that are not finite."""
    values: list[tuple[str, str, float]] = []
    if proof.after is not None:
        losses = (("right picture", proof.after.right), ("another row's picture", proof.after.shuffled))
        values += [("loss", f"held-out loss, {shown}, nats per token", value) for shown, value in losses]
    if proof.pairs_after is not None:
        values.append(("accuracy", "held-out pairs won", proof.pairs_after.won))
    recipe = manifest.recipe
    sources = [source.path for source in recipe.evaluation.sources or recipe.data.sources]
    public = [path.partition("@")[0] for path in sources if is_data_set(path)]
    return [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=public[0] if len(sources) == len(public) == 1 else "held-out",
            dataset_name=f"held-out rows of {', '.join(sources)}",
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 4),
        )
        for kind, name, value in values
        if math.isfinite(value)
    ]


def _title(manifest: Manifest) -> str:
    return (
        f"# Adapter trained with qlmm {manifest.versions['qlmm']}\n\n"
        f"{manifest.steps} steps on {'a native' if manifest.base.whole is not None else 'an assembled'} base, "
        f"language model stored as {manifest.recipe.base.quantize}, computed in {manifest.precision}."
    )


def base_table(manifest: Manifest, licences: Mapping[str, str]) -> str:
    """Markdown: the parts of the base, each with its revision and licence."""
    public = public_ids(manifest)[0]
    rows = []
    for role, part in manifest.base.parts.items():
        shown = f"[{part.name}](https://huggingface.co/{part.name})" if part.name in public else f"`{part.name}`"
        rows.append((role, shown, part.revision or "—", licences.get(part.name, SEE_BASE)))
    return table(("part", "from", "revision", "licence"), rows)


def _trained(proof: Proof) -> str:
    head = ("part", "tensors trained", "weights trained", "share moved", "largest gradient", "frozen tensors")
    rows = [_part(part) for part in proof.parts if part.trained_tensors or part.frozen_tensors]
    return f"## What was trained\n\n{table(head, rows)}"


def _part(part: PartProof) -> tuple[str, ...]:
    frozen = "—" if not part.frozen_tensors else "unchanged" if part.frozen_identical else "CHANGED"
    moved = f"{part.moved_share:.1%}" if part.trained_tensors else "—"
    gradient = f"{part.grad_norm_max:.3g}" if part.trained_tensors else "—"
    return part.part, f"{part.trained_tensors}", f"{part.trained_parameters:,}", moved, gradient, frozen


def _losses(proof: Proof) -> str:
    rows = [
        (when, *(f"{value:.3f}" for value in (loss.right, loss.shuffled, loss.none)))
        for when, loss in (("before", proof.before), ("after", proof.after))
        if loss is not None
    ]
    head = ("", "right picture", "another row's picture", "no picture")
    return f"## Held-out loss, nats per token\n\n{table(head, rows)}" if rows else ""


def _pairs(proof: Proof) -> str:
    rows = [
        (when, share(pairs.won), share(pairs.won_swapped) if pairs.won_swapped is not None else "—")
        for when, pairs in (("before", proof.pairs_before), ("after", proof.pairs_after))
        if pairs is not None
    ]
    head = ("", "right picture", "another row's picture")
    return f"## Held-out pairs whose chosen answer is the likelier one\n\n{table(head, rows)}" if rows else ""


def _answers(answers: Sequence[Answer]) -> str:
    """The first held-out rows, without a choice: good ones alone would prove nothing."""
    rows = [
        (
            f"![held-out picture {number}]({picture_name(number)})" + (" (trained on)" if a.picture_trained else ""),
            *map(_words, (a.question, a.expected, a.before, a.after)),
        )
        for number, a in enumerate(answers[:MOST_PICTURES], 1)
    ]
    head = ("picture", "question", "expected", "before", "after")
    return f"## Answers to held-out pictures, the first rows\n\n{table(head, rows)}" if rows else ""


def _words(text: str) -> str:
    """Text of a row or a model as one escaped line of a table."""
    # A key is looked for before marks stand in it.
    line = " ".join(shareable(text).split())
    cut = line if len(line) <= LONGEST_TEXT else line[: LONGEST_TEXT - 1] + "…"
    return _MARKUP.sub(r"\\\1", cut) or "—"


def _promises(proof: Proof) -> str:
    lines = "\n".join(f"- {'kept' if p.kept else '**BROKEN**'}: {p.name} ({p.detail})" for p in proof.promises)
    return f"## Proof\n\n{lines or 'Nothing was checked.'}"


def _verdicts(proof: Proof) -> str:
    found = verdicts(proof)
    useful = "unknown" if found.useful is None else "yes" if found.useful else "**NO**"
    lines = [f"- sound: {'yes' if found.sound else '**NO**'}, {found.sound_because}"]
    lines += [f"- useful: {useful}, {found.useful_because}"]
    lines += [f"  - {COMPARED[one.result]} {one.against}: {one.detail}" for one in proof.comparisons]
    return "## Verdict\n\n" + "\n".join(lines)


def data_table(manifest: Manifest, licences: Mapping[str, str]) -> str:
    """Markdown: the sources of the rows that were trained on, with licences."""
    public = public_ids(manifest)[1]
    rows = []
    for source in manifest.data.sources:
        path, name = source.path, source.path.partition("@")[0]
        shown = f"[{path}](https://huggingface.co/datasets/{name})" if name in public else f"`{path}`"
        rows.append((shown, f"{source.kept:,}", licences.get(name, NOT_STATED)))
    return f"## Data\n\n{table(('source', 'rows', 'licence'), rows)}\n\nFingerprint: `{manifest.data.sha256}`"
