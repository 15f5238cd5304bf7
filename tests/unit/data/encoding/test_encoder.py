"""Samples become the tensors a model needs; lengths are known without decoding; rows that do not fit say why."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qlmm.core.errors import DataError, ModelError, RunError
from qlmm.data.batching.collators import Collator, rows
from qlmm.data.encoding.encoder import IGNORED, Encoder
from qlmm.data.errors import DropReason
from qlmm.data.media.images import BadImage
from qlmm.data.media.media_root import ImageRoot
from qlmm.data.sample import ImageRef, Origin, Sample, Turn
from tests.tiny import TOKENS_PER_IMAGE, tiny_llava, tiny_processor, tiny_tokenizer


def picture(width: int = 40, height: int = 30, colour: str = "red") -> ImageRef:
    return ImageRoot(".").ref(Image.new("RGB", (width, height), colour))


def sample(*turns: tuple[Any, ...], line: int = 1) -> Sample:
    return Sample(tuple(Turn(turn[0], tuple(turn[1:])) for turn in turns), Origin("rows.jsonl", line))


@functools.lru_cache
def processor(template: str = "chatml") -> Any:
    return tiny_processor(template)


SHOWN = sample(("user", picture(), "What is this?"), ("assistant", "A red cat."))
PLAIN = sample(("user", "Hi"), ("assistant", "Ho"), line=2)
SEVERAL = sample(
    ("system", "S."),
    ("user", picture(), picture(9, 300), "Compare."),
    ("assistant", "One is thin."),
    ("user", "Again?", picture(1, 1)),
    ("assistant", "Dot."),
    line=3,
)


def test_a_mixed_batch_is_right_padded_and_trains_a_model() -> None:
    batch = Encoder.make(processor()).batch([SHOWN, PLAIN, SEVERAL])
    assert set(batch) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    assert batch["pixel_values"].shape == (4, 3, 28, 28)
    real = batch["attention_mask"].bool()
    assert (real.long().diff(dim=1) <= 0).all()
    assert (batch["labels"][~real] == IGNORED).all()
    assert (batch["input_ids"][~real] == processor().tokenizer.pad_token_id).all()
    learned = batch["labels"] != IGNORED
    assert (batch["labels"][learned] == batch["input_ids"][learned]).all()
    model = tiny_llava(processor())
    loss = model(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_batching_does_not_change_a_row() -> None:
    encoder = Encoder.make(processor())
    together = encoder.batch([SHOWN, PLAIN, SEVERAL])
    for place, row in enumerate([SHOWN, PLAIN, SEVERAL]):
        alone = encoder.batch([row])
        length = alone["input_ids"].shape[1]
        for name in ("input_ids", "attention_mask", "labels"):
            assert torch.equal(together[name][place, :length], alone[name][0])


def test_pictures_go_to_their_own_places() -> None:
    red, blue = picture(30, 30, "red"), picture(30, 30, "blue")
    encoder = Encoder.make(processor())
    first = sample(("user", red, "and", blue), ("assistant", "x"), ("user", "<image>", red), ("assistant", "y"))
    pixels = encoder.batch([PLAIN, first, sample(("user", blue), ("assistant", "z"))])["pixel_values"]
    assert [int(one[0].mean() > one[2].mean()) for one in pixels] == [1, 0, 1, 0]


def test_without_a_picture_there_are_no_pixels() -> None:
    assert set(Encoder.make(processor()).batch([PLAIN])) == {"input_ids", "attention_mask", "labels"}


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), max_size=4),
    words=st.lists(st.text(max_size=15).filter(str.strip), min_size=2, max_size=6),
    template=st.sampled_from(["chatml", "owl", "vicuna"]),
)
def test_measured_is_what_a_batch_has(sizes: list[tuple[int, int]], words: list[str], template: str) -> None:
    encoder = Encoder.make(processor(template))
    asked = [picture(*size) for size in sizes]
    row = sample(*(("assistant" if n % 2 else "user", word, *([] if n else asked)) for n, word in enumerate(words)))
    batch, (lengths,) = encoder.batch([row]), encoder.measure([row])
    image_token = encoder.processor.image_token_id
    assert lengths.total == batch["input_ids"].shape[1]
    assert lengths.visual == int((batch["input_ids"] == image_token).sum()) == TOKENS_PER_IMAGE * len(sizes)
    assert lengths.supervised == int((batch["labels"] != IGNORED).sum())


def test_measuring_decodes_no_picture() -> None:
    whole = picture(64, 48)
    assert whole.data is not None
    cut = ImageRef(data=whole.data[:-30])
    row = sample(("user", cut), ("assistant", "x"))
    encoder = Encoder.make(processor())
    assert encoder.measure([row])[0].visual == TOKENS_PER_IMAGE
    with pytest.raises(BadImage):
        encoder.batch([row])


def test_rows_over_the_limit_are_left_out_with_their_tokens() -> None:
    lengths = Encoder.make(processor()).measure([SHOWN, PLAIN, SEVERAL])
    encoder = Encoder.make(processor(), max_length=lengths[0].total)
    fitted = encoder.fit([SHOWN, PLAIN, SEVERAL])
    assert fitted.samples == (SHOWN, PLAIN)
    assert fitted.kept == (0, 1)
    assert fitted.lengths == tuple(lengths[:2])
    (dropped,) = fitted.dropped
    assert str(dropped.origin) == "rows.jsonl:3"
    assert dropped.reason is DropReason.TOO_LONG
    assert dropped.text == f"12 visual + {lengths[2].text} text tokens > {lengths[0].total}"


@settings(max_examples=40, deadline=None)
@given(data=st.data(), limit=st.integers(20, 160))
def test_shortening_keeps_pictures_system_line_and_last_answer(data: st.DataObject, limit: int) -> None:
    turns: list[tuple[Any, ...]] = [("system", "Rules.")] if data.draw(st.booleans()) else []
    for number in range(data.draw(st.integers(1, 4))):
        shown = [picture()] if data.draw(st.booleans()) else []
        turns += [("user", *shown, f"question {number}"), ("assistant", f"answer {number}")]
    row = sample(*turns)
    fitted = Encoder.make(processor(), max_length=limit, overlong="shorten").fit([row])
    if not fitted.samples:
        head = 1 if row.turns[0].role == "system" else 0
        last = sample(*turns[:head], ("user", *row.images, *row.turns[-2].parts[-1:]), turns[-1])
        assert Encoder.make(processor()).measure([last])[0].total > limit
        return
    (kept,) = fitted.samples
    assert fitted.lengths[0].total <= limit
    assert kept.images == row.images
    assert kept.turns[-1] == row.turns[-1]
    assert [turn.role for turn in kept.turns if turn.role == "system"] == [
        t.role for t in row.turns if t.role == "system"
    ]
    assert fitted.shortened == int(kept != row)
    assert [turn.text for turn in kept.turns[-2:]] == [turn.text for turn in row.turns[-2:]]


def test_a_prompt_lets_a_model_answer() -> None:
    encoder = Encoder.make(processor())
    prompt = encoder.prompt(sample(("user", picture(), "What?")))
    assert set(prompt) == {"input_ids", "attention_mask", "pixel_values"}
    model = tiny_llava(processor())
    answer = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert answer.shape[1] <= prompt["input_ids"].shape[1] + 3


def with_template(template: str | None, tokenizer: Any = None) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor

    size = {"height": 28, "width": 28}
    pictures = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size)
    return LlavaProcessor(
        pictures, tokenizer or tiny_tokenizer(), 14, "default", chat_template=template, num_additional_image_tokens=1
    )


def learned(encoder: Encoder, row: Sample) -> str:
    labels = encoder.batch([row])["labels"][0]
    return str(encoder.processor.tokenizer.decode(labels[labels != IGNORED]))


OF_STRINGS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_language_models_template_gets_pictures_as_text() -> None:
    encoder, parts = Encoder.make(with_template(OF_STRINGS)), Encoder.make(processor())
    for row in (SHOWN, SEVERAL, PLAIN):
        assert torch.equal(encoder.batch([row])["labels"], parts.batch([row])["labels"])


def test_a_template_without_marks_is_replaced_by_trls_form_of_it() -> None:
    from trl.chat_template_utils import qwen3_chat_template

    encoder = Encoder.make(with_template(qwen3_chat_template))
    assert "generation" in encoder._renderer.template
    assert learned(encoder, SHOWN).endswith("A red cat.<|im_end|>\n")
    assert encoder.measure([SHOWN])[0].visual == TOKENS_PER_IMAGE


UNMARKED = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
NO_PICTURES = "{% for m in messages %}{% generation %}{{ m['content'][-1]['text'] }}{% endgeneration %}{% endfor %}"


@pytest.mark.parametrize(("template", "code"), [(UNMARKED, "D031"), (None, "D030"), (NO_PICTURES, "D031")])
def test_a_template_unfit_for_training_is_refused_with_the_way_out(template: str | None, code: str) -> None:
    with pytest.raises(ModelError, match=code) as caught:
        Encoder.make(with_template(template))
    assert "base.chat_template" in str(caught.value)


REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"


def test_a_row_the_template_refuses_names_its_line() -> None:
    encoder = Encoder.make(with_template(REFUSES + processor().chat_template))
    with pytest.raises(DataError, match="refuses this row: no system turn") as caught:
        encoder.measure([PLAIN, SEVERAL])
    assert "rows.jsonl:3" in str(caught.value)


def test_a_tokenizer_needs_padding() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ModelError, match="no padding token"):
        Encoder.make(with_template(processor().chat_template, tokenizer))


SPACED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}{% generation %}"
    "{{ m['content'][0]['text'] + '</s>' }}{% endgeneration %}{% else %}{{ 'USER: ' }}{% for p in m['content'] %}"
    "{{ '<image>\n' if p['type'] == 'image' else p['text'] + ' ' }}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def test_a_space_that_the_prompt_lacks_is_learned_with_the_answer() -> None:
    encoder = Encoder.make(with_template(SPACED))
    assert learned(encoder, PLAIN) == " Ho</s>"
    prompt = encoder.prompt(sample(("user", "Hi")))["input_ids"][0].tolist()
    assert encoder.batch([PLAIN])["input_ids"][0].tolist()[: len(prompt)] == prompt


def sentencepiece() -> Any:
    """Llama's kind of tokenizer: a space before every text, a begin token of its own, bytes for what is unknown."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(33, 127)] + ["▁"]
    vocabulary = {token: n for n, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))])}
    for letter in letters:
        vocabulary.setdefault(letter, len(vocabulary))
    merges = [("▁", "c"), ("▁c", "a"), ("▁ca", "t"), ("▁", "A"), ("▁", "U"), ("c", "a"), ("ca", "t")]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<s>", "</s>", "<unk>", "<image>")]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<unk>")


