"""A connector's weights from a published checkpoint: ``base.connector.weights`` of a recipe.

Their names there are listed in the connector's own file. Settings that the weights were made with are taken over, so a
recipe need not repeat them and may not contradict them.

Usage: ``section = take_over(recipe.base.connector); begin(section, module, language)``
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from qlmm.core.errors import ModelError, Problem
from qlmm.core.files import file_sha256
from qlmm.model.assembled.language import word_statistics
from qlmm.model.assembled.published import Checkpoint, check_whole, converted, open_checkpoint
from qlmm.model.contract import connector as find_connector
from qlmm.model.loading.hub import locate, reading
from qlmm.model.loading.identity import PartIdentity
from qlmm.recipe.schema import ConnectorSection

__all__ = ["begin", "check_fits", "published_state", "take_over", "weights_identity"]

KEY = "base.connector.weights"
WEIGHTS, SETTINGS = "model.safetensors", "settings.json"


def take_over(section: ConnectorSection) -> ConnectorSection:
    """The section with every setting that its published weights were made with.

    Raises M101 for wrong settings, M156 for those that the weights contradict, M151 to M155 for a checkpoint that is
    not whole, has code in it, or has no weights of this connector.
    """
    found = find_connector(section.kind)
    found.read(section.settings)
    if section.weights is None:
        return section
    folder, _ = _converted(section, section.weights)
    made: dict[str, object] = json.loads((folder / SETTINGS).read_text("utf-8"))
    asked = {key: value for key, value in section.settings.items() if value is not None}
    wrong = []
    for key in [key for key in asked.keys() & made.keys() if asked[key] != made[key]]:
        message = f"the recipe has {asked[key]}, but {section.weights} was made with {made[key]}"
        help = f"leave base.connector.{key} out, or {KEY}"
        wrong.append(Problem("M156", message, help=help, key=f"base.connector.{key}"))
    if wrong:
        raise ModelError(wrong)
    return ConnectorSection(kind=section.kind, weights=section.weights, **(made | asked))


def check_fits(section: ConnectorSection, module: nn.Module) -> None:
    """Compare published weights with the module they are for, by their headers; raises M155 when they do not fit."""
    if section.weights is None:
        return
    folder, _ = _converted(section, section.weights)
    with safe_open(folder / WEIGHTS, "pt") as stored:
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    check_whole(section.weights, section.kind, module, shapes)


def begin(section: ConnectorSection, module: nn.Module, language: PreTrainedModel) -> None:
    """Give a fresh connector the weights it starts from: published ones, else its own start among words."""
    state, start = published_state(section), find_connector(section.kind).start
    if state is not None:
        check_fits(section, module)
        module.load_state_dict(state)
    elif start is not None:
        start(module, *word_statistics(language))


def published_state(section: ConnectorSection) -> dict[str, Tensor] | None:
    """The published weights under the connector's own names; None where the recipe names none."""
    if section.weights is None:
        return None
    state: dict[str, Tensor] = load_file(_converted(section, section.weights)[0] / WEIGHTS)
    return state


def weights_identity(section: ConnectorSection) -> PartIdentity | None:
    """What exactly the published weights are, as a part of the base: id, commit, and a hash of the weights."""
    if section.weights is None:
        return None
    folder, commit = _converted(section, section.weights)
    return PartIdentity(id=section.weights, revision=commit, config_sha256=file_sha256(folder / WEIGHTS))


def _converted(section: ConnectorSection, name: str) -> tuple[Path, str | None]:
    """The folder of the cache that has the weights under own names, and the commit that they come from."""
    plain = locate(name)
    with reading(KEY, plain):
        checkpoint = open_checkpoint(plain.path, plain.revision)
    commit = None if Path(plain.path).is_dir() else checkpoint.folder.name
    return converted(checkpoint, f"connector-{section.kind}", partial(_build, section.kind, checkpoint)), commit


def _build(kind: str, checkpoint: Checkpoint, aside: Path) -> None:
    """Write the weights under own names, and the settings they were made with."""
    found = find_connector(kind)
    published = checkpoint.tensors(lambda name: found.own_name(name) is not None)
    state = {str(found.own_name(name)): value.contiguous() for name, value in published}
    help = f"{KEY} takes a checkpoint whose weights begin with {', '.join(found.weights)}"
    if not state:
        raise ModelError.one("M155", f"{checkpoint.name} has no weights of the connector {kind}", help=help)
    try:
        settings = found.published(state, checkpoint.stated) if found.published is not None else found.read({})
    except (KeyError, ValueError) as error:
        message = f"{checkpoint.name} does not have all of the connector {kind}: {error}"
        raise ModelError.one("M155", message, help=help) from error
    save_file(state, aside / WEIGHTS, metadata={"format": "pt"})
    (aside / SETTINGS).write_text(settings.model_dump_json(exclude_unset=True), "utf-8")
