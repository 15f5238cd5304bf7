"""Internals of PEFT: its layers, the name by which it is asked to adapt none, and its arithmetic on adapters.

* ``DUMMY_TARGET_MODULES``: stands for "no layer" in a LoRA configuration. Read from PEFT 0.21.
  Public instead: a configuration that may hold only ``modules_to_save``.
* ``Linear``, ``LoraLayer``, ``ParamWrapper``: wrappers of linear layers, of any layer, and of bare parameters. Read
  from PEFT 0.21. Public instead: a merge of one layer, without the model around it.
* ``ties``: TIES of tensors, which ``add_weighted_adapter`` calls. Read from PEFT 0.21.
  Public instead: ``add_weighted_adapter`` on weights, without a model that has the adapters.

Usage: ``isinstance(module, LoraLayer)``
"""

from __future__ import annotations

from peft.tuners.lora import Linear, LoraLayer, ParamWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.merge_utils import ties

__all__ = ["DUMMY_TARGET_MODULES", "Linear", "LoraLayer", "ParamWrapper", "ties"]