@pytest.mark.parametrize("template", ["owl", "vicuna", "plain"])
def test_sentencepiece_tokenizers_get_no_spaces_at_the_cuts(template: str) -> None:
    encoder = Encoder.make(with_template(tiny_processor(template).chat_template, sentencepiece()))
    row = sample(("user", "a </s> cat <image>"), ("assistant", "cat cat"), ("user", "cat"), ("assistant", "cat"))
    batch = encoder.batch([row])
    tokens = encoder.processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    text = "".join(tokens).replace("<0x0A>", "\n").replace("▁", " ")
    expected = {
        "owl": "<s>\nHuman: a </s> cat <image>\nAI: cat cat</s>\nHuman: cat\nAI: cat</s>",
        "vicuna": "<s>USER: a </s> cat <image> ASSISTANT: cat cat</s>USER: cat ASSISTANT: cat</s>",
        "plain": "<s>a </s> cat <image>cat cat</s>catcat</s>",
    }[template]
    # What remains is the space the tokenizer itself puts after each special token of the text.
    assert text.replace("</s> ", "</s>").replace("<s> ", "<s>") == expected.replace("</s> ", "</s>")
    assert tokens.count("</s>") == 2
    assert "<image>" not in tokens
    labels = batch["labels"][0]
    words = encoder.processor.tokenizer.convert_ids_to_tokens(labels[labels != IGNORED].tolist())
    first = "▁cat" if template == "vicuna" else "cat"
    assert words == [first, "▁cat", "</s>", first, "</s>"]


