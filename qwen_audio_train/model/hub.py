"""Where a named model comes from: a local folder, the local hub cache, the hub, or nowhere.

Asking first, with one short request, spares a machine without a hub the minute of retries of ``from_pretrained``.
Nothing is ever loaded with remote code or from pickle.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils._http import get_session

from qwen_audio_train.errors import CheckpointError

logger = logging.getLogger(__name__)

_PROBE_TIMEOUT_SECONDS = 5.0

Loaded = TypeVar("Loaded")


def is_available(source: str) -> bool:
    """Whether ``source`` is a folder with a ``config.json``, or a hub id that is cached or can be reached now."""
    return is_local(source) or _hub_answers(source)


def is_local(source: str) -> bool:
    """Whether ``source`` needs no network: a model folder, or a hub id in the local hub cache."""
    if (Path(source) / "config.json").is_file():
        return True
    return _is_hub_id(source) and isinstance(try_to_load_from_cache(source, "config.json"), str)


def load_pretrained(load: Callable[..., Loaded], source: str, **options: Any) -> Loaded:
    """``load(source, ...)`` for a ``from_pretrained`` method.

    Raises CheckpointError when ``source`` is neither a model folder nor a hub id within reach, or is not readable.
    """
    if not is_available(source):
        raise CheckpointError(
            f"'{source}' is not a folder with a config.json, and the model hub does not have it or cannot be reached. "
            "Give a local folder, or check the name and the network."
        )
    try:
        return load(source, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{source}' could not be loaded (safetensors only, no remote code): {error}") from error


def load_model(load: Callable[..., Any], source: str, **options: Any) -> Any:
    """``load_pretrained`` for weights: safetensors only, and every weight of the model must be there.

    Stock loading starts a missing weight at random and warns, which is easily overlooked.
    """
    model, report = load_pretrained(load, source, use_safetensors=True, output_loading_info=True, **options)
    missing = sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    if missing:
        raise CheckpointError(f"'{source}' lacks {len(missing)} of the model's weights, for instance '{missing[0]}'.")
    return model.eval()


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def _hub_answers(source: str) -> bool:
    if constants.HF_HUB_OFFLINE or not _is_hub_id(source):
        return False
    address = f"{constants.ENDPOINT}/{source}/resolve/main/config.json"
    try:
        answer = get_session().head(address, timeout=_PROBE_TIMEOUT_SECONDS, follow_redirects=True)
    except Exception as error:
        # Any: which HTTP library the hub's client raises from changes between its versions.
        logger.info("the model hub cannot be reached: %s", error)
        return False
    # 401 and 403 are answers too: a gated model, about which from_pretrained has more to say.
    return answer.status_code in (200, 401, 403)
