from __future__ import annotations

from collections import Counter

import pytest

from qwen_audio_train.errors import ConfigError
from qwen_audio_train.prompts.tasks import num_wordings, task_names, task_prompt, wording_choice
from qwen_audio_train.prompts.wordings import WORDINGS

OFFICIAL = {
    "transcribe": "Detect the language and recognize the speech: ",
    "translate": "Detect the language and translate the speech into Mandarin: ",
    "emotion": "Recognize the emotion with keywords in English:",
    "sentiment": "Recognize the sentiment with keywords in English:",
    "vocal_sound": "Classify the human vocal sound to VocalSound in English:",
    "caption": "Generate the caption in English:",
}


@pytest.mark.parametrize("task", OFFICIAL)
def test_first_wording_is_the_official_one(task: str) -> None:
    text_language = "zh" if task == "translate" else "en"
    prompt = task_prompt(task, audio_language="fr", text_language=text_language)
    assert prompt.prompt == OFFICIAL[task]
    assert prompt.target_tag == ("<|fr|>" if task in ("transcribe", "translate") else None)
    assert prompt.target_lead == ("" if prompt.target_tag else " ")


def test_every_wording_of_every_task_is_complete_and_distinct() -> None:
    for task in task_names():
        prompts = [
            task_prompt(task, audio_language="en", text_language="de", override=question, wording=wording).prompt
            for question in (["Who {is} it?"] if task == "question" else [None])
            for wording in range(num_wordings(task))
        ]
        assert len(set(prompts)) == len(prompts) == len(WORDINGS[task]) >= 3
        assert not any("{language}" in prompt or "{question}" in prompt for prompt in prompts)


def test_override_replaces_the_wording_but_keeps_the_space_rule() -> None:
    assert task_prompt("transcribe", audio_language="en", text_language="en", override="Go:").prompt == "Go: "


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(ConfigError, match="known: transcribe, translate, emotion"):
        task_prompt("asr", audio_language="en", text_language="en")
    with pytest.raises(ConfigError, match=r"'xx'.*known: ar, be"):
        task_prompt("translate", audio_language="en", text_language="xx")


def test_wording_choice_is_fixed_and_even() -> None:
    # Written down once: it must never change, or runs could not be repeated.
    assert [wording_choice(1, 2, sample) % 4 for sample in range(8)] == [0, 1, 0, 1, 0, 3, 0, 1]
    counts = Counter(wording_choice(0, 0, sample) % 4 for sample in range(4000))
    assert all(900 < count < 1100 for count in counts.values())
    assert wording_choice(0, 1, 5) != wording_choice(1, 0, 5)