def test_a_begin_token_is_put_once_whoever_writes_it() -> None:
    for template in (tiny_processor("owl").chat_template, OF_STRINGS.replace("<|im_", "[").replace("|>", "]")):
        encoder = Encoder.make(with_template(template, sentencepiece()))
        batch = encoder.batch([sample(("user", "cat"), ("assistant", "cat"))])
        ids = batch["input_ids"][0].tolist()
        assert ids[0] == 1
        assert ids.count(1) == 1
        assert encoder.measure([sample(("user", "cat"), ("assistant", "cat"))])[0].total == len(ids)


def test_a_template_that_never_ends_an_answer_gets_the_tokenizers_end_token() -> None:
    endless = OF_STRINGS.replace("m['content'] + '<|im_end|>' }}{% endgen", "m['content'] }}{% endgen")
    assert learned(Encoder.make(with_template(endless)), PLAIN).endswith("</s>")
    assert learned(Encoder.make(with_template(OF_STRINGS)), PLAIN).endswith("<|im_end|>")


class TestCollator:
    def test_numbers_become_batches_that_know_their_origins(self) -> None:
        samples = [SHOWN, PLAIN, SEVERAL]
        encoder = Encoder.make(processor())
        collate = Collator(samples, encoder)
        numbers = rows(3)
        batch = collate([numbers[2], numbers[0]])
        assert torch.equal(batch["input_ids"], encoder.batch([SEVERAL, SHOWN])["input_ids"])
        assert [origin.line for origin in collate.origins([2, 0])] == [3, 1]

    def test_slots_that_are_no_features_name_the_row(self, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = Encoder.make(processor())
        monkeypatch.setattr(encoder, "slots", lambda images: 5 * len(images))
        with pytest.raises(RunError, match=r"4 picture slots for 5 visual tokens \(1 pictures\)") as caught:
            Collator([SHOWN], encoder)(rows(1))
        assert "rows.jsonl:1" in str(caught.value)

    def test_a_damaged_picture_names_the_row(self) -> None:
        data = picture(64, 48).data
        assert data is not None
        cut = sample(("user", ImageRef(data=data[:-30])), ("assistant", "x"), line=9)
        with pytest.raises(RunError, match="D036") as caught:
            Collator([PLAIN, cut], Encoder.make(processor()))(rows(2))
        assert "rows.jsonl:9" in str(caught.value)


@pytest.mark.parametrize("template", ["chatml", "vicuna", "plain", "owl"])
def test_an_answer_that_is_not_learned_is_read_as_before_and_has_no_label(template: str) -> None:
    """Ids are those of the row without a mask; labels, those of its other answers."""
    encoder = Encoder.make(processor(template))
    turns = [Turn("user", ("Q",)), Turn("assistant", ("first",)), Turn("user", ("R",)), Turn("assistant", ("second",))]
    whole = encoder.batch([Sample(tuple(turns), Origin("rows.jsonl", 1))])
    turns[1] = Turn("assistant", ("first",), learned=False)
    masked = Sample(tuple(turns), Origin("rows.jsonl", 1))
    batch = encoder.batch([masked])
    assert torch.equal(batch["input_ids"], whole["input_ids"])
    learned, before = batch["labels"][0] != IGNORED, whole["labels"][0] != IGNORED
    last = encoder.completions([masked])["completion_mask"][0].bool()
    assert torch.equal(learned, last)
    assert 0 < learned.sum() < before.sum()
    assert encoder.measure([masked])[0].supervised == learned.sum()


def test_a_decoder_of_its_own_learns_no_row_whose_last_answer_is_excepted() -> None:
    turns = (Turn("user", ("Q",)), Turn("assistant", ("A",)), Turn("user", ("R",)), Turn("assistant", ("B",), False))
    encoder = Encoder.make(processor(), decoder=True)
    assert encoder.fit([Sample(turns, Origin("rows.jsonl", 1))]).dropped[0].reason == "nothing to learn"
