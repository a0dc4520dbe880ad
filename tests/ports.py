"""Ports for servers of tests: from below the range that the system itself gives to outgoing connections.

A port of that range may be handed to any connection between the moment it is found free and the moment it is used.
From 20000 on they are those of batch jobs (scripts/slurm/job.sh).
"""

from __future__ import annotations

import itertools
import os
import socket

# Test workers side by side take turns, so that none finds a port free that another has given and not yet used.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_FIRST, _COUNT = 10_000, 10_000 // _WORKERS * _WORKERS
_next = itertools.count(os.getpid() * 101 // _WORKERS * _WORKERS + _WORKER, _WORKERS)


def free_port() -> int:
    """A port that nothing on this machine listens on, and that this process has not given before."""
    while True:
        port = _FIRST + next(_next) % _COUNT
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
