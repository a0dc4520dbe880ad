from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import common_voice
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.reader import ShardSet
from tests.unit.data_prep.conftest import run, skipped_of, texts_of

HEADER = [
    "client_id",
    "path",
    "sentence",
    "up_votes",
    "down_votes",
    "age",
    "gender",
    "accents",
    "variant",
    "locale",
    "segment",
]


def row(name: str, sentence: str, locale: str) -> str:
    return "\t".join(["c" * 128, name, sentence, "2", "0", "", "", "", "", locale, ""])


@pytest.fixture
def release(tmp_path: Path, write_audio: Callable[..., Path]) -> Path:
    root = tmp_path / "cv-corpus-15.0-2023-09-08"
    rows = {
        "en": [
            row("common_voice_en_1.mp3", '"He said so.', "en"),
            row("common_voice_en_2.mp3", "A quote\" in the middle, and it's fine.", "en"),
            row("common_voice_en_3.mp3", "A carriage\rreturn.", "en"),
            row("common_voice_en_4.mp3", "  ", "en"),
            row("common_voice_en_5.mp3", "Its clip is damaged.", "en"),
            row("common_voice_en_6.mp3", "Its clip is lost.", "en"),
            row("../../secret.mp3", "Leads out.", "en"),
            "too\tfew\tfields",
        ],
        "zh-CN": [row("common_voice_zh-CN_7.mp3", "你好。", "zh-CN")],
    }
    for locale, lines in rows.items():
        clips = root / locale / "clips"
        for number in (7,) if locale == "zh-CN" else (1, 2, 3, 4):
            rate_hz = (32_000, 48_000)[number % 2]
            write_audio(clips / f"common_voice_{locale}_{number}.mp3", rate_hz // 2, seed=number, rate_hz=rate_hz)
        for split in ("train", "dev", "test"):
            table = "\n".join(["\t".join(HEADER), *lines]) + "\n"
            (root / locale / f"{split}.tsv").write_bytes(table.encode())
    (root / "en/clips/common_voice_en_5.mp3").write_bytes(b"ID3 no audio at all")
    write_audio(root.parent / "secret.mp3")
    return root


def test_quotation_marks_are_part_of_the_sentence(release: Path, tmp_path: Path) -> None:
    run(common_voice, release, tmp_path / "out", "--locales", "en", "--splits", "test")
    assert texts_of(tmp_path / "out" / "common_voice_15_en_test") == {
        "en/common_voice_en_1": '"He said so.',
        "en/common_voice_en_2": "A quote\" in the middle, and it's fine.",
        "en/common_voice_en_3": "A carriage\rreturn.",
    }
    skipped = skipped_of(tmp_path / "out" / "common_voice_15_en_test")
    assert "not empty" in skipped["en/common_voice_en_4"]
    assert "no mp3 frame" in skipped["en/common_voice_en_5"]
    assert "No such file" in skipped["en/common_voice_en_6"]
    assert "not a file below" in skipped["en/../../secret"]
    assert skipped["en/line-9"] == "test.tsv line 9: 3 fields, not 11"


def test_all_locales_and_splits(release: Path, tmp_path: Path) -> None:
    run(common_voice, release, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        f"common_voice_15_{code}_{split}" for code in ("en", "zh-CN") for split in ("train", "dev", "test")
    }
    shards = ShardSet.open(tmp_path / "out" / "common_voice_15_zh-CN_dev")
    record = shards.record(0)
    assert (record.audio_language, record.text, record.split, record.license) == ("zh", "你好。", "dev", "CC0-1.0")
    assert abs(record.clips[0].num_samples - 8000) < 1200  # half a second, at 16 kHz, and mp3 padding


def test_says_what_is_missing(release: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no fr/clips"):
        run(common_voice, release, tmp_path / "out", "--locales", "fr")
