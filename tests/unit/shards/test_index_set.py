from __future__ import annotations

from pathlib import Path

import pytest

from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.index import index_path
from qwen_audio_train.shards.index_set import index_set
from qwen_audio_train.shards.reader import ShardSet
from scripts.index_shards import main
from tests.unit.shards.conftest import write_toy_set


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """A set of which only the tars are left."""
    directory = write_toy_set(tmp_path / "toy")
    for path in [*directory.glob("*.idx"), directory / "dataset.json"]:
        path.unlink()
    return directory


@pytest.mark.parametrize("workers", [0, 2])
def test_makes_a_set_of_foreign_tars(tars: Path, workers: int) -> None:
    indexed = index_set(tars, name="mine", workers=workers)
    assert (indexed.num_built, indexed.num_kept, indexed.problems) == (2, 0, ())
    assert ShardSet.open(tars).name == "mine"
    assert len(ShardSet.open(tars)) == 6


def test_keeps_what_is_finished(tars: Path) -> None:
    index_set(tars)
    before = {path: path.stat().st_mtime_ns for path in tars.iterdir()}
    assert index_set(tars).num_kept == 2
    assert {path: path.stat().st_mtime_ns for path in tars.iterdir()} == before
    index_path(tars / "toy-000001.tar").unlink()
    indexed = index_set(tars)
    assert (indexed.num_built, indexed.num_kept) == (1, 1)
    assert index_set(tars, rebuild=True).num_built == 2


@pytest.mark.parametrize("position", [0, -1, None])
def test_a_packed_index_that_is_damaged_or_missing_is_written_anew(tars: Path, position: int | None) -> None:
    index_set(tars)
    path = tars / "dataset.idx"
    whole = path.read_bytes()
    if position is None:
        path.unlink()
    else:
        raw = bytearray(whole)
        raw[position] ^= 1
        path.write_bytes(raw)
    assert index_set(tars).num_kept == 2
    assert path.read_bytes() == whole


def test_a_refused_tar_is_named_and_the_rest_is_indexed(tars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tars / "toy-000000.tar"
    path.write_bytes(path.read_bytes()[:5000])
    assert main([str(tars), "--workers", "0"]) == 1
    shown = capsys.readouterr().out
    assert "toy-000000.tar' ends" in shown
    assert index_path(tars / "toy-000001.tar").exists()
    assert not (tars / "dataset.json").exists()


def test_an_exchanged_tar_is_indexed_anew(tars: Path, tmp_path: Path) -> None:
    index_set(tars)
    write_toy_set(tmp_path / "other", num_samples=7)
    (tmp_path / "other" / "toy-000001.tar").replace(tars / "toy-000001.tar")
    indexed = index_set(tars)
    assert (indexed.num_built, indexed.num_kept) == (1, 1)
    assert len(ShardSet.open(tars)) == 7


def test_a_folder_without_tars(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no tar"):
        index_set(tmp_path)
