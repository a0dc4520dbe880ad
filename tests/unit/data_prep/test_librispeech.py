from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import librispeech
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.reader import ShardSet


@pytest.fixture
def release(tmp_path: Path, write_audio: Callable[..., Path]) -> Path:
    for split, speaker in (("train-clean-100", 103), ("test-clean", 61)):
        chapter = tmp_path / "LibriSpeech" / split / str(speaker) / "1240"
        lines = []
        for number in range(3):
            utterance = f"{speaker}-1240-{number:04d}"
            write_audio(chapter / f"{utterance}.flac", 481_000 if number == 2 else 3200 + number, seed=number)
            lines.append(f"{utterance} CHAPTER {('ONE', 'TWO', 'THREE')[number]} IT'S HERE\n")
        (chapter / f"{speaker}-1240.trans.txt").write_text("".join(lines) + f"{speaker}-1240-0009 LOST\n")
    return tmp_path


def arguments(release: Path, *more: str) -> object:
    command = ["--input", str(release), "--output", str(release / "out"), "--workers", "0", *more]
    return librispeech.build_parser().parse_args(command)


def test_makes_a_set_of_each_split(release: Path) -> None:
    librispeech.prepare(arguments(release))
    train = ShardSet.open(release / "out" / "librispeech_train_clean_100")
    test = ShardSet.open(release / "out" / "librispeech_test_clean")
    assert (len(train), len(test), train.split, test.split) == (2, 2, "train", "test")
    record = train.record(1)
    assert record.text == "chapter two it's here"
    assert record.origin.key == "train-clean-100/103-1240-0001"
    assert record.extra == {"speaker": "103"}
    assert len(train.read_clip(record.clips[0], record.origin)) == 3201
    skipped = (release / "out" / "librispeech_test_clean" / "skipped.jsonl").read_text().splitlines()
    assert "30.062 s" in json.loads(skipped[0])["reason"]
    assert json.loads(skipped[1])["reason"] == "transcript without a recording"


def test_limit_and_choice_of_splits(release: Path) -> None:
    librispeech.prepare(arguments(release, "--splits", "test-clean", "--limit", "1"))
    assert [path.name for path in (release / "out").iterdir()] == ["librispeech_test_clean"]
    assert len(ShardSet.open(release / "out" / "librispeech_test_clean")) == 1


def test_says_what_is_missing(release: Path) -> None:
    with pytest.raises(ConfigError, match="no folder dev-clean"):
        librispeech.prepare(arguments(release, "--splits", "dev-clean"))
