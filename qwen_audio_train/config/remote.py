"""How shards are read from a server or an object store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
