from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from qwen_audio_train.config.remote import URL_SCHEMES, RemoteConfig
from qwen_audio_train.errors import SampleError, ShardError
from qwen_audio_train.shards import remote
from qwen_audio_train.shards.reader import ShardSet
from qwen_audio_train.shards.remote import RemoteFolder
from tests import http_server
from tests.http_server import FileServer
from tests.unit.shards.conftest import write_toy_set

OpenSet = Callable[..., ShardSet]
BLOCK_BYTES = 1024
STALLED_SECONDS = 0.5
"""Where a server stalls; long enough for one that does not."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    write_toy_set(tmp_path / "served" / "toy")
    server = FileServer(tmp_path / "served")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def config(tmp_path: Path) -> RemoteConfig:
    return RemoteConfig(
        cache_dir=str(tmp_path / "cache"),
        block_bytes=BLOCK_BYTES,
        timeout_seconds=20.0,
        retries=2,
        backoff_seconds=0.001,
        readahead_threads=2,
        coalesce_gap_bytes=BLOCK_BYTES,
    )


@pytest.fixture
def open_set(server: FileServer, config: RemoteConfig) -> Iterator[OpenSet]:
    opened: list[ShardSet] = []

    def open_(path: str = "/toy", **changes: object) -> ShardSet:
        opened.append(ShardSet.open(server.url + path, remote=dataclasses.replace(config, **changes)))
        return opened[-1]

    yield open_
    server.released.set()
    for shards in opened:
        assert isinstance(shards.source, RemoteFolder)
        shards.source.close()


def read_all(shards: ShardSet) -> list[float]:
    records = [shards.record(i) for i in range(len(shards))]
    return [float(shards.read_clip(clip, record.origin).sum()) for record in records for clip in record.clips]


def test_equals_the_local_set(server: FileServer, open_set: OpenSet) -> None:
    here, there = ShardSet.open(server.directory / "toy"), open_set()
    assert there.fingerprint == here.fingerprint
    assert read_all(there) == read_all(here)
    assert there.record(5).origin == here.record(5).origin
    np.testing.assert_array_equal(there.clip_lengths()[1], here.clip_lengths()[1])
    with pytest.raises(ShardError, match="not on this machine"):
        _ = there.directory


def test_opens_by_description_and_behind_a_query(server: FileServer, open_set: OpenSet) -> None:
    assert read_all(open_set("/toy/dataset.json?token=abc"))
    assert all(path.endswith("?token=abc") for path, _, _ in server.requests)


def test_reads_what_it_needs_and_never_twice(server: FileServer, open_set: OpenSet) -> None:
    shards = open_set()
    tar_bytes = (server.directory / "toy" / "toy-000000.tar").stat().st_size
    server.requests.clear()
    shards.record(0)
    fetched = sum(int(r.split("-")[1]) + 1 - int(r.split("=")[1].split("-")[0]) for _, r, _ in server.requests if r)
    assert fetched < tar_bytes
    assert all(condition for _, _, condition in server.requests[1:])
    read_all(shards)
    server.requests.clear()
    assert read_all(open_set())
    tars = [path for path, _, condition in server.requests if path.endswith(".tar") and condition]
    assert not tars, "a second reader of the machine takes them from the cache"


@pytest.mark.parametrize("name", ["status", "reset", "truncate", "short", "other_range", "stall"])
def test_a_fault_that_passes_is_tried_again(server: FileServer, open_set: OpenSet, name: str) -> None:
    fault = http_server.status(503) if name == "status" else getattr(http_server, name)
    shards = open_set(timeout_seconds=STALLED_SECONDS) if name == "stall" else open_set()
    expected = read_all(ShardSet.open(server.directory / "toy"))
    server.faults = [fault]
    assert read_all(shards) == expected


@pytest.mark.parametrize("name", ["status", "reset", "truncate", "short", "stall"])
def test_a_fault_that_stays_is_a_sample_error_that_names_it(server: FileServer, open_set: OpenSet, name: str) -> None:
    shards = open_set(timeout_seconds=STALLED_SECONDS) if name == "stall" else open_set()
    record = shards.record(0)
    clip = shards.record(3).clips[0]
    server.always = http_server.status(500) if name == "status" else getattr(http_server, name)
    server.requests.clear()
    source = shards.source
    assert isinstance(source, RemoteFolder)
    source._memory.clear()
    for path in Path(source.config.cache_dir).glob("blocks/*/*.blk"):
        path.unlink()
    with pytest.raises(SampleError, match=r"'en/clip_0'.*toy-000000.tar' could not be read in 3 attempts"):
        shards.read_clip(clip, record.origin)
    # aiohttp itself repeats once when a kept connection is reset.
    assert len(server.requests) in ((3, 4, 5, 6) if name == "reset" else (3,))
    with pytest.raises(SampleError, match=r"sample 'number 0'.*3 attempts"):
        shards.record(0)
    server.always = None
    shards.read_clip(clip, record.origin)


def test_a_dripping_server_counts_as_stalled(server: FileServer, open_set: OpenSet) -> None:
    def drip(handler: http_server.Handler, data: bytes) -> bool:
        handler.send_response(206)
        handler.send_header("ETag", handler.server.etag(data) or "")
        handler.send_header("Content-Range", f"bytes 0-{BLOCK_BYTES - 1}/{len(data)}")
        handler.send_header("Content-Length", str(BLOCK_BYTES))
        handler.end_headers()
        while not handler.server.released.wait(0.05):
            handler.wfile.write(b"x")
        return True

    shards = open_set(timeout_seconds=STALLED_SECONDS)
    shards.record(0)
    server.always = drip
    started = time.monotonic()
    with pytest.raises(SampleError, match="stalled"):
        shards.record(3)
    assert time.monotonic() - started < 0.05 * BLOCK_BYTES / 2, "not as long as its bytes would take"


@pytest.mark.parametrize(("code", "times"), [(403, 1), (404, 1), (500, 3), (429, 3)])
def test_final_answers_are_not_tried_again(server: FileServer, open_set: OpenSet, code: int, times: int) -> None:
    shards = open_set()
    server.always = http_server.status(code)
    server.requests.clear()
    with pytest.raises(ShardError, match=f"status {code}"):
        shards.record(0)
    assert len(server.requests) == times


@pytest.mark.parametrize("weak", [False, True])
def test_a_changed_file_is_never_mixed(server: FileServer, open_set: OpenSet, weak: bool) -> None:
    """Equal size, other bytes: If-Match fails, or where the ETag is weak, the answer's own tells."""
    if weak:
        strong = server.etag
        server.etag = lambda data: f"W/{strong(data)}"
    shards = open_set()
    shards.record(0)
    path = server.directory / "toy" / "toy-000000.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    server.requests.clear()
    with pytest.raises(ShardError, match="was changed while the set was open"):
        read_all(shards)
    assert len(server.requests) == 1
    assert (server.requests[0][2] is None) == weak


