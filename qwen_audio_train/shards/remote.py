"""A folder of shards at a URL: ranged reads through a cache on disk, with retries and read-ahead.

Every byte belongs to the version (ETag) that was seen first: a file that changes ends the run with a sentence, it is
never mixed. Threads and connections are made when first needed and given up before a fork, so that DataLoader workers
start clean under fork as under spawn.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from qwen_audio_train.config.remote import HTTP_SCHEMES, URL_SCHEMES, RemoteConfig
from qwen_audio_train.errors import ShardError
from qwen_audio_train.shards.contract import DATASET_FILE
from qwen_audio_train.shards.range_cache import RangeCache, block_runs
from qwen_audio_train.shards.ranged_get import HttpGet, ObjectGet, RangedGet, Version, safe_url
from qwen_audio_train.shards.retries import attempt
from qwen_audio_train.shards.sources import ByteRange, ReadFailedError

logger = logging.getLogger(__name__)

MAX_METADATA_FILE_BYTES = 64 << 30
MAX_JOBS_AHEAD = 256
BLOCKS_IN_MEMORY = 8
"""A sample's metadata and clip lie in the same block or the next; reading it from disk once is enough."""

T = TypeVar("T")
_folders: weakref.WeakSet[RemoteFolder] = weakref.WeakSet()


