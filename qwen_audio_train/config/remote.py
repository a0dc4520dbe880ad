"""How shards are read from a server or an object store."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

HTTP_SCHEMES = ("http", "https")
URL_SCHEMES = (*HTTP_SCHEMES, "s3", "gs", "az", "abfs")
"""Where sets are read from besides folders."""
SECRET_WORDS = ("secret", "password", "token", "credential", "authorization", "cookie", "connection_string", "cert")
PUBLIC = "anon"
"""gcsfs calls it a token."""
SECRET_NAMES = ("key", "account_key", "access_key", "api_key")


def is_url(location: str) -> bool:
    """Whether this is a URL rather than a path."""
    return "://" in location or "::" in location or location.startswith("pipe:")


@dataclass(frozen=True)
class RemoteConfig:
    """Patience, cache and read-ahead. Nothing of it changes which samples come when, or their content."""

    cache_dir: str = "runs/cache/remote"
    """Node-local folder, shared by all processes of a machine; safe to delete while no run uses it."""
    cache_bytes: int = 64 << 30
    """Blocks of shards on disk are kept under this (least recently used goes first); indexes of sets come on top."""
    block_bytes: int = 1 << 20
    """Unit of fetching and caching. Smaller fetches less that is not needed, larger asks less often."""
    timeout_seconds: float = 30.0
    """Longest time without a byte, to connect or to read, before a request is given up and tried again."""
    min_bytes_per_second: int = 32 << 10
    """Slower than this on the whole counts as a stall too, so that a dripping server cannot hold a run."""
    retries: int = 5
    """Further attempts after server errors, timeouts, resets and short bodies. 403, 404 and the like are final."""
    backoff_seconds: float = 0.5
    """Wait before the first further attempt; doubles each time, with jitter."""
    backoff_cap_seconds: float = 30.0
    readahead_threads: int = 4
    """Requests a process keeps under way for ``ShardSet.prefetch``; 0 turns reading ahead off."""
    coalesce_gap_bytes: int = 1 << 20
    """Ranges nearer than this are fetched in one request, with what lies between them."""
    max_request_bytes: int = 16 << 20
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)
    """Passed to fsspec (endpoint, headers). Credentials belong in the environment, where fsspec finds them."""


def remote_problems(name: str, remote: RemoteConfig) -> Iterator[str]:
    """Every problem of the settings; ``name`` is how the user writes them, such as ``data.remote``."""
    if not remote.cache_dir:
        yield f"{name}.cache_dir is empty: name a folder on this machine's own disk"
    yield from _amounts(name, remote)
    for field_name in ("cache_bytes", "max_request_bytes"):
        if 1 <= getattr(remote, field_name) < remote.block_bytes:
            yield (
                f"{name}.{field_name}={getattr(remote, field_name)} cannot hold one block: raise it to "
                f"{name}.block_bytes={remote.block_bytes}, or lower that"
            )
    if remote.backoff_cap_seconds < remote.backoff_seconds:
        yield f"{name}.backoff_cap_seconds={remote.backoff_cap_seconds} is below backoff_seconds: exchange them"
    for key in sorted(_secrets(remote.storage_options)):
        yield (
            f"{name}.storage_options has {key}: a run's folder keeps its whole configuration, and no secrets belong "
            "there; put it in the environment or the provider's own file, where fsspec finds it"
        )


def _amounts(name: str, remote: RemoteConfig) -> Iterator[str]:
    for field_name in ("cache_bytes", "block_bytes", "min_bytes_per_second", "max_request_bytes"):
        if getattr(remote, field_name) < 1:
            yield f"{name}.{field_name}={getattr(remote, field_name)} must be at least 1"
    for field_name in ("retries", "readahead_threads", "coalesce_gap_bytes"):
        if getattr(remote, field_name) < 0:
            yield f"{name}.{field_name}={getattr(remote, field_name)} must be 0 or more"
    for field_name in ("timeout_seconds", "backoff_seconds", "backoff_cap_seconds"):
        value = getattr(remote, field_name)
        if not (math.isfinite(value) and value > 0):
            yield f"{name}.{field_name}={value} must be above 0"


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from (f"{key}.{inner}" for inner in _secrets(value))
        elif isinstance(value, str) and value != PUBLIC and _sounds_secret(str(key).lower()):
            yield str(key)


def _sounds_secret(name: str) -> bool:
    return name in SECRET_NAMES or any(word in name for word in SECRET_WORDS)
