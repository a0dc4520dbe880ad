from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import webdataset

from qwen_audio_train.config.remote import RemoteConfig
from qwen_audio_train.errors import SampleError, ShardError
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.shards.sequential import read_sequentially
from tests import http_server
from tests.http_server import FileServer
from tests.unit.shards.conftest import write_toy_set

CONFIG = RemoteConfig(retries=2, backoff_seconds=0.001, timeout_seconds=20.0)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_toy_set(tmp_path / "toy")


@pytest.fixture
def server(toy: Path) -> Iterator[FileServer]:
    server = FileServer(toy)
    server.has_ranges = False
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def tars(toy: Path) -> list[Path]:
    return sorted(toy.glob("*.tar"))


def test_gives_what_the_indexed_set_gives(toy: Path) -> None:
    shards = ShardSet.open(toy)
    samples = list(read_sequentially(tars(toy), "toy"))
    assert [sample.record.origin for sample in samples] == [shards.record(i).origin for i in range(len(shards))]
    for i, sample in enumerate(samples):
        record = shards.record(i)
        assert sample.record.extra == record.extra
        assert type(sample.record) is type(record)
        assert list(sample.clips) == [shards.read_clip_bytes(clip, record.origin) for clip in record.clips]
        assert [c.num_samples for c in sample.record.clips] == [c.num_samples for c in record.clips]
    assert webdataset.utils.enforce_security


def test_reads_a_server_without_ranges(toy: Path, server: FileServer) -> None:
    urls = [f"{server.url}/{path.name}" for path in tars(toy)]
    here = [sample.clips for sample in read_sequentially(tars(toy), "toy")]
    server.faults = [http_server.status(503), http_server.reset]
    assert [sample.clips for sample in read_sequentially(urls, "toy", remote=CONFIG)] == here
    server.always = http_server.status(403)
    with pytest.raises(ShardError, match=r"refused"):
        list(read_sequentially(urls, "toy", remote=CONFIG))


def test_nothing_of_a_cut_tar_is_given(toy: Path) -> None:
    path = tars(toy)[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 // 512 * 512])
    with pytest.raises(ShardError, match="cut off"):
        next(read_sequentially([path], "toy"))


def test_nothing_of_a_cut_answer_is_given(toy: Path, server: FileServer) -> None:
    def half(handler: http_server.Handler, data: bytes) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        handler.close_connection = True
        return True

    server.always = half
    with pytest.raises(ShardError, match="in 3 attempts"):
        next(read_sequentially([f"{server.url}/{tars(toy)[0].name}"], "toy", remote=CONFIG))


def test_repeated_keys_and_wrong_checksums_are_found(toy: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.tar"
    copy.write_bytes(tars(toy)[0].read_bytes())
    with pytest.raises(ShardError, match="repeats 4 keys"):
        list(read_sequentially([tars(toy)[0], copy], "toy"))
    shards = ShardSet.open(toy)
    clip = shards.clips(0)[0]
    raw = bytearray(copy.read_bytes())
    raw[clip.offset_bytes + 500] ^= 1
    copy.write_bytes(raw)
    with pytest.raises(SampleError, match="checksum of clip 0"):
        list(read_sequentially([copy], "toy"))


@pytest.mark.parametrize("url", ["pipe:cat x.tar", "file:///etc/x.tar", "simplecache::http://h/x.tar", "ftp://h/x.tar"])
def test_other_protocols_are_refused(url: str) -> None:
    with pytest.raises(ShardError):
        next(read_sequentially([url], "toy"))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("a.pyd")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"cos\n"))
    with pytest.raises(ShardError, match="unknown suffix 'pyd'"):
        next(read_sequentially([path], "toy"))
