"""Ports for servers of tests: from below the range that the system itself gives to outgoing connections.

A port of that range may be handed to any connection between the moment it is found free and the moment it is used.
From 20000 on they are those of batch jobs (scripts/slurm/job.sh).
"""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _COUNT = 10_000, 10_000
# Each process begins elsewhere, so that test workers side by side do not find the same port free.
_next = itertools.count(os.getpid() * 101)


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
