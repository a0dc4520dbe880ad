"""One ranged request through fsspec: the bytes of exactly the version that was opened, or an error that says why not.

HTTP goes through fsspec's session with our own request, because the range must be honoured (206), the ETag of each
answer compared, and a body's length checked, none of which ``cat_file`` tells. Object stores go through ``cat_file``
with the object's version compared after each read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.http import HTTPFileSystem

from qwen_audio_train.config.remote import RemoteConfig
from qwen_audio_train.errors import ShardError

CHUNK_BYTES = 1 << 20
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
TRANSIENT_STATUS = frozenset({408, 429})
NO_RANGES = (
    "its server gives no byte ranges, which random access needs; copy the set here or to a server that does, or "
    "read it front to back (shards/sequential.py, scripts/reshard.py)"
)
VERSION_FIELDS = (
    "ETag",
    "etag",
    "md5Hash",
    "crc32c",
    "content_md5",
    "LastModified",
    "last_modified",
    "mtime",
    "created",
)


class TransientError(Exception):
    """A request failed in a way that may pass; worth another attempt."""


@dataclass(frozen=True, slots=True)
class Version:
    """Which content a URL had when it was opened."""

    size_bytes: int
    tag: str
    """ETag, or the time of the last change where there is none."""
    is_etag: bool = True


class RangedGet(Protocol):
    """How one kind of URL is asked."""

    def version(self, url: str) -> Version:
        """Size and version of a file. Raises TransientError, ShardError."""

    def get(self, url: str, version: Version, start: int, stop: int) -> bytes:
        """Bytes ``start`` up to ``stop`` (within the file). Raises TransientError, ShardError when it changed."""

    def download(self, url: str, path: Path, max_bytes: int) -> None:
        """Write a file whole, asking for no ranges. Raises TransientError, ShardError."""

    def close(self) -> None:
        """Let go of connections."""


def safe_url(url: str) -> str:
    """A URL without what may be secret in it: user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def changed(url: str) -> ShardError:
    """The error of a file that is not the one that was opened."""
    return ShardError(f"'{safe_url(url)}' was changed while the set was open; start again with the set as it is now")


class HttpGet:
    """http and https."""

    def __init__(self, config: RemoteConfig) -> None:
        self._config = config
        self._fs: Any = HTTPFileSystem(skip_instance_cache=True, **config.storage_options)

    def version(self, url: str) -> Version:
        """Asks for the first byte, which also shows whether ranges are honoured."""
        status, headers, body = self._request(url, 0, 1, {})
        if status == 416 or (status == 200 and headers.get("Content-Length") == "0"):
            raise ShardError(f"'{safe_url(url)}' is empty; restore it")
        match = CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if status != 206 or match is None:
            raise ShardError(f"'{safe_url(url)}' cannot be opened: {NO_RANGES}")
        if len(body) != 1:
            raise TransientError(f"{len(body)} of 1 bytes came")
        etag, modified = headers.get("ETag"), headers.get("Last-Modified")
        if not etag and not modified:
            raise ShardError(
                f"'{safe_url(url)}' comes without ETag and Last-Modified: a change could not be noticed; "
                "use a server that sends one of them"
            )
        return Version(int(match[3]), etag or modified or "", is_etag=bool(etag))

    def get(self, url: str, version: Version, start: int, stop: int) -> bytes:
        """One GET with Range, and If-Match where the ETag is a strong one."""
        condition = {"If-Match": version.tag} if version.is_etag and not version.tag.startswith("W/") else {}
        status, headers, body = self._request(url, start, stop, condition)
        if status in (412, 416) or headers.get("ETag" if version.is_etag else "Last-Modified") != version.tag:
            raise changed(url)
        if status != 206:
            raise ShardError(f"'{safe_url(url)}' cannot be read: {NO_RANGES}")
        match = CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if match is None or tuple(map(int, match.groups())) != (start, stop - 1, version.size_bytes):
            raise TransientError("another range than asked for")
        if len(body) != stop - start:
            raise TransientError(f"{len(body)} of {stop - start} bytes came")
        return body

    def download(self, url: str, path: Path, max_bytes: int) -> None:
        """One plain GET; it may last as long as bytes come."""
        self._sync(url, None, self._stream, url, path, max_bytes)

    def close(self) -> None:
        """Close the session; the next request opens another."""
        session, self._fs._session = self._fs._session, None
        if session is not None:
            HTTPFileSystem.close_session(self._fs.loop, session)

    def _request(self, url: str, start: int, stop: int, headers: dict[str, str]) -> tuple[int, Any, bytes]:
        limit_seconds = 2 * self._config.timeout_seconds + (stop - start) / self._config.min_bytes_per_second
        return self._sync(url, limit_seconds, self._ask, url, start, stop, headers)

    def _sync(self, url: str, limit_seconds: float | None, coroutine: Any, *arguments: Any) -> Any:
        try:
            return sync(self._fs.loop, coroutine, *arguments, timeout=limit_seconds)
        except aiohttp.InvalidURL:
            raise ShardError(f"'{safe_url(url)}' is no URL that can be asked; check it") from None
        except (TimeoutError, FSTimeoutError):
            raise TransientError("it stalled") from None
        except (aiohttp.ClientError, OSError) as error:
            # Only the kind: the text of these errors holds the URL with its secrets.
            raise TransientError(type(error).__name__) from None

    async def _get(self, url: str, headers: dict[str, str]) -> Any:
        session = await self._fs.set_session()
        seconds = self._config.timeout_seconds
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
        # identity: a compressed body would be of another length.
        headers = {**self._fs.kwargs.get("headers", {}), "Accept-Encoding": "identity", **headers}
        return session.get(self._fs.encode_url(url), headers=headers, timeout=timeout)

    async def _stream(self, url: str, path: Path, max_bytes: int) -> None:
        async with await self._get(url, {}) as answer:
            _require_served(url, answer.status, final=(412, 416))
            with path.open("wb") as file:
                while part := await answer.content.read(CHUNK_BYTES):
                    file.write(part)
                    _require_at_most(url, file.tell(), max_bytes)

    async def _ask(self, url: str, start: int, stop: int, headers: dict[str, str]) -> tuple[int, Any, bytes]:
        async with await self._get(url, {"Range": f"bytes={start}-{stop - 1}", **headers}) as answer:
            status = answer.status
            _require_served(url, status)
            body = b""
            if status == 206:
                body = await _read_at_most(answer.content, stop - start)
            else:
                answer.close()  # the whole file may follow
            return status, answer.headers, body


