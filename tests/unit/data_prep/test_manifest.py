from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep import manifest
from qwen_audio_train.errors import ConfigError, SampleError
from qwen_audio_train.samples import ChatRecord, PreferenceRecord, PretrainRecord
from qwen_audio_train.shards.reader import ShardSet

TEXT_TURN = {"role": "assistant", "content": "A tone."}
AUDIO_TURN = {"role": "user", "content": "<audio>\nWhat is it?"}
PARTS = [{"type": "audio"}, {"type": "text", "text": "What is it?"}]


@pytest.fixture
def prepare(tmp_path: Path, write_audio: Callable[..., Path]) -> Callable[..., ShardSet]:
    for number in range(3):
        write_audio(tmp_path / "clips" / f"{number}.wav", 3200 + number, seed=number)

    def run(rows: list[Any], *more: str, suffix: str = ".jsonl") -> ShardSet:
        path = tmp_path / f"rows{suffix}"
        path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)) + "\n")
        options = ["--output", str(tmp_path / "out"), "--split", "train", "--license", "CC0-1.0", "--workers", "0"]
        manifest.prepare(manifest.build_parser().parse_args(["--input", str(path), *options, *more]))
        return ShardSet.open(tmp_path / "out" / "rows")

    return run


def test_ms_swift_chat(prepare: Callable[..., ShardSet]) -> None:
    system = {"role": "system", "content": "Be brief."}
    voice = {"role": "user", "content": "<audio>"}
    shards = prepare(
        [
            {"messages": [system, AUDIO_TURN, TEXT_TURN], "audios": ["clips/0.wav"]},
            {"messages": [voice, TEXT_TURN, voice, TEXT_TURN], "audios": ["clips/1.wav", "clips/2.wav"]},
            {"messages": [{"role": "user", "content": "No clip."}, TEXT_TURN]},
        ]
    )
    first, second, third = (shards.record(i) for i in range(3))
    assert isinstance(first, ChatRecord)
    assert first.messages == (system, {"role": "user", "content": PARTS}, TEXT_TURN)
    assert first.source == "rows"
    assert second.messages[2] == {"role": "user", "content": [{"type": "audio"}]}
    assert [len(shards.read_clip(clip, second.origin)) for clip in second.clips] == [3201, 3202]
    assert third.clips == ()


def test_ms_swift_preference(prepare: Callable[..., ShardSet]) -> None:
    row = {"messages": [AUDIO_TURN, TEXT_TURN], "rejected_response": "A dog.", "audios": ["clips/0.wav"]}
    record = prepare([row]).record(0)
    assert isinstance(record, PreferenceRecord)
    assert record.messages == ({"role": "user", "content": PARTS},)
    assert (record.chosen, record.rejected) == ("A tone.", "A dog.")


def test_llama_factory_chat_and_preference(prepare: Callable[..., ShardSet]) -> None:
    question = {"from": "human", "value": "<audio>What is it?"}
    rows = [
        {"conversations": [question, {"from": "gpt", "value": "A tone."}], "audios": ["clips/0.wav"], "system": "Hi."},
        {
            "conversations": [question],
            "chosen": {"from": "gpt", "value": "A tone."},
            "rejected": {"from": "gpt", "value": "A dog."},
            "audios": ["clips/1.wav"],
        },
    ]
    shards = prepare(rows, suffix=".json")
    chat, pair = shards.record(0), shards.record(1)
    assert isinstance(chat, ChatRecord)
    assert chat.messages == ({"role": "system", "content": "Hi."}, {"role": "user", "content": PARTS}, TEXT_TURN)
    assert isinstance(pair, PreferenceRecord)
    assert (pair.chosen, pair.rejected) == ("A tone.", "A dog.")


MARKUP = "<|audio_bos|><|AUDIO|><|audio_eos|>"
EVALUATION = [
    ("Detect the language and recognize the speech: <|fr|>", ("transcribe", "fr", "fr", None)),
    ("Detect the language and translate the speech into English: <|de|>", ("translate", "de", "en", None)),
    ("Recognize the emotion with keywords in English:", ("emotion", "en", "en", None)),
    ("How many speakers are there?", ("question", "en", "en", "How many speakers are there?")),
]


@pytest.mark.parametrize(("prompt", "expected"), EVALUATION)
def test_official_evaluation(prepare: Callable[..., ShardSet], prompt: str, expected: tuple) -> None:
    row = {"audio": "clips/0.wav", "prompt": MARKUP + prompt, "gt": "answer", "source": "set_test"}
    record = prepare([row], "--audio-language", "en").record(0)
    assert isinstance(record, PretrainRecord)
    assert (record.task, record.audio_language, record.text_language, record.prompt) == expected
    assert (record.text, record.source) == ("answer", "set_test")


BAD = [
    ({"text": "x"}, "no known shape"),
    ({"messages": [AUDIO_TURN, TEXT_TURN], "audios": []}, "1 audio parts for 0 clips"),
    ({"messages": [AUDIO_TURN, TEXT_TURN], "audios": ["clips/9.wav"]}, "No such file"),
    ({"messages": [AUDIO_TURN, TEXT_TURN], "audios": ["rows.jsonl"]}, "suffix is not one of"),
    ({"messages": [AUDIO_TURN, TEXT_TURN], "audios": ["clips/0.wav"], "images": ["a.png"]}, "images"),
    ({"messages": [{"from": "tool", "value": "x"}]}, "turn"),
    ({"audio": "clips/0.wav", "prompt": "Hm?", "gt": "x"}, "give --audio-language"),
    (["list"], "row 0"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_bad_rows_stop_the_run_or_are_listed(
    prepare: Callable[..., ShardSet], tmp_path: Path, row: Any, reason: str
) -> None:
    good = {"messages": [AUDIO_TURN, TEXT_TURN], "audios": ["clips/0.wav"]}
    with pytest.raises(SampleError, match=reason):
        prepare([row, good])
    assert len(prepare([row, good], "--on-bad", "skip")) == 1
    assert reason in (tmp_path / "out" / "rows" / "skipped.jsonl").read_text()


def test_refuses_what_is_no_manifest(prepare: Callable[..., ShardSet], tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"a": 1}\n{"b"\n')
    with pytest.raises(ConfigError, match="line 2"):
        list(manifest.read_rows(path))