class RemoteShard:
    """An opened tar at a URL."""

    def __init__(self, folder: RemoteFolder, name: str, version: Version) -> None:
        self._folder = folder
        self._name = name
        self._version = version
        self.size_bytes = version.size_bytes

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Bytes at an offset, from the cache or fetched into it."""
        size = self._folder.config.block_bytes
        stop = min(offset + num_bytes, self.size_bytes)
        if offset < 0 or offset >= stop:
            return b""
        numbers = range(offset // size, -(-stop // size))
        blocks = self._folder.blocks(self._name, self._version, numbers)
        joined = b"".join(blocks[number] for number in numbers)
        return joined[offset - numbers.start * size : stop - numbers.start * size]


class RemoteFolder:
    """Shards and their metadata under one URL.

    Raises:
        ShardError: the URL is chained, of a protocol that is not allowed, or needs a package that is not installed.
    """

    _pool: ThreadPoolExecutor | None
    _getter: RangedGet | None
    _jobs_ahead: int

    def __init__(self, url: str, config: RemoteConfig) -> None:
        protocol = url.partition("://")[0]
        if "::" in url or protocol not in URL_SCHEMES:
            raise ShardError(
                f"'{safe_url(url)}' is no place that sets are read from; a path, or {', '.join(URL_SCHEMES)}://"
            )
        parts = urlsplit(url)
        path = parts.path.rstrip("/").removesuffix(f"/{DATASET_FILE}")
        self.config = config
        self.location = safe_url(urlunsplit(parts._replace(path=path)))
        self._parts = parts._replace(path=path)
        self._protocol = protocol
        self._cache = RangeCache(Path(config.cache_dir), config.cache_bytes)
        self._versions: dict[str, Version] = {}
        self._metadata_paths: dict[str, Path] = {}
        self._start_clean()

    def __getstate__(self) -> dict[str, Any]:
        # Versions and fetched metadata travel: a worker reads the very files that its parent opened.
        names = ("config", "location", "_parts", "_protocol", "_cache", "_versions", "_metadata_paths")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_clean()

    def where(self, name: str) -> str:
        """Its URL without secrets."""
        return f"{self.location}/{name}"

    def open_shard(self, name: str) -> RemoteShard:
        """Ask for the tar's version, once."""
        return RemoteShard(self, name, self._version(name, ShardError))

    def metadata_path(self, name: str) -> Path:
        """Fetch a file whole into the cache folder, under a name of its URL and version, unless it is there."""
        if name not in self._metadata_paths or not self._metadata_paths[name].exists():
            version = self._version(name, ShardError)
            if version.size_bytes > MAX_METADATA_FILE_BYTES:
                raise ShardError(
                    f"'{self.where(name)}' of {version.size_bytes} bytes; at most {MAX_METADATA_FILE_BYTES}"
                )
            path = Path(self.config.cache_dir).absolute() / "sets" / self._key(name, version) / name
            if not path.exists():
                self._fetch_whole(name, version, path)
            self._metadata_paths[name] = path
        return self._metadata_paths[name]

    def prefetch(self, ranges: Mapping[str, Iterable[ByteRange]]) -> None:
        """Fetch ranges into the cache in the background; ranges near each other in one request."""
        if not self.config.readahead_threads:
            return
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.config.readahead_threads, thread_name_prefix="readahead")
            # A hint that comes faster than the network is dropped: the reader fetches what it needs itself.
            for name, wanted in ranges.items():
                if self._jobs_ahead < MAX_JOBS_AHEAD:
                    self._jobs_ahead += 1
                    self._pool.submit(self._read_ahead, name, list(wanted))

    def fetch_without_ranges(self, name: str, path: Path, max_bytes: int) -> None:
        """Write a file to ``path`` by one plain request. Raises ShardError: refused, too big, or never whole."""
        self._attempt(name, lambda getter: getter.download(self._url(name), path, max_bytes), ShardError)

    def blocks(self, name: str, version: Version, numbers: Iterable[int]) -> dict[int, bytes]:
        """Blocks of a tar, from memory, disk or the server; several threads never fetch the same one."""
        key = self._key(name, version)
        found, missing = {}, []
        for number in numbers:
            block = self._remembered(key, number)
            if block is None:
                missing.append(number)
            else:
                found[number] = block
        for run in self._runs(missing):
            found.update(self._fetch_or_wait(name, version, key, run))
        return found

    def close(self) -> None:
        """Give up threads and connections; they come back when needed."""
        with self._lock:
            pool, getter, self._pool, self._getter = self._pool, self._getter, None, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
            self._jobs_ahead = 0
        if getter is not None:
            getter.close()

    def _start_clean(self) -> None:
        self._lock = threading.Lock()
        self._pool = None
        self._getter = None
        self._jobs_ahead = 0
        self._under_way: dict[tuple[str, int], Future[bytes]] = {}
        self._memory: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        _folders.add(self)

    def _url(self, name: str) -> str:
        return urlunsplit(self._parts._replace(path=f"{self._parts.path}/{name}"))

    def _key(self, name: str, version: Version) -> str:
        identity = "\0".join((self._url(name), version.tag, str(version.size_bytes), str(self.config.block_bytes)))
        return hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()

    def _version(self, name: str, failure: type[Exception]) -> Version:
        if name not in self._versions:
            url = self._url(name)
            self._versions[name] = self._attempt(name, lambda getter: getter.version(url), failure)
        return self._versions[name]

    def _attempt(
        self, name: str, request: Callable[[RangedGet], T], failure: type[Exception], retries: int | None = None
    ) -> T:
        return attempt(lambda: request(self._requests()), self.where(name), self.config, failure, retries)

    def _range(self, name: str, version: Version, start: int, stop: int) -> bytes:
        return self._attempt(name, lambda getter: getter.get(self._url(name), version, start, stop), ShardError)

    def _requests(self) -> RangedGet:
        with self._lock:
            if self._getter is None:
                is_http = self._protocol in HTTP_SCHEMES
                self._getter = HttpGet(self.config) if is_http else ObjectGet(self._protocol, self.config)
            return self._getter

    def _remembered(self, key: str, number: int) -> bytes | None:
        with self._lock:
            if (key, number) in self._memory:
                self._memory.move_to_end((key, number))
                return self._memory[key, number]
        block = self._cache.read(key, number)
        if block is not None:
            self._remember(key, number, block)
        return block

    def _remember(self, key: str, number: int, block: bytes) -> None:
        with self._lock:
            self._memory[key, number] = block
            while len(self._memory) > BLOCKS_IN_MEMORY:
                self._memory.popitem(last=False)

    def _runs(self, numbers: Iterable[int], gap_blocks: int = 0) -> list[range]:
        longest = max(1, self.config.max_request_bytes // self.config.block_bytes)
        return block_runs(numbers, longest, gap_blocks)

    def _fetch_or_wait(
        self, name: str, version: Version, key: str, run: range, retries: int | None = None
    ) -> dict[int, bytes]:
        with self._lock:
            others = {number: self._under_way[key, number] for number in run if (key, number) in self._under_way}
            ours: dict[int, Future[bytes]] = {number: Future() for number in run if number not in others}
            self._under_way.update({(key, number): future for number, future in ours.items()})
        try:
            for part in self._runs(ours):
                for number, block in self._fetch_run(name, version, key, part, retries).items():
                    ours[number].set_result(block)
        except BaseException as error:
            for future in ours.values():
                if not future.done():
                    future.set_exception(error)
            raise
        finally:
            with self._lock:
                for number in ours:
                    del self._under_way[key, number]
        found = {number: future.result() for number, future in ours.items()}
        for number, future in others.items():
            # Reading ahead tries once only; who needs the block tries on.
            failed = future.exception() is not None
            fetched = self._fetch_run(name, version, key, range(number, number + 1), retries) if failed else {}
            found[number] = fetched[number] if failed else future.result()
        return found

    def _fetch_run(self, name: str, version: Version, key: str, run: range, retries: int | None) -> dict[int, bytes]:
        size, url = self.config.block_bytes, self._url(name)
        start, stop = run.start * size, min(run.stop * size, version.size_bytes)
        body = self._attempt(name, lambda getter: getter.get(url, version, start, stop), ReadFailedError, retries)
        blocks = {number: body[(number - run.start) * size : (number - run.start + 1) * size] for number in run}
        for number, block in blocks.items():
            self._cache.write(key, number, block)
            self._remember(key, number, block)
        return blocks

    def _read_ahead(self, name: str, wanted: list[ByteRange]) -> None:
        try:
            size, version = self.config.block_bytes, self._version(name, ShardError)
            key = self._key(name, version)
            last = -(-version.size_bytes // size)
            numbers = {n for start, stop in wanted for n in range(start // size, min(last, -(-stop // size)))}
            missing = [number for number in numbers if not self._cache.contains(key, number)]
            for run in self._runs(missing, self.config.coalesce_gap_bytes // size):
                self._fetch_or_wait(name, version, key, run, retries=0)
        except (ShardError, ReadFailedError) as error:
            # The reader meets the same error at the sample it belongs to, and says so there.
            logger.warning("reading ahead: %s", error)
        finally:
            with self._lock:
                self._jobs_ahead -= 1

    def _fetch_whole(self, name: str, version: Version, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{name}.{os.getpid()}.{threading.get_ident()}.tmp")
        step = self.config.max_request_bytes
        try:
            with temporary.open("wb") as file:
                for start in range(0, version.size_bytes, step):
                    stop = min(start + step, version.size_bytes)
                    file.write(self._range(name, version, start, stop))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _close_all() -> None:
    for folder in list(_folders):
        folder.close()


os.register_at_fork(before=_close_all)
