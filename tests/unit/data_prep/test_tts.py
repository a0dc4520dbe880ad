from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep import tts
from qwen_audio_train.errors import ConfigError

PROMPTS = [json.loads(line) for line in tts.PROMPTS.read_text(encoding="utf-8").splitlines()]


def test_prompts_are_parallel_in_all_languages() -> None:
    assert len(PROMPTS) == len({prompt["id"] for prompt in PROMPTS}) == 60
    assert all(prompt[language].strip() for prompt in PROMPTS for language in tts.VOICE_OF_LANGUAGE)
    assert len({prompt["en"] for prompt in PROMPTS}) == 60


def test_splits_share_no_sentence_and_none_is_empty() -> None:
    specs = {split: tts.samples_of(PROMPTS, Path("engine"), split) for split in tts.SPLITS}
    sentences = {split: {spec.metadata["prompt_id"] for spec in specs[split]} for split in tts.SPLITS}
    assert all(sentences.values())
    assert sum(map(len, sentences.values())) == 60
    # 5 languages transcribed and 4 translated, by 4 speakers.
    assert sum(map(len, specs.values())) == 60 * 9 * 4
    spec = next(spec for spec in specs["train"] if spec.key.startswith("translate/ru"))
    prompt = next(prompt for prompt in PROMPTS if prompt["id"] == spec.metadata["prompt_id"])
    assert (spec.metadata["text"], spec.clips[0][1]) == (prompt["en"], prompt["ru"])


def test_refuses_an_engine_that_is_not_the_pinned_one(tmp_path: Path) -> None:
    (tmp_path / next(iter(tts.SHA256_OF_WHEEL))).write_bytes(b"something else")
    with pytest.raises(ConfigError, match="not the pinned wheel"):
        tts.fetch_wheel(tmp_path)
