"""Internals of transformers around model classes: which kinds there are, and how checkpoints become models.

* ``MODEL_FOR_CAUSAL_LM_MAPPING_NAMES``, ``MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES``: kinds of configuration by what
  their models do. Read from transformers 5.23. Public instead: ``MODEL_FOR_CAUSAL_LM_MAPPING`` and its like, which are
  asked by class and say the same of all model types that share one.
* ``LlavaMultiModalProjector``: LLaVA's two linear layers. Read from transformers 5.23. Public instead: none; a whole
  ``LlavaModel`` contains it.
* ``MultiModalData``: the type of a processor's answer about token counts. Read from transformers 5.23.
  Public instead: none is planned.
* ``load_state_dict``: the tensors of a checkpoint's file of any kind, on the meta device without reading them. Read
  from transformers 5.23. Public instead: ``safetensors.safe_open``, which takes no files of PyTorch.
* ``WeightRenaming``, ``apply_renamings``, ``dot_natural_key``, ``get_model_conversion_mapping``, ``rename_source_key``:
  how ``from_pretrained`` renames and regroups tensors. Read from transformers 5.23. Public instead: a function from a
  file's names to the model's and back; of the rules only ``WeightConverter`` is public.

Usage: ``rules = get_model_conversion_mapping(model)``
"""

from __future__ import annotations

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, apply_renamings, dot_natural_key, rename_source_key
from transformers.modeling_utils import load_state_dict
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.processing_utils import MultiModalData

__all__ = [
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "LlavaMultiModalProjector",
    "MultiModalData",
    "WeightRenaming",
    "apply_renamings",
    "dot_natural_key",
    "get_model_conversion_mapping",
    "load_state_dict",
    "rename_source_key",
]
