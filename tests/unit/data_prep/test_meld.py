from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from data_prep import meld
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.shards.reader import ShardSet
from tests.unit.data_prep.conftest import run, skipped_of, texts_of
from tests.unit.shards.test_clip_sources import video

HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
TIMES = '8,21,"00:16:16,059","00:16:21,731"'
ROWS = [
    f'1,"I\u0092m so sorry\u0085 ""really""",Chandler,sadness,negative,0,0,{TIMES}',
    f"2,Itâ€™s fine.,The Interviewer,joy,positive,0,1,{TIMES}",
    f"3,Prefixed only.,Joey,neutral,neutral,1,0,{TIMES}",
    f"4,Unreadable.,Joey,anger,negative,1,1,{TIMES}",
    f"5,No video.,Joey,fear,negative,2,0,{TIMES}",
]
FOLDER = "output_repeated_splits_test"


@pytest.fixture(scope="module")
def clips() -> dict[str, bytes]:
    short, long = video(0.3), video(0.6, channels="5.1")
    return {
        f"{FOLDER}/final_videos_testdia0_utt0.mp4": long,
        f"{FOLDER}/dia0_utt0.mp4": short,
        f"{FOLDER}/._dia0_utt1.mp4": b"resource fork",
        f"{FOLDER}/dia0_utt1.mp4": long,
        f"{FOLDER}/final_videos_testdia1_utt0.mp4": short,
        f"{FOLDER}/dia1_utt1.mp4": short[: len(short) // 3],
        f"{FOLDER}/dia9_utt9.mp4": short,
    }


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def release(tmp_path: Path, clips: dict[str, bytes]) -> Path:
    root = tmp_path / "MELD"
    root.mkdir()
    (root / "test_sent_emo.csv").write_bytes("\r\n".join([HEADER, *ROWS, ""]).encode())
    inner = {"MELD.Raw/README.txt": b"", "MELD.Raw/test.tar.gz": tar_of(clips)}
    (root / "MELD.Raw.tar.gz").write_bytes(tar_of(inner))
    return root


EXPECTED = {"test/dia0_utt0": "sadness", "test/dia0_utt1": "joy", "test/dia1_utt0": "neutral"}


def check(folder: Path) -> None:
    assert texts_of(folder) == EXPECTED
    skipped = skipped_of(folder)
    assert "do not decode as mp4" in skipped.pop("test/dia1_utt1")
    assert skipped == {"test/dia2_utt0": "label without a video", "test/dia9_utt9": "video without a label"}


def test_takes_emotions_from_the_archive_in_the_archive(release: Path, tmp_path: Path) -> None:
    run(meld, release, tmp_path / "out", "--splits", "test")
    folder = tmp_path / "out" / "meld_emotion_test"
    check(folder)
    shards = ShardSet.open(folder)
    records = {shards.record(i).origin.key: shards.record(i) for i in range(len(shards))}
    first = records["test/dia0_utt0"]
    assert first.extra == {"transcript": 'I\u2019m so sorry\u2026 "really"', "speaker": "Chandler"}
    assert first.task == "emotion"
    assert first.clips[0].num_samples < 6500, "the video with a prefix was taken"
    assert records["test/dia0_utt1"].extra["transcript"] == "It\u2019s fine."


def test_an_unpacked_tree_and_a_split_archive_give_the_same(
    release: Path, tmp_path: Path, clips: dict[str, bytes]
) -> None:
    (release / "MELD.Raw.tar.gz").unlink()
    (release / "test.tar.gz").write_bytes(tar_of(clips))
    run(meld, release, tmp_path / "split", "--splits", "test")
    check(tmp_path / "split" / "meld_emotion_test")
    (release / "test.tar.gz").unlink()
    for name, data in clips.items():
        (release / name).parent.mkdir(exist_ok=True)
        (release / name).write_bytes(data)
    run(meld, release, tmp_path / "folder", "--splits", "test", "--tasks", "sentiment")
    folder = tmp_path / "folder" / "meld_sentiment_test"
    assert set(texts_of(folder).values()) == {"negative", "positive", "neutral"}


def test_a_table_in_cp1252_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dev_sent_emo.csv"
    path.write_bytes("\n".join([HEADER, f"1,I\u2019m here,Joey,joy,positive,3,4,{TIMES}"]).encode("cp1252"))
    assert meld.read_labels(path)[3, 4]["Utterance"] == "I\u2019m here"


def test_says_what_is_missing(release: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no train_sent_emo.csv"):
        run(meld, release, tmp_path / "out", "--splits", "train")
    (release / "MELD.Raw.tar.gz").unlink()
    with pytest.raises(ConfigError, match=r"neither MELD.Raw.tar.gz nor test.tar.gz"):
        run(meld, release, tmp_path / "out", "--splits", "test")