def _require_served(url: str, status: int, final: tuple[int, ...] = ()) -> None:
    if status >= 500 or status in TRANSIENT_STATUS:
        raise TransientError(f"status {status}")
    if status in final or (status >= 400 and status not in (412, 416)):
        raise ShardError(f"'{safe_url(url)}' is refused with status {status}; check the URL and your access")


def _require_at_most(url: str, num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise ShardError(f"'{safe_url(url)}' is over {max_bytes} bytes; split it")


async def _read_at_most(content: aiohttp.StreamReader, num_bytes: int) -> bytes:
    parts, missing = [], num_bytes + 1  # one more, so that a body that is too long shows
    while missing > 0 and (part := await content.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


class ObjectGet:
    """Any other fsspec file system: s3, gs, az."""

    def __init__(self, protocol: str, config: RemoteConfig) -> None:
        self._config = config
        try:
            self._fs: Any = fsspec.filesystem(protocol, skip_instance_cache=True, **config.storage_options)
        except ImportError:
            raise ShardError(
                f"reading {protocol}:// needs another package: pip install 'qwen-audio-train[{protocol}]'"
            ) from None

    def version(self, url: str) -> Version:
        """Asks for the object's metadata."""
        info = self._call("info", url)
        tag = next((str(info[name]) for name in VERSION_FIELDS if info.get(name)), None)
        if tag is None or info.get("size") is None:
            raise ShardError(f"'{safe_url(url)}' states no size or version: a change could not be noticed")
        return Version(int(info["size"]), tag)

    def get(self, url: str, version: Version, start: int, stop: int) -> bytes:
        """One ranged read, then one look whether the object is still the one opened."""
        body = bytes(self._call("cat_file", url, start=start, end=stop))
        if self.version(url) != version:
            raise changed(url)
        if len(body) != stop - start:
            raise TransientError(f"{len(body)} of {stop - start} bytes came")
        return body

    def download(self, url: str, path: Path, max_bytes: int) -> None:
        """Copy the object."""
        _require_at_most(url, self.version(url).size_bytes, max_bytes)
        self._call("get_file", url, lpath=str(path))

    def close(self) -> None:
        """fsspec closes its sessions with the file system."""

    def _call(self, method: str, url: str, **options: Any) -> Any:
        wanted = options.get("end", 0) - options.get("start", 0)
        limit_seconds: float | None = 2 * self._config.timeout_seconds + wanted / self._config.min_bytes_per_second
        if method == "get_file":
            limit_seconds = None
        try:
            self._fs.invalidate_cache()  # listings are kept, and would hide a change
            if isinstance(self._fs, AsyncFileSystem):
                path = self._fs._strip_protocol(url)
                return sync(self._fs.loop, getattr(self._fs, f"_{method}"), path, timeout=limit_seconds, **options)
            return getattr(self._fs, method)(url, **options)
        except FileNotFoundError:
            raise ShardError(f"'{safe_url(url)}' is not there; check the URL") from None
        except PermissionError:
            raise ShardError(f"'{safe_url(url)}' is refused; check your access") from None
        except (TimeoutError, FSTimeoutError):
            raise TransientError("it stalled") from None
        except Exception as error:
            # Each store raises its own kinds; what is final was told above by the kinds that fsspec asks of all.
            raise TransientError(type(error).__name__) from None