def test_a_file_changed_before_it_was_opened_is_not_the_one_indexed(server: FileServer, open_set: OpenSet) -> None:
    path = server.directory / "toy" / "toy-000000.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ShardError, match="is not the tar indexed"):
        open_set().record(0)


def test_a_new_version_is_not_served_from_the_cache(server: FileServer, open_set: OpenSet, tmp_path: Path) -> None:
    old = read_all(open_set())
    write_toy_set(tmp_path / "new", num_samples=5)
    for path in (tmp_path / "new").iterdir():
        os.replace(path, server.directory / "toy" / path.name)
    shards = open_set()
    assert len(shards) == 5
    assert read_all(shards) != old


def test_servers_that_cannot_do_are_refused_with_the_way_out(server: FileServer, open_set: OpenSet) -> None:
    server.has_ranges = False
    with pytest.raises(ShardError, match=r"no byte ranges.*shards/sequential.py.*reshard"):
        open_set()
    server.has_ranges = True
    server.etag = lambda _: None
    with pytest.raises(ShardError, match="without ETag and Last-Modified"):
        open_set()


@pytest.mark.parametrize(
    "url",
    ["pipe:cat /etc/passwd", "simplecache::http://x/y", "file:///etc", "ftp://x/y", "ssh://x/y", "local://x",
     "http://u:secret@x::s3://y"],
)  # fmt: skip
def test_other_protocols_are_refused(url: str, config: RemoteConfig) -> None:
    with pytest.raises(ShardError, match="no place that sets are read from") as caught:
        ShardSet.open(url, remote=config)
    assert "secret" not in str(caught.value)


def test_secrets_are_in_no_message(server: FileServer, open_set: OpenSet, caplog: pytest.LogCaptureFixture) -> None:
    server.always = http_server.status(500)
    url = "/toy?signature=secret"
    with caplog.at_level(logging.DEBUG), pytest.raises(ShardError) as caught:
        open_set(url)
    assert "3 attempts" in str(caught.value)
    server.always = http_server.status(403)
    with pytest.raises(ShardError) as refused:
        open_set(url)
    assert any("attempt 1 failed" in record.getMessage() for record in caplog.records)
    assert "secret" not in caplog.text + str(caught.value) + str(refused.value)


