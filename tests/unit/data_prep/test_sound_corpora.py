"""IEMOCAP, AudioCaps, Clotho, ESC-50 and WavCaps, on small trees laid out like the releases."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import audiocaps, clotho, esc50, iemocap, wavcaps
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.reader import ShardSet
from tests.unit.data_prep.conftest import run, skipped_of, texts_of

WriteAudio = Callable[..., Path]


def write_table(path: Path, header: list[str], *rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def test_iemocap(tmp_path: Path, write_audio: WriteAudio) -> None:
    dialog, session = "Ses01F_impro01", tmp_path / "in" / "Session1"
    labels = {"F000": "neu", "F001": "exc", "M000": "xxx", "M001": "fru", "M002": "ang"}
    blocks = [
        f"[6.2901 - 8.2357]\t{dialog}_{turn}\t{label}\t[2.5000, 2.5000, 2.5000]\n"
        "C-E2:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n"
        for turn, label in labels.items()
    ]
    (session / "dialog/EmoEvaluation/Categorical").mkdir(parents=True)
    text = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n" + "\n".join(blocks)
    (session / f"dialog/EmoEvaluation/{dialog}.txt").write_text(text)
    (session / f"dialog/EmoEvaluation/._{dialog}.txt").write_bytes(b"\x00\x05\x16\x07")
    (session / "dialog/transcriptions").mkdir()
    (session / f"dialog/transcriptions/{dialog}.txt").write_text(
        f"{dialog}_F000 [006.2901-008.2357]: Excuse me. [LAUGHTER] Right.\nM: not a turn\n"
        f"{dialog}_M000 [010.1-012.2]: Yeah.\n"
    )
    for seed, turn in enumerate(["F000", "F001", "M000", "M001"]):
        write_audio(session / "sentences/wav" / dialog / f"{dialog}_{turn}.wav", 4000, seed)
    run(iemocap, tmp_path / "in", tmp_path / "out", "--sessions", "1", "--test-session", "1")
    folder = tmp_path / "out" / "iemocap_session1"
    assert texts_of(folder) == {
        f"emotion/{dialog}_F000": "neutral",
        f"emotion/{dialog}_F001": "happy",
        f"transcribe/{dialog}_F000": "Excuse me. Right.",
        f"transcribe/{dialog}_M000": "Yeah.",
    }
    assert skipped_of(folder) == {
        f"emotion/{dialog}_M000": "label outside the four classes: xxx",
        f"emotion/{dialog}_M001": "label outside the four classes: fru",
        f"emotion/{dialog}_M002": "label without a recording",
        f"transcribe/{dialog}_F001": "no transcript",
        f"transcribe/{dialog}_M001": "no transcript",
        f"transcribe/{dialog}_M002": "no transcript",
    }
    shards = ShardSet.open(folder)
    assert (shards.split, shards.record(0).extra["speaker"]) == ("test", "Ses01F")
    with pytest.raises(ConfigError, match="Session2"):
        run(iemocap, tmp_path / "in", tmp_path / "out", "--sessions", "2")


def test_audiocaps(tmp_path: Path, write_audio: WriteAudio) -> None:
    header = ["audiocap_id", "youtube_id", "start_time", "caption"]
    table = tmp_path / "in" / "dataset" / "val.csv"
    captions = [f'A dog barks, "{n}" times' for n in range(5)]
    rows = [[str(n), "-dAsh_id", "30", caption] for n, caption in enumerate(captions)]
    write_table(table, header, *rows, ["8", "gone_Video", "0", "Rain"], ["9", "milli", "20", "Wind"])
    write_audio(tmp_path / "in" / "audio" / "-dAsh_id_30.wav", 44_100, 1, rate_hz=44_100)
    write_audio(tmp_path / "in" / "audio" / "milli_20000.mp3", 44_100, 2, rate_hz=44_100)
    run(audiocaps, tmp_path / "in", tmp_path / "out", "--splits", "dev")
    folder = tmp_path / "out" / "audiocaps_dev"
    expected = {f"audiocaps/{n}": caption for n, caption in enumerate(captions)}
    assert texts_of(folder) == {**expected, "audiocaps/9": "Wind"}
    assert skipped_of(folder) == {"audiocaps/8": "clip was not fetched"}
    shards = ShardSet.open(folder)
    assert {shards.record(n).extra["clip_id"] for n in range(5)} == {"-dAsh_id_30"}


def test_audiocaps_refuses_another_table(tmp_path: Path) -> None:
    write_table(tmp_path / "train.csv", ["id", "caption"], ["1", "x"])
    with pytest.raises(ConfigError, match="no column audiocap_id, youtube_id, start_time"):
        list(audiocaps.samples_of(tmp_path / "train.csv", tmp_path))


def test_clotho(tmp_path: Path, write_audio: WriteAudio) -> None:
    names = ["Cafe\u0301 (night) #2.wav", "a 'quoted', name.wav", "a _quoted_, name.wav", "x" * 90 + ".wav"]
    for seed, name in enumerate(names):
        write_audio(tmp_path / "in" / "development" / name, 44_100, seed, rate_hz=44_100)
    write_audio(tmp_path / "in" / "development" / "long.wav", 31 * 44_100, 9, rate_hz=44_100)
    header = ["file_name", *clotho.CAPTIONS]
    listed = [unicodedata.normalize("NFC", names[0]), *names[1:], "long.wav", "lost.wav"]
    rows = [[name, *(f"{n}, of {place}" for n in range(1, 6))] for place, name in enumerate(listed)]
    write_table(tmp_path / "in" / "clotho_captions_development.csv", header, *rows)
    run(clotho, tmp_path / "in", tmp_path / "out", "--splits", "train")
    folder = tmp_path / "out" / "clotho_train"
    texts = texts_of(folder)
    assert sorted(texts.values()) == sorted(f"{n}, of {place}" for n in range(1, 6) for place in range(4))
    assert len(texts) == 20
    reasons = list(skipped_of(folder).values())
    assert sum("31.000 s" in reason for reason in reasons) == 5
    assert reasons.count("captions without a recording") == 5


def test_esc50(tmp_path: Path, write_audio: WriteAudio) -> None:
    header = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
    rows = [
        ["1-100032-A-0.wav", "1", "0", "dog", "True", "100032", "A"],
        ["5-9032-A-22.wav", "5", "22", "clapping", "False", "9032", "A"],
        ["5-9032-B-37.wav", "5", "22", "clapping", "False", "9032", "B"],
        ["5-9033-A-38.wav", "5", "38", "water_drops", "False", "9033", "A"],
        ["5-9034-A-38.wav", "5", "38", "water_drops", "False", "9034", "A"],
    ]
    write_table(tmp_path / "in" / "meta" / "esc50.csv", header, *rows)
    for seed, row in enumerate(rows[:4]):
        write_audio(tmp_path / "in" / "audio" / row[0], 44_100, seed, rate_hz=44_100)
    run(esc50, tmp_path / "in", tmp_path / "out", "--folds", "1", "5")
    assert texts_of(tmp_path / "out" / "esc50_fold1") == {"1-100032-A-0": "dog"}
    folder = tmp_path / "out" / "esc50_fold5"
    assert texts_of(folder) == {"5-9032-A-22": "clapping", "5-9033-A-38": "water drops"}
    assert skipped_of(folder) == {
        "5-9032-B-37": "the table says 5-9032-B-22 of a file named 5-9032-B-37",
        "5-9034-A-38": "row without a recording",
    }
    assert ShardSet.open(folder).split == "test"
    assert ShardSet.open(tmp_path / "out" / "esc50_fold1").split == "train"


def test_wavcaps(tmp_path: Path, write_audio: WriteAudio) -> None:
    source = tmp_path / "in"
    entries = {
        "FreeSound/fsd_final.json": [
            {"id": "101", "caption": "Rain.", "duration": 1.0, "author": "someone", "download_link": "x"},
            {"id": "102", "caption": "Overlaps.", "duration": 1.0},
            {"id": "103", "caption": "A long drone.", "duration": 612.3},
            {"id": "104", "caption": "Lost.", "duration": 1.0},
        ],
        "AudioSet_SL/as_final.json": [{"id": "Yb0RFK-_pFJA.wav", "caption": "A dog.", "duration": 10.0, "audio": "x"}],
    }
    for name, data in entries.items():
        (source / "json_files" / name).parent.mkdir(parents=True)
        (source / "json_files" / name).write_text(json.dumps({"num_captions_per_audio": 1, "data": data}))
    for number in (101, 102, 103):
        write_audio(source / "audio/FreeSound" / f"{number}.flac", 32_000, number, rate_hz=32_000)
    write_audio(source / "audio/AudioSet_SL/Yb0RFK-_pFJA.flac", 32_000, 1, rate_hz=32_000)
    blacklist = source / "blacklist.json"
    blacklist.write_text(json.dumps({"FreeSound": ["102"], "AudioSet": ["Yother.wav"]}))
    run(wavcaps, source, tmp_path / "out", "--sources", "freesound", "audioset", "--blacklists", str(blacklist))
    folder = tmp_path / "out" / "wavcaps_freesound_train"
    assert texts_of(folder) == {"freesound/101": "Rain."}
    assert skipped_of(folder) == {
        "freesound/102": "on a blacklist (overlaps with an evaluation set)",
        "freesound/103": "longer than 30 s: 612.3 s",
        "freesound/104": "no recording",
    }
    assert ShardSet.open(folder).record(0).extra == {"author": "someone"}
    assert texts_of(tmp_path / "out" / "wavcaps_audioset_train") == {"audioset/Yb0RFK-_pFJA": "A dog."}


def test_wavcaps_wants_an_answer_about_blacklists(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        wavcaps.build_parser().parse_args(["--input", str(tmp_path), "--output", str(tmp_path)])
    (tmp_path / "x.json").write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="list of ids"):
        wavcaps.read_blacklists([tmp_path / "x.json"])
