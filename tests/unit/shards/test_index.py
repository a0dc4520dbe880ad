from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards import scan
from qwen_audio_train.shards.index import build_index, index_path, open_index
from tests.unit.shards.conftest import flac, pretrain

CLIP = flac(1000)


def metadata(num_samples: int = 1000, **changes: Any) -> bytes:
    stated = {"num_samples": num_samples, "sha256": hashlib.sha256(CLIP).hexdigest(), "encoding": "flac"}
    return json.dumps({**pretrain(), "split": "train", "license": "CC0-1.0", "clips": [stated], **changes}).encode()


Member = tuple[str, bytes] | tarfile.TarInfo


def member(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "target"
    return info


def write_tar(path: Path, members: list[Member], tar_format: int = tarfile.USTAR_FORMAT, mtime: float = 0) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for entry in members:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size, info.mtime = len(entry[1]), mtime  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(entry[1]))
    return path


def sample(key: str) -> list[Member]:
    return [(f"{key}.flac", CLIP), (f"{key}.json", metadata())]


def test_indexes_tars_of_other_tools(tmp_path: Path) -> None:
    """Also python's default format with fractional times, which writes pax blocks between the members."""
    tar_path = write_tar(tmp_path / "x.tar", sample("a") + sample("b/c"), tarfile.PAX_FORMAT, mtime=1.5)
    index = build_index(tar_path)
    assert len(index.samples) == len(index.clips) == 2
    for row in index.clips:
        assert tar_path.read_bytes()[row["offset"] : row["offset"] + row["num_bytes"]] == CLIP
    np.testing.assert_array_equal(index.clips["num_samples"], [1000, 1000])


LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
A_CLIP: Member = ("a.flac", CLIP)
A_JSON: Member = ("a.json", metadata())
REFUSED = {
    "duplicate key": ([*sample("a"), *sample("b"), *sample("a")], "'a' twice, or its members are not adjacent"),
    "interleaved": ([A_CLIP, ("b.flac", CLIP), A_JSON, ("b.json", metadata())], "sample 'a' has members flac"),
    "no metadata": ([A_CLIP], "sample 'a' has members flac"),
    "no clip": ([A_JSON], "incomplete group"),
    "clip twice": ([A_CLIP, A_CLIP, A_JSON], "each clip once"),
    "numbered alone": ([("a.0.flac", CLIP), A_JSON], "incomplete group"),
    "absolute": (sample("/etc/a"), "key '/etc/a'"),
    "parent": (sample("../a"), "member"),
    "dot folder": (sample("./a"), "member"),
    "suffix": ([("a.pyd", b"x"), A_JSON], "unknown suffix 'pyd'"),
    "no suffix": ([("a", b"x")], "unknown suffix ''"),
    "gz member": ([("a.json.gz", b"x")], "unknown suffix 'json.gz'"),
    "not json": ([A_CLIP, ("a.json", b"{")], "sample 'a'"),
    "nan": ([A_CLIP, ("a.json", b'{"x": NaN}')], "NaN"),
    "deep": ([A_CLIP, ("a.json", b"[" * 100_000)], "deeper than 16"),
    "incomplete payload": ([A_CLIP, ("a.json", metadata(text=""))], "'text' is ''"),
    "empty": ([], "holds no sample"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(tmp_path: Path, case: str) -> None:
    members, reason = REFUSED[case]
    tar_path = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(ShardError, match=reason):
        build_index(tar_path)
    assert not index_path(tar_path).exists()


@pytest.mark.parametrize("kind", LINKS)
def test_refuses_anything_but_regular_files(tmp_path: Path, kind: bytes) -> None:
    tar_path = write_tar(tmp_path / "x.tar", [member("a.flac", kind), A_JSON])
    with pytest.raises(ShardError, match="no regular file"):
        build_index(tar_path)


def test_refuses_names_smuggled_in_by_pax(tmp_path: Path) -> None:
    tar_path = write_tar(tmp_path / "x.tar", sample("k" * 200), tarfile.PAX_FORMAT)
    with pytest.raises(ShardError, match="pax"):
        build_index(tar_path)


def test_refuses_long_names_of_gnu(tmp_path: Path) -> None:
    tar_path = write_tar(tmp_path / "x.tar", sample("k" * 200), tarfile.GNU_FORMAT)
    with pytest.raises(ShardError, match="no regular file"):
        build_index(tar_path)


def test_refuses_oversize_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "MAX_MEMBER_BYTES", len(CLIP) - 1)
    with pytest.raises(ShardError, match="at most"):
        build_index(write_tar(tmp_path / "x.tar", sample("a")))


def test_refuses_compressed_tars(tmp_path: Path) -> None:
    tar_path = write_tar(tmp_path / "x.tar", sample("a"))
    tar_path.write_bytes(gzip.compress(tar_path.read_bytes()))
    with pytest.raises(ShardError, match="compressed"):
        build_index(tar_path)


def test_refuses_a_tar_cut_anywhere(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "x.tar", sample("a") + sample("b")).read_bytes()
    data_end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    cut = tmp_path / "cut.tar"
    for num_bytes in [*range(0, data_end + 512, 512), 100, 700, data_end - 1, data_end + 512]:
        cut.write_bytes(whole[:num_bytes])
        with pytest.raises(ShardError, match=r"cut off"):
            build_index(cut)
    cut.write_bytes(whole[: data_end + 1024])
    assert len(build_index(cut).samples) == 2


def test_refuses_data_after_the_end_and_damaged_headers(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "x.tar", sample("a")).read_bytes()
    bad = tmp_path / "bad.tar"
    bad.write_bytes(whole + whole)
    with pytest.raises(ShardError, match="after its end-of-archive"):
        build_index(bad)
    bad.write_bytes(b"\x01" + whole[1:])
    with pytest.raises(ShardError, match="damaged header at byte 0"):
        build_index(bad)


class TestOpenFailsClosed:
    @pytest.fixture
    def tar_path(self, tmp_path: Path) -> Path:
        path = write_tar(tmp_path / "x.tar", sample("a") + sample("b"))
        build_index(path)
        return path

    def test_when_there_is_no_index(self, tar_path: Path) -> None:
        index_path(tar_path).unlink()
        with pytest.raises(ShardError, match=r"cannot be opened.*--reindex"):
            open_index(tar_path)

    def test_when_the_tar_was_cut(self, tar_path: Path) -> None:
        tar_path.write_bytes(tar_path.read_bytes()[:-512])
        with pytest.raises(ShardError, match="is not the tar indexed"):
            open_index(tar_path)

    def test_when_a_tar_of_equal_size_took_its_place(self, tar_path: Path) -> None:
        write_tar(tar_path, sample("c") + sample("d"))
        with pytest.raises(ShardError, match="is not the tar indexed"):
            open_index(tar_path)

    def test_when_any_byte_of_the_index_flips(self, tar_path: Path) -> None:
        whole = index_path(tar_path).read_bytes()
        for position in [*range(0, 12), *range(16, len(whole), 7)]:
            flipped = bytearray(whole)
            flipped[position] ^= 1
            index_path(tar_path).write_bytes(flipped)
            with pytest.raises(ShardError):
                open_index(tar_path)

    def test_when_the_index_is_empty(self, tar_path: Path) -> None:
        index_path(tar_path).write_bytes(b"")
        with pytest.raises(ShardError):
            open_index(tar_path)
