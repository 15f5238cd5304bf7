"""The problems that pydantic finds in a recipe, as messages with the place in the file and the way out.

pydantic's own messages would repeat the value, which may be a secret.

Usage: ``problems = explain_errors(validation_error, document)``
"""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from qlmm.core.errors import Problem, Where
from qlmm.core.naming import NAME_RULE
from qlmm.recipe.schema_keys import as_text, keys, section_at, value_at
from qlmm.recipe.yaml_reader import Document, KeyPath, quoted

__all__ = ["explain_errors", "where_is"]

# Our keys, and what other trainers call the same thing.
_ELSEWHERE = {
    "r": "rank lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules lora_target_modules",
    "learning_rate": "lr",
    "connector_learning_rate": "mm_projector_lr",
    "batch_size": "per_device_train_batch_size micro_batch_size",
    "accumulation": "gradient_accumulation_steps",
    "epochs": "num_train_epochs num_epochs",
    "steps": "max_steps",
    "schedule": "lr_scheduler_type",
    "warmup": "warmup_ratio",
    "optimizer": "optim",
    "save_every": "save_steps",
    "log_every": "logging_steps",
    "keep": "save_total_limit",
    "trackers": "report_to",
    "dir": "output_dir",
    "max_length": "max_seq_length",
    "quantize": "load_in_4bit",
    "model": "model_name_or_path",
    "connector": "projector",
    "vision": "vision_tower",
    "language": "llm",
}
ELSEWHERE = {theirs: key for key, names in _ELSEWHERE.items() for theirs in names.split()}
_IS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number with a decimal point or exponent",
    str: "text",
    list: "a list",
    dict: "a section",
    type(None): "empty",
}
_SHOULD_BE = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "a section with keys of its own",
    "dict_type": "a section with keys of its own",
}


def explain_errors(error: ValidationError, document: Document) -> list[Problem]:
    """The problems pydantic found, with their places; one that only follows from another is left out."""
    found = error.errors(include_url=False, include_input=False)
    meant = {(*entry["loc"][:-1], _meant(entry["loc"])) for entry in found if entry["type"] == "extra_forbidden"}
    return [
        _problem(entry, document)
        for entry in found
        if not _follows(entry, document) and not (entry["type"] == "missing" and entry["loc"] in meant)
    ]


def where_is(document: Document, path: KeyPath, *, key: bool = False) -> Where:
    """Where a value (or its key) stands; of something that is not there, where its section does."""
    while path not in document.places:
        path, key = path[:-1], True
    place = document.places[path]
    if path == ():
        return Where(place.value.file)
    return place.key if key and place.key is not None else place.value


def _follows(entry: ErrorDetails, document: Document) -> bool:
    """Whether a complaint would vanish with another one: about a guessed value, or a list whose entries are wrong."""
    path = entry["loc"]
    if entry["type"] == "too_short" and len(value_at(document.data, path)) > entry["ctx"]["actual_length"]:
        return True
    about_section = entry["type"] == "value_error"
    return any(
        path[: len(broken)] == broken or (about_section and broken[: len(path)] == path) for broken in document.broken
    )


def _problem(entry: ErrorDetails, document: Document) -> Problem:
    path: KeyPath = entry["loc"]
    if entry["type"] == "extra_forbidden":
        return _unknown(path, document)
    if entry["type"] == "missing":
        return _missing(path, document)
    if entry["type"] == "value_error":
        return Problem("R015", str(entry["ctx"]["error"]), where_is(document, path, key=True))
    return _wrong(entry, path, document)


def _unknown(path: KeyPath, document: Document) -> Problem:
    section, word = as_text(path[:-1]), str(path[-1])
    label = f"not a key of {section}" if section else "not a section of a recipe"
    name = ELSEWHERE.get(word, word)
    meant = _meant(path) or next((key.name for key in keys() if key.name.rpartition(".")[2] == name), None)
    guess = f"did you mean `{meant}`?  " if meant else ""
    where = replace(where_is(document, path, key=True), label=label)
    return Problem("R012", f"unknown key `{quoted(word)}`", where, f"{guess}keys: {', '.join(_known(path))}")


def _meant(path: KeyPath) -> str | None:
    """The key of the same section that an unknown one probably stands for."""
    known, word = _known(path), str(path[-1])
    if ELSEWHERE.get(word) in known:
        return ELSEWHERE[word]
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.6)), None)


def _known(path: KeyPath) -> list[str]:
    """The keys of the section that a key is in."""
    model = section_at(path[:-1])
    return list(model.model_fields) if model is not None else []


def _missing(path: KeyPath, document: Document) -> Problem:
    label = f"{as_text(path[:-1])} needs `{path[-1]}`"
    where = replace(where_is(document, path[:-1], key=True), label=label)
    model = section_at(path[:-1])
    doc = model.model_fields[str(path[-1])].description if model is not None else None
    return Problem("R014", f"`{as_text(path)}` is missing", where, doc)


def _wrong(entry: ErrorDetails, path: KeyPath, document: Document) -> Problem:
    value = value_at(document.data, path)
    where = where_is(document, path)
    if entry["type"] == "literal_error":
        return _not_a_choice(path, entry["ctx"]["expected"], value, where)
    should = _SHOULD_BE.get(entry["type"])
    if should:
        where = replace(where, label=f"this is {_IS[type(value)]}")
    rule = f"should be {should}" if should else re.sub(r"^.*?(?=should )", "", entry["msg"])
    rule = rule.replace(" after validation", "").replace(f"match pattern '{NAME_RULE}'", "be a name: a-z, 0-9 and _")
    return Problem("R013", f"`{as_text(path)}` {rule}", where, _way_out(entry["type"], value))


def _not_a_choice(path: KeyPath, expected: str, value: Any, where: Where) -> Problem:
    choices = re.findall(r"'([^']*)'", expected) or [expected]
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else None
    listed = " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))
    return Problem("R013", f"`{as_text(path)}` should be {listed}", where, hint)


def _way_out(kind: str, value: Any) -> str | None:
    """The one thing to change, where the value shows what was meant."""
    if kind == "bool_type" and str(value).lower() in {"yes", "no", "on", "off", "true", "false"}:
        return "write true or false, without quotes"
    numeric = isinstance(value, str) and re.fullmatch(r"[-+]?[\d._]+(e[-+]?\d+)?", value)
    if kind in {"int_type", "float_type"} and numeric:
        return "write the number without quotes or underscores"
    if kind == "tuple_type" and isinstance(value, str):
        return "a list of one is written in brackets: [value]"
    if kind in {"model_type", "dict_type"} and isinstance(value, str):
        return "keys of a section are written `key: value`, with a blank after the colon"
    if kind == "string_type" and isinstance(value, int | float):
        return "put it in quotes to make it text"
    return None
