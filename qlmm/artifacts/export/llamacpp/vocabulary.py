"""A tokenizer as llama.cpp needs it: tokens with their kinds, merges, special tokens, and how text is cut first.

llama.cpp has its own code for cutting text into words and knows it by name. The tokenizer's steps lead to the name; one
that cuts in another way is refused, because llama.cpp would read every text differently.

Usage: ``read_vocabulary(folder, rows=32_064).add_to(writer)``
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from qlmm.core.errors import ModelError

if TYPE_CHECKING:
    import gguf

__all__ = ["Vocabulary", "cutting", "read_vocabulary"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How text is cut before its bytes are looked up, and llama.cpp's name for it (LLAMA_VOCAB_PRE_TYPE in llama-vocab.cpp).
CUTTING: dict[tuple[str, ...], str] = {
    ("bytes",): "gpt-2",
    ("digits", "bytes"): "smollm",
    (f"{_SHORT}\\p{{N}}{_REST}", "whole bytes"): "qwen2",
    (f"{_SHORT}\\p{{N}}{{1,3}}{_REST}", "whole bytes"): "llama-bpe",
}
PIECES = "default"
SPACE = "▁"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens in the order of their ids; whether a space or a token is put before every text, or a token behind it.

    The model is ``gpt2`` for byte-level BPE, ``llama`` for SentencePiece's kind, which alone has scores.
    """

    model: str
    cutting: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...]
    space_first: bool
    begins: bool
    ends: bool
    folder: Path

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Write everything but the chat template."""
        import gguf

        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.cutting)
        writer.add_token_list([token.encode("utf-8") for token in self.tokens])
        writer.add_token_types(list(self.kinds))
        if self.model == "llama":
            writer.add_token_scores(list(self.scores))
            writer.add_add_space_prefix(self.space_first)
        special = gguf.SpecialVocab(self.folder, load_merges=self.model == "gpt2", n_vocab=len(self.tokens))
        special.chat_template = None
        # llama.cpp guesses what is left open.
        special.add_special_token = {"bos": self.begins, "eos": self.ends}
        special.add_to_gguf(writer, quiet=True)


def read_vocabulary(folder: Path, *, rows: int) -> Vocabulary:
    """Read a folder's ``tokenizer.json``; ids without a token are filled up to the number of embeddings, ``rows``.

    Raises:
        ModelError: E030 for a tokenizer that llama.cpp has no code for, or that does not fit the embeddings.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise _unknown("has no tokenizer.json")
    written = json.loads(path.read_text("utf-8"))
    model = written["model"]
    if model["type"] != "BPE":
        raise _unknown(f"is of kind {model['type']}")
    pieces = bool(model.get("byte_fallback"))
    tokenizer = Tokenizer.from_file(str(path))
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.get_added_tokens_decoder()
    if max(by_id) >= rows:
        raise _unknown(f"has the token {by_id[max(by_id)]} with id {max(by_id)}, but the model has {rows} embeddings")
    ranks = _ranks(model["merges"]) if pieces else {}
    bare, whole = (tokenizer.encode("a", add_special_tokens=asked).ids for asked in (False, True))
    ids = range(rows)
    return Vocabulary(
        model="llama" if pieces else "gpt2",
        cutting=PIECES if pieces else cutting(written.get("pre_tokenizer")),
        tokens=tuple(by_id.get(number, f"[PAD{number}]") for number in ids),
        kinds=tuple(_kind_of(number, by_id, added, model.get("unk_token"), pieces=pieces) for number in ids),
        scores=tuple(-float(ranks.get(by_id.get(number, ""), len(ranks))) for number in ids) if pieces else (),
        space_first=pieces and _space_first(written),
        begins=whole[: len(bare)] != bare,
        ends=whole[-len(bare) :] != bare,
        folder=folder,
    )


def cutting(pre_tokenizer: Mapping[str, Any] | None) -> str:
    """llama.cpp's name for how a byte-level tokenizer cuts text; E030 when it has none."""
    steps = (pre_tokenizer or {}).get("pretokenizers") or [pre_tokenizer or {"type": "nothing"}]
    name = CUTTING.get(tuple(_step(one) for one in steps))
    if name is None:
        raise _unknown("cuts text in a way that llama.cpp has no name for here")
    return name


def _step(one: Mapping[str, Any]) -> str:
    if one["type"] == "ByteLevel" and not one.get("add_prefix_space"):
        return "bytes" if one.get("use_regex", True) else "whole bytes"
    if one["type"] == "Digits" and one.get("individual_digits"):
        return "digits"
    if one["type"] == "Split" and one["behavior"] == "Isolated" and not one.get("invert"):
        return str(one["pattern"].get("Regex"))
    return f"unknown {one['type']}"


def _ranks(merges: list[Any]) -> dict[str, int]:
    """The order in which pieces are made, which is that of SentencePiece's scores."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    return ranks


def _kind_of(
    number: int, by_id: Mapping[int, str], added: Mapping[int, AddedToken], unknown: str | None, *, pieces: bool
) -> int:
    if number not in by_id:
        return UNUSED
    if pieces and by_id[number] == unknown:
        return UNKNOWN
    if number in added:
        return CONTROL if added[number].special else USER_DEFINED
    return BYTE if pieces and re.fullmatch(r"<0x[0-9A-F]{2}>", by_id[number]) else NORMAL


def _space_first(written: Mapping[str, Any]) -> bool:
    """Whether a space is put before every text, by the normaliser or by the way of cutting."""
    normaliser, first = written.get("normalizer") or {}, written.get("pre_tokenizer") or {}
    steps = normaliser.get("normalizers") or [normaliser]
    prepended = any(one.get("type") == "Prepend" and one.get("prepend") == SPACE for one in steps)
    return prepended or (first.get("type") == "Metaspace" and first.get("prepend_scheme") != "never")


def _unknown(why: str) -> ModelError:
    known = ", ".join(sorted({*CUTTING.values(), "SentencePiece BPE"}))
    return ModelError.one(
        "E030",
        f"the tokenizer {why}: its texts cannot be written so that llama.cpp reads them alike",
        help=f"known: {known}. For another one give --converter with the path of llama.cpp's convert_hf_to_gguf.py",
    )
