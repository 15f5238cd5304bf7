"""Golden and bad rows of the formats that read judged answers.

Usage: ``GOLDEN["feedback"]``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GOLDEN: dict[str, list[tuple[Mapping[str, Any], list[tuple[Any, ...]]]]] = {
    "feedback": [
        (
            {"prompt": "What?", "completion": "A cat.", "label": True, "image": "a.png"},
            [("user", "<a.png>", "What?"), ("assistant", "A cat.")],
        ),
        (
            {
                "images": ["a.png", "b.png"],
                "prompt": [
                    {"role": "system", "content": "S"},
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}, {"type": "image"}]},
                ],
                "completion": [{"role": "assistant", "content": [{"type": "text", "text": "1"}]}],
                "label": False,
            },
            [("system", "S"), ("user", "<a.png>", "Q", "<b.png>"), ("assistant", "1")],
        ),
        ({"prompt": "Q", "completion": "1", "label": False, "images": None}, [("user", "Q"), ("assistant", "1")]),
    ],
    "sharegpt_feedback": [
        (
            {
                "system": "S",
                "conversations": [
                    {"from": "human", "value": "<image>\nQ"},
                    {"from": "gpt", "value": "A"},
                    {"from": "human", "value": "And <image>?"},
                    {"from": "gpt", "value": "1"},
                ],
                "kto_tag": False,
                "images": ["a.png", "b.png"],
            },
            [
                ("system", "S"),
                ("user", "<a.png>", "Q"),
                ("assistant", "A"),
                ("user", "And ", "<b.png>", "?"),
                ("assistant", "1"),
            ],
        ),
        (
            {
                "messages": [{"role": "user", "content": "<video>Q"}, {"role": "assistant", "content": "1"}],
                "kto_tag": True,
                "videos": [["a.png", "b.png"]],
            },
            [("user", "<a.png>", "<b.png>", "Q"), ("assistant", "1")],
        ),
        (
            {
                "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "1"}],
                "label": True,
            },
            [("user", "Q"), ("assistant", "1")],
        ),
    ],
}

ASK, ANSWER = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}
SAY, REPLY = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
TRL = {"prompt": "Q", "completion": "1", "label": True}
FACTORY = {"conversations": [ASK, ANSWER], "kto_tag": True}
BAD: dict[str, list[tuple[Mapping[str, Any], str]]] = {
    "feedback": [
        ({"prompt": "Q", "completion": "1"}, "no `label`; the row has `prompt`, `completion`"),
        ({**TRL, "label": None}, "no `label`"),
        ({**TRL, "label": "true"}, "`label` is str, neither true nor false"),
        ({**TRL, "label": 1}, "`label` is int, neither true nor false"),
        ({"completion": "1", "label": True}, "no `prompt`"),
        ({"prompt": "Q", "label": True}, "no `completion`"),
        ({**TRL, "completion": " \n"}, "empty answer (turn 2)"),
        ({**TRL, "completion": []}, "`completion` has 0 messages, where one answer belongs"),
        ({**TRL, "completion": [REPLY, SAY, REPLY]}, "`completion` has 3 messages"),
        ({**TRL, "completion": [SAY]}, "no answer"),
        ({**TRL, "completion": 5}, "`completion` is not a list"),
        ({**TRL, "prompt": [SAY, REPLY]}, "turn 3 is `assistant` where `user` belongs"),
        ({**TRL, "prompt": []}, "turn 1 is `assistant` where `user` belongs"),
        ({**TRL, "prompt": " "}, "empty question"),
        ({**TRL, "completion": "\ud800"}, "surrogate"),
        ({**TRL, "image": "a", "prompt": "<image><image>"}, "2 <image> markers for 1 pictures"),
        ({**TRL, "completion": [{"role": "assistant", "content": [{"type": "image", "image": "a"}]}]}, "picture in an"),
    ],
    "sharegpt_feedback": [
        ({"conversations": [ASK, ANSWER]}, "no `kto_tag` or `label`; the row has `conversations`"),
        ({**FACTORY, "kto_tag": "yes"}, "`kto_tag` is str, neither true nor false"),
        ({**FACTORY, "kto_tag": 0}, "`kto_tag` is int"),
        ({"kto_tag": True}, "no `conversations` or `messages`"),
        ({**FACTORY, "conversations": "Q"}, "not a list"),
        ({"messages": "Q", "kto_tag": True}, "`messages` is not a list"),
        ({**FACTORY, "conversations": [ASK]}, "no answer"),
        ({**FACTORY, "conversations": [ASK, ANSWER, ASK]}, "last turn is the user's"),
        ({**FACTORY, "conversations": [ASK, ANSWER, ANSWER]}, "turn 3 is `assistant` where `user` belongs"),
        ({**FACTORY, "conversations": [ASK, {"from": "gpt", "value": " "}]}, "empty answer"),
        ({**FACTORY, "conversations": [ASK, {"from": "bing", "value": "A"}]}, "unknown speaker `bing` in turn 2"),
        (
            {**FACTORY, "videos": [["a"]], "conversations": [{"from": "human", "value": "<video><video>"}, ANSWER]},
            "2 <video> markers for 1 videos",
        ),
        ({**FACTORY, "conversations": [ASK, {**ANSWER, "weight": 0}]}, "no answer is learned"),
    ],
}
