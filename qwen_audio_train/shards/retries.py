"""Patience with servers: try again what may pass, with growing waits and jitter, and say so."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from qwen_audio_train.config.remote import RemoteConfig
from qwen_audio_train.shards.ranged_get import TransientError

logger = logging.getLogger(__name__)
T = TypeVar("T")


def attempt(
    request: Callable[[], T], where: str, config: RemoteConfig, failure: type[Exception], retries: int | None = None
) -> T:
    """The first answer to ``request`` that is no TransientError.

    Args:
        where: the file, as errors and the log name it: nothing secret in it.
        failure: raised when every attempt failed.
        retries: further attempts, if not as configured.
    """
    retries = config.retries if retries is None else retries
    for number in range(retries + 1):
        try:
            return request()
        except TransientError as error:
            reason = str(error)
        if number < retries:
            longest = min(config.backoff_cap_seconds, config.backoff_seconds * 2**number)
            logger.warning("'%s': %s; attempt %d failed", where, reason, number + 1)
            time.sleep(longest * random.uniform(0.5, 1.0))
    raise failure(f"'{where}' could not be read in {retries + 1} attempts: {reason}")
