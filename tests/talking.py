"""A model that answers without weights: it says how many user turns and pictures it was shown.

Usage: ``loaded = Loaded(); answer(loaded.model, loaded.encoder, sample, 8)``
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from qlmm.data.sample import Sample

END = 0


class Letters:
    """A tokenizer whose ids are code points; 0 ends an answer."""

    pad_token_id = END
    eos_token_id = END

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        return "".join(chr(int(one)) for one in ids if not (skip_special_tokens and int(one) == END))


class Prompts:
    """Keeps every sample it was asked for."""

    def __init__(self) -> None:
        self.processor = SimpleNamespace(tokenizer=Letters())
        self.samples: list[Sample] = []

    def prompt(self, sample: Sample) -> dict[str, torch.Tensor]:
        self.samples.append(sample)
        return {"input_ids": torch.tensor([[ord(letter) for letter in sample.turns[-1].text]])}


class Model(nn.Module):
    """Generates one fixed sentence about its prompt and remembers how it was asked."""

    def __init__(self, encoder: Prompts) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.encoder = encoder
        self.generation_config = SimpleNamespace(eos_token_id=[7, END])
        self.settings: dict[str, Any] = {}
        self.was_training = True
        self.drawn = 0.0

    def generate(self, *, input_ids: torch.Tensor, streamer: Any = None, **settings: Any) -> torch.Tensor:
        self.settings, self.was_training, self.drawn = settings, self.training, float(torch.rand(1))
        sample = self.encoder.samples[-1]
        users = sum(turn.role == "user" for turn in sample.turns)
        said = [ord(letter) for letter in f" turn {users}, {len(sample.images)} pictures "] + [END]
        ids = torch.cat([input_ids, torch.tensor([said])], dim=1)
        if streamer is not None:
            streamer.put(input_ids)
            for one in said:
                streamer.put(torch.tensor([one]))
            streamer.end()
        return ids


class Loaded:
    """What ``qlmm.artifacts.adapter.load.load`` gives, as far as talking needs it."""

    def __init__(self) -> None:
        self.encoder = Prompts()
        self.model = Model(self.encoder)
        self.precision = self

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()
