"""PEFT's ``adapter_config.json`` as qlmm writes it, and nothing that PEFT could make of it beyond that.

PEFT builds what the file asks for before it looks at a weight: layers of any rank, and for every module of the base a
match of any regular expression.

Usage: ``modules = read_config(folder).modules_to_save``
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from peft import LoraConfig
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from qlmm.core.errors import ModelError
from qlmm.core.filenames import ADAPTER_CONFIG
from qlmm.core.json_files import read_object
from qlmm.recipe.schema import MOST_RANK

__all__ = ["AdapterConfig", "read_config"]

# Literal names, and numbers up to the next dot: a text can match in one way only, so that matching takes one pass.
_PATTERN = re.compile(r"(?:[\w|-]|\\[.-]|(?:\\d\+|\(\?:\d+(?:\|\d+)*\))(?=\\\.|\||$))+")
_LONGEST_PATTERN = 1 << 18


def _plain(pattern: str) -> str:
    if len(pattern) > _LONGEST_PATTERN or not _PATTERN.fullmatch(pattern):
        raise ValueError("not a pattern of plain names and layer numbers")
    return pattern


_Names = list[Annotated[str, Field(pattern=r"^[\w.-]+$", max_length=512)]]


class AdapterConfig(BaseModel):
    """The keys that qlmm sets; every other key must have PEFT's default."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    peft_type: Literal["LORA"] = "LORA"
    task_type: Literal["CAUSAL_LM"] | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    peft_version: str | None = None
    inference_mode: bool = True
    fan_in_fan_out: bool = False
    r: int = Field(8, ge=1, le=MOST_RANK)
    lora_alpha: float = Field(8, gt=0, le=1e6, allow_inf_nan=False)
    lora_dropout: float = Field(0.0, ge=0, le=1)
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | Literal["pissa", "olora", "loftq"] = True
    loftq_config: dict[Literal["loftq_bits", "loftq_iter"], Annotated[int, Field(ge=1, le=8)]] = {}
    target_modules: Annotated[str, AfterValidator(_plain)] | _Names | None = None
    target_parameters: _Names | None = None
    modules_to_save: _Names | None = None

    @model_validator(mode="after")
    def _nothing_else(self) -> AdapterConfig:
        usual = LoraConfig().to_dict()
        for key, value in (self.model_extra or {}).items():
            # Another release of PEFT may have keys that are unknown here, and leaves them empty.
            if value and value != usual.get(key):
                raise ValueError(f"{key} is set, which qlmm never does")
        return self


def read_config(folder: Path) -> AdapterConfig:
    """An adapter's configuration.

    Raises:
        ModelError: A038 for one that is damaged, or asks for more than qlmm writes.
    """
    path = folder / ADAPTER_CONFIG
    try:
        return AdapterConfig.model_validate(read_object(path))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        why = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    except (OSError, ValueError) as error:
        why = str(error)
    help = "fetch the adapter again, or take it from the run directory it was made in"
    raise ModelError.one("A038", f"{path} is not what qlmm writes: {why}", help=help)
