from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import av
import numpy as np
import pytest

from data_prep import asterisk_prompts as asterisk
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.reader import ShardSet
from tests.unit.data_prep.conftest import tone

TRAIN, TEST, DEV = "digits/1", "digits/7", "day-1"


def write_g722(path: Path, num_samples: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000, layout="mono")
        pcm = (tone(num_samples, seed) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_language(unpacked: Path, language: str, transcript: str, clips: dict[str, tuple[int, int]]) -> None:
    name = f"asterisk-core-sounds-{language}"
    document = unpacked / name / "usr/share/doc" / name / f"core-sounds-{language}.txt.gz"
    document.parent.mkdir(parents=True)
    document.write_bytes(gzip.compress(transcript.encode("utf-8-sig")))
    voices = unpacked / f"{name}-g722" / "usr/share/asterisk/sounds" / f"{language}_XX_f_Voice"
    voices.mkdir(parents=True)
    for prompt_id, (num_samples, seed) in clips.items():
        write_g722(voices / f"{prompt_id}.g722", num_samples, seed)


@pytest.fixture
def arguments(tmp_path: Path) -> argparse.Namespace:
    """A tree laid out like the unpacked packages, and the packages' names."""
    debs, unpacked = tmp_path / "debs", tmp_path / "out" / "cache" / "asterisk_unpacked"
    debs.mkdir()
    for name in asterisk.package_names():
        (debs / f"{name}_1-1_all.deb").touch()
    english = f"; comment\n\n{TRAIN}: One.\n{TEST}: Zero. [beep]\n{DEV}: Mailbox\nbeep: [a beep]\nshort: Short\n"
    clips = {
        TRAIN: (4000, 1),
        TEST: (4800, 2),
        DEV: (4400, 3),
        "beep": (4000, 4),
        "short": (1000, 5),
        "bare": (4000, 6),
    }
    write_language(unpacked, "en", english, clips)
    # The Spanish clip of a training prompt is the very recording of the English test prompt.
    write_language(unpacked, "es", f"{TRAIN}: uno\n{TEST}: cero\n", {TRAIN: (4800, 2), TEST: (4800, 7)})
    for language in ("fr", "it", "ru"):
        write_language(unpacked, language, f"{TRAIN}: {language} text\n", {TRAIN: (4000, 10 + ord(language[0]))})
    return argparse.Namespace(
        input=debs,
        output=tmp_path / "out",
        limit=None,
        workers=0,
        part=None,
        finish=False,
        translate_share=1.0,
        max_seconds=None,
    )


def test_prompts_of_the_test_are_in_different_splits() -> None:
    assert [asterisk.split_of(prompt_id) for prompt_id in (TRAIN, DEV, TEST)] == ["train", "dev", "test"]


def test_prepares_three_sets(arguments: argparse.Namespace) -> None:
    asterisk.prepare(arguments)
    sets = {split: ShardSet.open(arguments.output / f"asterisk_pretrain_{split}") for split in asterisk.SPLITS}
    records = {split: [shards.record(i) for i in range(len(shards))] for split, shards in sets.items()}
    found = {split: {(r.task, r.audio_language, r.text_language, r.text) for r in records[split]} for split in records}
    assert found["test"] == {
        ("transcribe", "en", "en", "Zero."), ("transcribe", "es", "es", "cero"), ("translate", "es", "en", "Zero."),
    }  # fmt: skip
    assert found["dev"] == {("transcribe", "en", "en", "Mailbox")}
    assert found["train"] == {("transcribe", "en", "en", "One.")} | {
        entry
        for language in ("fr", "it", "ru")
        for entry in (("transcribe", language, language, f"{language} text"), ("translate", language, "en", "One."))
    }
    assert {r.extra["prompt_id"] for r in records["test"]} == {TEST}
    audio = {split: {r.clips[0].sha256 for r in records[split]} for split in records}
    assert not audio["train"] & audio["test"]
    samples = sets["test"].read_clip(records["test"][0].clips[0], records["test"][0].origin)
    assert abs(len(samples) - 4800) <= 64
    assert 0.2 < np.abs(samples).max() < 0.4


def test_lists_what_is_left_out(arguments: argparse.Namespace) -> None:
    asterisk.prepare(arguments)
    entries = [
        json.loads(line)
        for path in arguments.output.glob("*/skipped.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    reasons = {entry["key"]: entry["reason"] for entry in entries}
    assert reasons == {
        "transcribe/es/digits/1": "same audio in test: en/digits/7",
        "transcribe/en/beep": "no speech: [a beep]",
        "transcribe/en/bare": "no transcript",
        "transcribe/en/short": "1000 samples, shorter than 0.1 s",
    }


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("at [@]", "at"),
        ("(10 seconds of silence)", ""),
        ("<beep ascending>", ""),
        ("Pour (emphase)", "Pour"),
        ("Leave your  message after the tone. (simple tone sound plays)", "Leave your message after the tone."),
        ("au menu poli (ne m'appelez plus, jamais), 4.", "au menu poli ne m'appelez plus, jamais , 4."),
        ("il nostro (enfatico) glorioso", "il nostro glorioso"),
        ("...participants in the conference.", "...participants in the conference."),
    ],
)
def test_clean_text(raw: str, clean: str) -> None:
    assert asterisk.clean_text(raw) == clean


def test_says_what_to_do_without_apt(arguments: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(arguments.input))
    with pytest.raises(ConfigError, match="data=tts"):
        asterisk.prepare(arguments)
    arguments.input = None
    with pytest.raises(ConfigError, match="data=tts"):
        asterisk.prepare(arguments)


def test_long_recordings_are_marked_with_their_length(tmp_path: Path) -> None:
    path = tmp_path / "a.g722"
    path.write_bytes(bytes(24_000))  # 3 s at 64 kbit/s
    prompt = asterisk.Prompt("a", "en", path, "voice", "text")
    assert asterisk._within(prompt, 3.0) == prompt
    assert asterisk._within(prompt, None) == prompt
    assert asterisk._within(prompt, 2.9).skip_reason == "3.0 s, longer than --max-seconds 2.9"


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 3)])
def test_translate_share_concerns_training_only(arguments: argparse.Namespace, share: float, expected: int) -> None:
    arguments.translate_share = share
    asterisk.prepare(arguments)
    for split, count in (("train", expected), ("test", 1)):
        shards = ShardSet.open(arguments.output / f"asterisk_pretrain_{split}")
        assert sum(shards.record(i).task == "translate" for i in range(len(shards))) == count
