"""Golden and bad rows of formats that are the columns of published data sets or of other trainers.

Usage: ``GOLDEN["vqa"]``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LETTER = "Answer with the option's letter from the given choices directly."
SAY, REPLY = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
OTHER = {"role": "assistant", "content": "B"}
ASK, ANSWER = {"from": "human", "value": "<image>Q"}, {"from": "gpt", "value": "A"}
PAIR = [("user", "<a.png>", "Q"), ("assistant", "A"), ("assistant", "B")]
ONE = PAIR[:2]

GOLDEN: dict[str, list[tuple[Mapping[str, Any], list[tuple[Any, ...]]]]] = {
    "vqa": [
        ({"image": "a.png", "question": "Q", "answer": "A"}, ONE),
        ({"image": None, "question": "Q", "answer": 3}, [("user", "Q"), ("assistant", "3")]),
        ({"image": "a.png", "question": "Q", "answers": ["B", "A", "A"], "image_width": 3}, ONE),
        ({"image": "a.png", "question": "Q", "answers": '["A", "B"]'}, ONE),
        ({"image": "a.png", "question": "Q", "multiple_choice_answer": "A", "answers": [{"answer": "B"}]}, ONE),
        ({"image": "a.png", "question": "Q", "answers": [{"answer": "A", "answer_id": 1}]}, ONE),
        *(
            (
                {"image": "a.png", "question": "Q", "choices": choices, "answer": answer, "hint": "H"},
                [("user", "<a.png>", f"H\nQ\nA. x\nB. y\n{LETTER}"), ("assistant", "B")],
            )
            for choices, answer in ((["x", "y"], 1), ("['x', 'y']", "B"), (["x", "y"], "y"))
        ),
    ],
    "alpaca": [
        ({"instruction": "Q", "input": "", "output": "A", "image": "a.png"}, ONE),
        (
            {
                "system": "S",
                "history": [["Q1", "A1"]],
                "instruction": "Q",
                "input": "I <image>",
                "output": "A",
                "images": ["a.png"],
            },
            [("system", "S"), ("user", "Q1"), ("assistant", "A1"), ("user", "Q\nI", "<a.png>"), ("assistant", "A")],
        ),
    ],
    "alpaca_ranking": [({"instruction": "Q", "chosen": "A", "rejected": "B", "images": ["a.png"]}, PAIR)],
    "the_cauldron": [
        (
            {
                "images": ["a.png"],
                "texts": [{"user": "Q", "assistant": "A", "source": "s"}, {"user": "R", "assistant": "B"}],
            },
            [*ONE, ("user", "R"), ("assistant", "B")],
        ),
        ({"images": ["a.png"], "texts": '[{"user": "Q", "assistant": "A"}]'}, ONE),
    ],
    "rlhf_v": [
        ({"image": "a.png", "text": '{"question": "Q", "chosen": "A", "rejected": "B"}'}, PAIR),
        ({"image": "a.png", "text": {"question": "Q", "chosen": "A", "rejected": "B"}, "idx": 1}, PAIR),
    ],
    "povid": [
        (
            {
                "image": "a.png",
                "conversations": [ASK, ANSWER],
                "rejected_conversations": [ASK, {"from": "gpt", "value": "B"}],
            },
            PAIR,
        )
    ],
    "swift": [
        ({"query": "<image>Q", "response": "A", "images": ["a.png"]}, ONE),
        (
            {"system": "S", "query": "Q", "response": "A", "history": '[["Q1", "A1"]]'},
            [("system", "S"), ("user", "Q1"), ("assistant", "A1"), ("user", "Q"), ("assistant", "A")],
        ),
    ],
    "swift_ranking": [
        ({"messages": [SAY, REPLY], "rejected_response": "B", "images": ["a.png"]}, PAIR),
        ({"query": "Q", "response": "A", "rejected_response": "B", "images": ["a.png"]}, PAIR),
        ({"messages": [SAY, REPLY], "rejected_messages": [OTHER], "images": ["a.png"]}, PAIR),
        (
            {
                "messages": [SAY, REPLY],
                "rejected_messages": [SAY, OTHER],
                "images": ["a.png"],
                "rejected_images": ["a.png"],
            },
            PAIR,
        ),
    ],
}

VQA = {"question": "Q", "image": "a"}
CHOICES = {**VQA, "choices": ["x", "y"]}
SWIFT = {"messages": [SAY, REPLY], "rejected_response": "B"}
POVID = {"image": "a", "conversations": [ASK, ANSWER]}
BAD: dict[str, list[tuple[Mapping[str, Any], str]]] = {
    "vqa": [
        (VQA, "no `answer`"),
        ({**VQA, "question": 5, "answer": "A"}, "must be text"),
        ({**VQA, "answers": []}, "empty answer"),
        ({**VQA, "answers": [None]}, "the answer is NoneType"),
        ({**VQA, "answer": True}, "the answer is bool"),
        ({**CHOICES, "answer": 2}, "none of the 2 choices"),
        ({**CHOICES, "answer": "C"}, "none of the 2 choices"),
        ({**CHOICES, "answer": ""}, "none of the 2 choices"),
        ({**VQA, "choices": "x or y", "answer": 0}, "not a list of texts"),
        ({**VQA, "choices": ["x"] * 27, "answer": 0}, "more than there are letters"),
    ],
    "alpaca": [
        ({"instruction": "Q"}, "no `output`"),
        ({"instruction": 5, "output": "A"}, "must be text"),
        ({"instruction": "Q", "output": 5}, "`output` is int, not text"),
        ({"instruction": "Q", "output": "A", "history": ["Q1", "A1"]}, "not a list of pairs"),
    ],
    "alpaca_ranking": [
        ({"instruction": "Q", "chosen": "A"}, "no `rejected`"),
        ({"instruction": "Q", "chosen": "A", "rejected": "A"}, "are the same"),
    ],
    "the_cauldron": [
        ({"images": ["a"]}, "no `texts`"),
        ({"texts": []}, "is not a list of {user, assistant}"),
        ({"texts": [{"user": "Q"}]}, "`texts` 1 is not {user, assistant}"),
    ],
    "rlhf_v": [
        ({"image": "a"}, "no `text`"),
        ({"text": "A cat."}, "no text `question`"),
        ({"text": '{"question": "Q", "chosen": "A"}'}, "no text `rejected`"),
    ],
    "povid": [
        (POVID, "no `rejected_conversations`"),
        ({**POVID, "rejected_conversations": 5}, "not a list of turns"),
        (
            {**POVID, "rejected_conversations": [{"from": "human", "value": "<image>R"}, ANSWER]},
            "differ before their last answer",
        ),
    ],
    "swift": [({"query": "Q"}, "no `response`"), ({"query": "Q", "response": 5}, "`response` is int, not text")],
    "swift_ranking": [
        ({"messages": [SAY, REPLY]}, "no `rejected_response` or `rejected_messages`"),
        ({**SWIFT, "rejected_response": 5}, "`rejected_response` is int"),
        ({**SWIFT, "messages": []}, "no answer"),
        ({"query": "Q", "rejected_response": "B"}, "`response` is NoneType"),
        (
            {"messages": [SAY, REPLY], "rejected_messages": [{"role": "user", "content": "R"}, OTHER]},
            "differ before their last answer",
        ),
        ({**SWIFT, "images": ["a"], "rejected_images": ["b"]}, "`rejected_images` are others"),
    ],
}