def test_prefetch_brings_coming_samples_in_few_requests(server: FileServer, open_set: OpenSet) -> None:
    shards = open_set()
    expected = read_all(ShardSet.open(server.directory / "toy"))
    shards.record(0)
    shards.record(5)
    server.requests.clear()
    shards.prefetch(range(len(shards)))
    source = shards.source
    assert isinstance(source, RemoteFolder)
    while source._jobs_ahead:
        time.sleep(0.005)
    # Two tars; the blocks that opening brought split one of them in two at most.
    assert 1 <= len(server.requests) <= 4
    server.requests.clear()
    assert read_all(shards) == expected
    assert server.requests == []


def test_prefetch_raises_nothing_and_the_reader_tries_on(server: FileServer, open_set: OpenSet) -> None:
    shards = open_set()
    server.faults = [http_server.status(500)] * 2
    shards.prefetch(range(len(shards)))
    assert read_all(shards) == read_all(ShardSet.open(server.directory / "toy"))


def test_prefetch_of_a_local_set_does_nothing(toy_set: ShardSet) -> None:
    before = threading.active_count()
    toy_set.prefetch([0, 1])
    assert threading.active_count() == before


def _read_in_child(shards: ShardSet) -> list[float]:
    return read_all(shards)


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_start_clean(server: FileServer, open_set: OpenSet, method: str, workers: int) -> None:
    """The parent has connections and threads of its own; forked children read at the same time."""
    shards = open_set()
    shards.prefetch([0])
    expected = read_all(shards)
    for path in Path(shards.source.config.cache_dir).glob("blocks/*/*.blk"):  # type: ignore[attr-defined]
        path.unlink()
    shards.source._memory.clear()  # type: ignore[attr-defined]
    with multiprocessing.get_context(method).Pool(workers) as pool:
        assert pool.map(_read_in_child, [shards] * 2) == [expected] * 2
    assert read_all(shards) == expected


def test_no_thread_of_ours_lives_at_a_fork(open_set: OpenSet) -> None:
    shards = open_set()
    shards.prefetch(range(len(shards)))
    child = os.fork()
    if child == 0:
        os._exit(sum("readahead" in thread.name for thread in threading.enumerate()))
    assert os.waitpid(child, 0)[1] == 0
    assert not any("readahead" in thread.name for thread in threading.enumerate())


def test_a_worker_refuses_another_set_than_its_parent_opened(open_set: OpenSet, tmp_path: Path) -> None:
    shards = open_set()
    data = pickle.dumps(shards)
    assert len(data) < 5000
    other = write_toy_set(tmp_path / "other", num_samples=5)
    for name in ("dataset.json", "dataset.idx"):
        os.replace(other / name, shards.source.metadata_path(name))
    with pytest.raises(ShardError, match="exchanged"):
        pickle.loads(data)


class TestObjectStores:
    """fsspec's in-memory file system stands for s3: the same calls (info, cat_file), no server needed."""

    @pytest.fixture
    def bucket(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
        monkeypatch.setattr(remote, "URL_SCHEMES", (*URL_SCHEMES, "memory"))
        memory = fsspec.filesystem("memory")
        for path in write_toy_set(tmp_path / "toy").iterdir():
            memory.pipe_file(f"/bucket/toy/{path.name}", path.read_bytes())
        yield memory
        memory.rm("/bucket", recursive=True)

    def test_equals_the_local_set(self, bucket: object, tmp_path: Path, config: RemoteConfig) -> None:
        shards = ShardSet.open("memory://bucket/toy", remote=config)
        assert read_all(shards) == read_all(ShardSet.open(tmp_path / "toy"))

    def test_a_changed_object_is_never_mixed(self, bucket: fsspec.AbstractFileSystem, config: RemoteConfig) -> None:
        shards = ShardSet.open("memory://bucket/toy", remote=config)
        shards.record(0)
        data = bucket.cat_file("/bucket/toy/toy-000000.tar")
        bucket.pipe_file("/bucket/toy/toy-000000.tar", data)
        with pytest.raises(ShardError, match="was changed"):
            read_all(shards)

    def test_a_missing_object_is_final(self, bucket: fsspec.AbstractFileSystem, config: RemoteConfig) -> None:
        shards = ShardSet.open("memory://bucket/toy", remote=config)
        bucket.rm_file("/bucket/toy/toy-000000.tar")
        with pytest.raises(ShardError, match="is not there"):
            shards.record(0)


def test_a_store_whose_package_is_missing_says_what_to_install(
    config: RemoteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ImportError("s3fs")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(ShardError, match=r"pip install 'qwen-audio-train\[s3\]'"):
        ShardSet.open("s3://bucket/toy", remote=config)
