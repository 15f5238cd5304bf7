"""Trainers that TRL calls experimental, imported without its warning; a contract test stands in for the warning.

* ``CPOConfig``, ``CPOTrainer``, ``ORPOConfig``, ``ORPOTrainer``: preferences without a reference. Read from TRL 1.16.
  Public instead: the same names at the top of ``trl``, should TRL settle on them.

Usage: ``class SimpoTrainer(ReferenceFreeTrainer, CPOTrainer): …``
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import trl.experimental  # noqa: F401  the package warns when it is first imported

from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

__all__ = ["CPOConfig", "CPOTrainer", "ORPOConfig", "ORPOTrainer"]
