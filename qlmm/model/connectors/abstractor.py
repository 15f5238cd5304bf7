"""mPLUG-Owl's visual abstractor: learned queries read the picture's tokens in a few cross-attention layers.

Layer by layer, with queries h (Q of them) and the same image tokens x in every layer:

    n  = LN(h)                                   k = LN(x)
    y  = n + Wo Attn(Wq n, Wk [n; k], Wv [n; k])       the residual starts from the normalised queries
    h' = y + W2 LN(silu(W1 m) * (W3 m)),  m = LN(y)    SwiGLU with a norm over the inner width

Then ``visual_fc`` maps the queries to the language model's width and one learned end token is put after them, so a
picture becomes Q + 1 tokens. Unlike in Flamingo's resampler, the residual is normalised, queries come before image
tokens among the keys, and the gated feed-forward has a norm. Neither queries nor image tokens get positions; these come
from the tower alone. Parameter names are those of the released checkpoints.

Usage: ``base.connector: {kind: abstractor, queries: 64}`` in a recipe
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from qlmm.core.errors import ModelError
from qlmm.model.contract import Connector, Settings, Stated

__all__ = ["CONNECTOR", "Abstractor", "AbstractorSettings", "swiglu_width"]

# The norms around the attention use PyTorch's default, not the configured epsilon; only ``ffn_ln`` uses that one.
OUTER_EPS = 1e-5
INITIAL_STD = 0.02


class AbstractorSettings(Settings):
    """Settings of the visual abstractor; the defaults are those of the released mPLUG-Owl."""

    queries: PositiveInt = Field(64, description="Learned queries; a picture takes this many tokens and one end token.")
    layers: PositiveInt = Field(6, description="Cross-attention layers.")
    heads: PositiveInt = Field(16, description="Attention heads; they divide the hidden width.")
    hidden: PositiveInt | None = Field(
        None,
        description="Width of queries and keys; unset: the tower's own. Another width puts one linear layer "
        "(vision_proj) before the abstractor, which mPLUG-Owl does not have.",
    )
    inner: PositiveInt | None = Field(
        None,
        description="Width of the feed-forward; unset: two thirds of four times the hidden width, in steps of 256.",
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.1, description="Dropout on the attention probabilities.")
    eps: PositiveFloat = Field(1e-6, description="Epsilon of the norm inside the feed-forward.")


def swiglu_width(hidden: int) -> int:
    """LLaMA's width of a gated feed-forward: 2/3 of 4 ``hidden``, rounded up to a multiple of 256 (1024 -> 2816)."""
    return 256 * math.ceil(8 * hidden / 3 / 256)


class CrossAttentionHeads(nn.Module):
    """Multi-head attention of the queries over [queries; image tokens], before the output projection."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """(B, Q, H) over (B, K, H) -> (B, Q, H); ``mask`` is boolean, broadcast to (B, heads, Q, K), True is seen."""
        attended = functional.scaled_dot_product_attention(
            self._split(self.query(queries)),
            self._split(self.key(keys)),
            self._split(self.value(keys)),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return attended.transpose(1, 2).flatten(2)

    def _split(self, tokens: Tensor) -> Tensor:
        """(B, N, H) -> (B, heads, N, H / heads)."""
        batch, count, width = tokens.shape
        return tokens.reshape(batch, count, self.heads, width // self.heads).transpose(1, 2)


class GatedFeedForward(nn.Module):
    """SwiGLU with a LayerNorm over its inner width."""

    def __init__(self, hidden: int, inner: int, eps: float) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden, inner)
        self.w2 = nn.Linear(inner, hidden)
        self.w3 = nn.Linear(hidden, inner)
        self.ffn_ln = nn.LayerNorm(inner, eps=eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, Q, H) -> (B, Q, H)."""
        gated: Tensor = self.w2(self.ffn_ln(functional.silu(self.w1(tokens)) * self.w3(tokens)))
        return gated


class Output(nn.Module):
    """What follows the attention: output projection, residual, norm, feed-forward, residual."""

    def __init__(self, hidden: int, inner: int, eps: float) -> None:
        super().__init__()
        self.out_proj = nn.Linear(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden, eps=OUTER_EPS)
        self.mlp = GatedFeedForward(hidden, inner, eps)

    def forward(self, normalised: Tensor, attended: Tensor) -> Tensor:
        """Normalised queries and what they read, both (B, Q, H) -> (B, Q, H)."""
        read = normalised + self.out_proj(attended)
        updated: Tensor = read + self.mlp(self.norm2(read))
        return updated


class CrossAttention(nn.Module):
    """One layer: norms, attention over [queries; image tokens], output."""

    def __init__(self, hidden: int, inner: int, settings: AbstractorSettings) -> None:
        super().__init__()
        self.attention = CrossAttentionHeads(hidden, settings.heads, settings.dropout)
        self.norm1 = nn.LayerNorm(hidden, eps=OUTER_EPS)
        self.normk = nn.LayerNorm(hidden, eps=OUTER_EPS)
        self.output = Output(hidden, inner, settings.eps)

    def forward(self, queries: Tensor, image: Tensor, mask: Tensor | None) -> Tensor:
        """Queries (B, Q, H) and image tokens (B, T, H) -> queries (B, Q, H)."""
        normalised = self.norm1(queries)
        keys = torch.cat([normalised, self.normk(image)], dim=1)
        updated: Tensor = self.output(normalised, self.attention(normalised, keys, mask))
        return updated


