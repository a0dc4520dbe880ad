from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import fleurs
from qwen_audio_train.shards.reader import ShardSet
from tests.unit.data_prep.conftest import run, skipped_of, texts_of

ROWS = [
    '1663\t100.wav\t"这 是 Raw。\t这是raw\t这 | 是\t3200\tMALE',
    "1663\t101.wav\t同一句。\t同一句\t同 一 句\t3200\tFEMALE",
    "1664\t102.wav\t坏了。\t坏了\t坏 了\t3200\tMALE",
    "1665\t103.wav\t没有。\t没有\t没 有\t3200\tMALE",
    "1666\t104.wav\tsix fields",
]


@pytest.fixture
def release(tmp_path: Path, write_audio: Callable[..., Path]) -> Path:
    folder = tmp_path / "fleurs/data/cmn_hans_cn"
    (folder / "audio").mkdir(parents=True)
    (folder / "test.tsv").write_text("\n".join(ROWS) + "\n", encoding="utf-8")
    with tarfile.open(folder / "audio/test.tar.gz", "w:gz") as tar:
        for number, name in enumerate(("test/101.wav", "test/102.wav", "test/100.wav", "test/999.wav")):
            data = write_audio(tmp_path / "made" / name, 3200 + number, seed=number).read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data) if "102" not in name else 40
            tar.addfile(info, io.BytesIO(data))
    return tmp_path / "fleurs"


def test_reads_the_archive_by_file_name(release: Path, tmp_path: Path) -> None:
    run(fleurs, release, tmp_path / "out", "--languages", "cmn_hans_cn", "--splits", "test")
    folder = tmp_path / "out" / "fleurs_cmn_hans_cn_test"
    assert texts_of(folder) == {"cmn_hans_cn/100": '"这 是 Raw。', "cmn_hans_cn/101": "同一句。"}
    record = ShardSet.open(folder).record(0)
    assert record.audio_language == "zh"
    assert record.extra == {"sentence_id": "1663", "gender": "female"}
    assert record.clips[0].num_samples == 3200
    skipped = skipped_of(folder)
    assert skipped.pop("cmn_hans_cn/102").startswith("wav without a data chunk")
    assert skipped == {
        "cmn_hans_cn/line-5": "test.tsv line 5: 3 fields, not 7",
        "cmn_hans_cn/999": "recording without a transcript",
        "cmn_hans_cn/103": "transcript without a recording",
    }


def test_an_unpacked_folder_gives_the_same(release: Path, tmp_path: Path) -> None:
    audio = release / "data/cmn_hans_cn/audio"
    (tmp_path / "made/test").rename(audio / "test")
    run(fleurs, release, tmp_path / "out", "--splits", "test", "--text", "normalised")
    texts = texts_of(tmp_path / "out" / "fleurs_cmn_hans_cn_test")
    assert texts == {"cmn_hans_cn/100": "这是raw", "cmn_hans_cn/101": "同一句", "cmn_hans_cn/102": "坏了"}
