"""Golden and bad rows of the formats that read preferences: the prompt's turns, then the chosen and rejected answers.

Usage: ``GOLDEN["rlaif_v"]``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GOLDEN: dict[str, list[tuple[Mapping[str, Any], list[tuple[Any, ...]]]]] = {
    "preference": [
        (
            {"prompt": "What?", "chosen": "A cat.", "rejected": "A dog.", "image": "a.png"},
            [("user", "<a.png>", "What?"), ("assistant", "A cat."), ("assistant", "A dog.")],
        ),
        (
            {
                "images": ["a.png", "b.png"],
                "prompt": [
                    {"role": "system", "content": "S"},
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}, {"type": "image"}]},
                ],
                "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "1"}]}],
                "rejected": [{"role": "assistant", "content": "2"}],
            },
            [("system", "S"), ("user", "<a.png>", "Q", "<b.png>"), ("assistant", "1"), ("assistant", "2")],
        ),
        (
            {
                "prompt": "Q",
                "images": ["a.png"],
                "chosen": [{"role": "user", "content": "<image>Q"}, {"role": "assistant", "content": "1"}],
                "rejected": [{"role": "user", "content": "<image>Q"}, {"role": "assistant", "content": "2"}],
            },
            [("user", "<a.png>", "Q"), ("assistant", "1"), ("assistant", "2")],
        ),
        (
            {
                "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "1"}],
                "chosen": [
                    {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": "0"},
                    {"role": "user", "content": "R"},
                    {"role": "assistant", "content": "1"},
                ],
                "rejected": [
                    {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": "0"},
                    {"role": "user", "content": "R"},
                    {"role": "assistant", "content": "2"},
                ],
            },
            [("user", "Q"), ("assistant", "0"), ("user", "R"), ("assistant", "1"), ("assistant", "2")],
        ),
    ],
    "rlaif_v": [
        (
            {
                "question": "What?",
                "chosen": "A cat.",
                "rejected": "A dog.",
                "image": "a.png",
                "image_path": "/elsewhere/a.png",
                "idx": 3,
                "origin_dataset": "vqa",
                "origin_split": "{}",
            },
            [("user", "<a.png>", "What?"), ("assistant", "A cat."), ("assistant", "A dog.")],
        ),
        (
            {"question": "What?\n<image>", "chosen": "1", "rejected": "2", "image": "a.png"},
            [("user", "What?", "<a.png>"), ("assistant", "1"), ("assistant", "2")],
        ),
        (
            {"question": "Why?", "chosen": "1", "rejected": "2", "image": None},
            [("user", "Why?"), ("assistant", "1"), ("assistant", "2")],
        ),
    ],
    "sharegpt_ranking": [
        (
            {
                "system": "S",
                "conversations": [
                    {"from": "human", "value": "<image>\nQ"},
                    {"from": "gpt", "value": "A"},
                    {"from": "human", "value": "And <image>?"},
                ],
                "chosen": {"from": "gpt", "value": "1"},
                "rejected": {"from": "gpt", "value": "2"},
                "images": ["a.png", "b.png"],
            },
            [
                ("system", "S"),
                ("user", "<a.png>", "Q"),
                ("assistant", "A"),
                ("user", "And ", "<b.png>", "?"),
                ("assistant", "1"),
                ("assistant", "2"),
            ],
        ),
        (
            {
                "conversations": [{"from": "human", "value": "<video>Q"}],
                "chosen": {"from": "gpt", "value": "1"},
                "rejected": {"from": "gpt", "value": "2"},
                "videos": [["a.png", "b.png"]],
            },
            [("user", "<a.png>", "<b.png>", "Q"), ("assistant", "1"), ("assistant", "2")],
        ),
    ],
}

ASK, ANSWER = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}
SAY, REPLY = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
TRL = {"prompt": "Q", "chosen": "1", "rejected": "2"}
RLAIF = {"question": "Q", "chosen": "1", "rejected": "2"}
RANKING = {"conversations": [ASK], "chosen": ANSWER, "rejected": {"from": "gpt", "value": "B"}}
OTHER = {"role": "assistant", "content": "B"}
BAD: dict[str, list[tuple[Mapping[str, Any], str]]] = {
    "preference": [
        ({"prompt": "Q", "rejected": "2"}, "no `chosen`; the row has `prompt`, `rejected`"),
        ({**TRL, "rejected": None}, "no `rejected`"),
        ({**TRL, "chosen": " \n"}, "the chosen answer is empty"),
        ({**TRL, "rejected": ""}, "the rejected answer is empty"),
        ({**TRL, "rejected": " 1\n"}, "are the same"),
        ({**TRL, "prompt": " "}, "empty question"),
        ({**TRL, "prompt": None}, "no `prompt`"),
        ({**TRL, "prompt": []}, "no question before the answers"),
        ({**TRL, "prompt": 5}, "`prompt` is not a list"),
        ({**TRL, "chosen": 5}, "`chosen` is not a list"),
        ({**TRL, "chosen": "\ud800"}, "surrogate"),
        ({**TRL, "chosen": []}, "`chosen` has 0 messages after the prompt"),
        ({**TRL, "chosen": [REPLY, SAY, REPLY]}, "`chosen` has 3 messages after the prompt"),
        ({**TRL, "rejected": [SAY]}, "the rejected answer is `user`'s where `assistant` belongs"),
        ({**TRL, "prompt": [SAY, REPLY]}, "turn 3 is `assistant` where `user` belongs"),
        ({"chosen": [SAY, REPLY], "rejected": [SAY, REPLY]}, "are the same"),
        ({"chosen": [SAY, REPLY], "rejected": [SAY]}, "`chosen` has 2 messages"),
        ({"chosen": [REPLY], "rejected": [OTHER]}, "no `prompt`"),
        ({**TRL, "image": "a", "prompt": "<image><image>"}, "2 <image> markers for 1 pictures"),
        (
            {**TRL, "chosen": [{"role": "assistant", "content": [{"type": "image", "image": "a"}]}]},
            "picture in the chosen answer",
        ),
    ],
    "rlaif_v": [
        ({"question": "Q", "chosen": "1"}, "no `rejected`; the row has `question`, `chosen`"),
        ({"question": "Q", "rejected": "2"}, "no `chosen`"),
        ({"chosen": "1", "rejected": "2"}, "no `question`"),
        ({**RLAIF, "question": ["Q"]}, "`question` is list, not text"),
        ({**RLAIF, "chosen": 1}, "`chosen` is int, not text"),
        ({**RLAIF, "chosen": ""}, "the chosen answer is empty"),
        ({**RLAIF, "rejected": "1 "}, "are the same"),
        ({**RLAIF, "question": ""}, "empty question"),
        ({**RLAIF, "image": "a", "question": "<image> or <image>"}, "2 <image> markers for 1 pictures"),
        ({**RLAIF, "image": "../a.png"}, "contains `..`"),
    ],
    "sharegpt_ranking": [
        ({"conversations": [ASK], "chosen": ANSWER}, "no `rejected`"),
        ({**RANKING, "conversations": "Q"}, "not a list"),
        ({**RANKING, "conversations": []}, "no question before the answers"),
        ({**RANKING, "conversations": [ASK, ANSWER]}, "turn 3 is `assistant` where `user` belongs"),
        ({**RANKING, "conversations": [ASK, ASK]}, "turn 2 is `user` where `assistant` belongs"),
        ({**RANKING, "conversations": ["Q"]}, "turn 1 is not {from, value}"),
        ({**RANKING, "conversations": [{"from": "bing", "value": "Q"}]}, "unknown speaker `bing` in turn 1"),
        ({**RANKING, "chosen": "A"}, "`chosen` is not {from, value}"),
        ({**RANKING, "rejected": ASK}, "the rejected answer is `user`'s"),
        ({**RANKING, "rejected": {"from": "gpt", "value": " "}}, "the rejected answer is empty"),
        ({**RANKING, "rejected": {"from": "gpt", "value": "A "}}, "are the same"),
        (
            {**RANKING, "images": ["a", "b"], "conversations": [{"from": "human", "value": "<image>Q"}]},
            "1 <image> markers for 2 pictures",
        ),
        ({**RANKING, "conversations": [{"from": "human", "value": "<image>"}]}, "a marker and nothing else"),
        ({**RANKING, "chosen": {**ANSWER, "loss": False}}, "no answer is learned"),
    ],
}