class Layer(nn.Module):
    """A name only: released parameters lie under ``layers.N.crossattention``."""

    def __init__(self, hidden: int, inner: int, settings: AbstractorSettings) -> None:
        super().__init__()
        self.crossattention = CrossAttention(hidden, inner, settings)

    def forward(self, queries: Tensor, image: Tensor, mask: Tensor | None) -> Tensor:
        """The cross-attention's own."""
        updated: Tensor = self.crossattention(queries, image, mask)
        return updated


class Encoder(nn.Module):
    """The stack of layers; every one of them reads the same image tokens."""

    def __init__(self, hidden: int, inner: int, settings: AbstractorSettings) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(hidden, inner, settings) for _ in range(settings.layers)])

    def forward(self, queries: Tensor, image: Tensor, mask: Tensor | None) -> Tensor:
        """Queries (B, Q, H) and image tokens (B, T, H) -> queries (B, Q, H)."""
        for layer in self.layers:
            queries = layer(queries, image, mask)
        return queries


class Abstractor(nn.Module):
    """The visual abstractor; queries and end token are inside, where PEFT can save them."""

    def __init__(self, settings: AbstractorSettings, vision_width: int, text_width: int) -> None:
        super().__init__()
        hidden = settings.hidden or vision_width
        if hidden % settings.heads:
            message = f"{settings.heads} heads do not divide the abstractor's width {hidden}"
            help = "set base.connector.heads or base.connector.hidden so that they do"
            raise ModelError.one("M103", message, help=help, key="base.connector.heads")
        inner = settings.inner or swiglu_width(hidden)
        self.query_tokens = nn.Parameter(torch.empty(1, settings.queries, hidden))
        self.vision_proj = nn.Linear(vision_width, hidden) if hidden != vision_width else None
        self.encoder = Encoder(hidden, inner, settings)
        self.visual_fc = nn.Linear(hidden, text_width)
        self.vit_eos = nn.Parameter(torch.empty(1, 1, text_width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices, queries and end token from a truncated normal of 0.02, biases zero.

        The queries must differ from the start: all-zero ones would stay alike through every layer and every step.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=INITIAL_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, image: Tensor, seen: Tensor | None = None) -> Tensor:
        """The tower's final, normalised tokens (B, T, V), class token first -> queries and end token (B, Q + 1, D).

        ``seen`` (B, T) is False for tokens to leave out; unset, all are seen.
        """
        if self.vision_proj is not None:
            image = self.vision_proj(image)
        queries = self.query_tokens.expand(image.shape[0], -1, -1)
        mask = None if seen is None else functional.pad(seen, (queries.shape[1], 0), value=True)[:, None, None, :]
        read = self.visual_fc(self.encoder(queries, image, mask))
        return torch.cat([read, self.vit_eos.expand(image.shape[0], -1, -1)], dim=1)


@torch.no_grad()
def start_among_words(module: nn.Module, mean: Tensor, deviation: float) -> None:
    """Put a fresh abstractor's tokens around the mean word embedding, as far from it as words are.

    With the plain initialisation they are many times larger than words: a small language model's held-out loss then
    starts several nats above that without a picture, and needs hundreds of steps to come back.
    """
    if not isinstance(module, Abstractor):
        raise TypeError("not an abstractor")
    hidden = module.visual_fc.in_features
    # The queries reach the last layer with a mean square near one, so this gives outputs the deviation of words.
    module.visual_fc.weight.mul_(deviation / (INITIAL_STD * math.sqrt(hidden)))
    module.visual_fc.bias.copy_(mean)
    module.vit_eos.copy_(mean.expand_as(module.vit_eos))


class _Released(BaseModel):
    """What a released configuration has about the abstractor and its weights do not show."""

    num_attention_heads: PositiveInt = 16
    layer_norm_eps: PositiveFloat = 1e-6


def published_settings(state: Mapping[str, Tensor], stated: Stated) -> AbstractorSettings:
    """The settings that released weights were made with, dropout left at its default.

    Sizes are read from the weights: released ones are 2816 wide inside where their configuration's default is 4096.
    Heads and epsilon leave no trace in the weights.
    """
    released = stated.get("visual_abstractor_config")
    traceless = _Released.model_validate(released or {})
    _, queries, hidden = state["query_tokens"].shape
    return AbstractorSettings(
        queries=queries,
        layers=1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layers.")),
        heads=traceless.num_attention_heads,
        hidden=hidden,
        inner=state["encoder.layers.0.crossattention.output.mlp.w1.weight"].shape[0],
        eps=traceless.layer_norm_eps,
    )


CONNECTOR = Connector(
    settings=AbstractorSettings,
    build=Abstractor,
    placeholders=lambda settings, grid_tokens: settings.queries + 1,
    takes="class+grid",
    vision_layer=None,
    fit="squash",
    plain_llava=False,
    source="mPLUG-Owl, arXiv 2304.14178",
    weights={"abstractor.": "", "query_tokens": "query_tokens"},  # the released queries lie at the model's root
    published=published_settings,
    start=start_among_words,
)
