from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import soundfile

from data_prep.held_out import Candidate, bucket_split, key_of, normal_text, separate
from qwen_audio_train.shards.contract import key_problem
from qwen_audio_train.shards.prepare import SampleSpec


def candidate(split: str, path: Path, text: str, key: str | None = None, task: str = "transcribe") -> Candidate:
    metadata = {"task": task, "audio_language": "cs", "text_language": "cs", "text": text}
    return Candidate(split, SampleSpec(key or path.stem, metadata, (str(path),)))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def reasons(candidates: list[Candidate]) -> list[str | None]:
    return [c.spec.skip_reason for c in candidates]


def test_one_recording_stays_in_test(tmp_path: Path) -> None:
    train = write(tmp_path / "a.ogg", b"same")
    test = write(tmp_path / "b.ogg", b"same")
    found = separate([candidate("train", train, "x"), candidate("test", test, "y"), candidate("train", test, "z")])
    assert reasons(found) == ["same audio in test: b", None, None]


def test_one_recording_in_two_encodings_stays_in_test(tmp_path: Path, write_audio: Callable[..., Path]) -> None:
    train, test = write_audio(tmp_path / "a.wav"), tmp_path / "b.flac"
    soundfile.write(test, soundfile.read(train, dtype="int16")[0], 16_000)
    assert train.read_bytes() != test.read_bytes()
    found = separate([candidate("train", train, "x"), candidate("test", test, "y")])
    assert reasons(found) == ["same audio in test: b", None]


def test_two_tasks_of_one_path_are_no_duplicates(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ogg", b"same")
    found = separate([candidate("train", path, "x", "t/a"), candidate("train", path, "x", "s/a", task="translate")])
    assert reasons(found) == [None, None]


def test_a_test_text_is_never_trained_on(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.ogg", bytes([n])) for n in range(4)]
    listed = [
        candidate("train", paths[0], "No."),
        candidate("dev", paths[1], "no"),
        candidate("test", paths[2], "NO!"),
        candidate("train", paths[3], "Other"),
    ]
    assert reasons(separate(listed)) == ["same text in test", "same text in test", None, None]
    assert reasons(separate(listed, holds_out_texts=False)) == [None] * 4


def test_what_is_left_out_already_holds_nothing_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ogg", b"a")
    out = Candidate("test", SampleSpec("k", {}, (str(tmp_path / "gone.ogg"),), skip_reason="no text"))
    assert reasons(separate([out, candidate("train", path, "No.")])) == ["no text", None]


def test_keys_are_legal_and_never_merge() -> None:
    keys = [key_of("a b"), key_of("a_b"), key_of("a-b"), key_of("x" * 200), key_of("x" * 201), key_of("é"), key_of("è")]
    assert len(set(keys)) == len(keys)
    assert [key_problem(key) for key in keys] == [None] * len(keys)
    assert key_of("cs/level", "id-1").startswith("cs_level/id-1-")
    assert key_of("cs", "id-1") == "cs/id-1"


def test_split_is_fixed_by_content() -> None:
    splits = [bucket_split(str(n)) for n in range(1000)]
    assert splits == [bucket_split(str(n)) for n in range(1000)]
    assert 50 < splits.count("test") < 110
    assert 15 < splits.count("dev") < 45


def test_normal_text() -> None:
    assert normal_text("  Ne, NE! ") == "ne ne"
