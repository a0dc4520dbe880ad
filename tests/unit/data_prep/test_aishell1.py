from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import aishell1
from qwen_audio_train.shards.reader import ShardSet
from tests.unit.data_prep.conftest import run, skipped_of, texts_of


@pytest.fixture
def release(tmp_path: Path, write_audio: Callable[..., Path]) -> Path:
    root = tmp_path / "data_aishell"
    for split, speaker in (("train", "S0002"), ("test", "S0764")):
        for number in (121, 122, 123):
            name = f"BAC009{speaker}W0{number}.wav"
            write_audio(root / "wav" / split / speaker / name, 3200 + number, seed=number)
    (root / "wav/test/S0764/BAC009S0764W0124.wav").write_bytes(b"RIFF")
    lines = [
        "BAC009S0764W0121 甚至 出现 交易 几乎 停滞 的 情况",
        "BAC009S0764W0122 一　二 \uff2b\uff34\uff36 \uff11\uff12",
    ]
    lines += ["BAC009S0764W0124 坏 了", *(f"BAC009S0002W0{number} 好" for number in (121, 122, 123))]
    (root / "transcript").mkdir()
    (root / "transcript/aishell_transcript_v0.8.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


EXPECTED = {"test/BAC009S0764W0121": "甚至出现交易几乎停滞的情况", "test/BAC009S0764W0122": "一二KTV12"}


def test_joins_words_and_skips_what_has_no_transcript(release: Path, tmp_path: Path) -> None:
    run(aishell1, tmp_path, tmp_path / "out", "--splits", "test")
    folder = tmp_path / "out" / "aishell1_test"
    assert texts_of(folder) == EXPECTED
    assert ShardSet.open(folder).record(0).extra == {"speaker": "S0764"}
    skipped = skipped_of(folder)
    assert skipped["test/BAC009S0764W0123"] == "recording without a transcript"
    assert "wav without a data chunk" in skipped["test/BAC009S0764W0124"]
    assert len(skipped) == 2


def test_reads_the_speakers_archives(release: Path, tmp_path: Path) -> None:
    for split, speaker in (("train", "S0002"), ("test", "S0764")):
        with tarfile.open(release / "wav" / f"{speaker}.tar.gz", "w:gz") as tar:
            tar.add(release / "wav" / split / speaker, f"{split}/{speaker}")
        (release / "wav" / split).rename(tmp_path / split)
    run(aishell1, release, tmp_path / "out", "--splits", "test", "train")
    assert texts_of(tmp_path / "out" / "aishell1_test") == EXPECTED
    assert len(skipped_of(tmp_path / "out" / "aishell1_test")) == 2
    assert len(texts_of(tmp_path / "out" / "aishell1_train")) == 3
