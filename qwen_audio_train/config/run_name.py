"""A folder for a run that names none: the same settings find it again, other settings never meet in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

RUNS = "runs"
_MAY_CHANGE_GROUPS = ("runtime", "tracking", "checkpoint")
_MAY_CHANGE_DATA = (
    "num_workers",
    "cache_dir",
    "remote",
    "skip_steps",
    "accept_change",
    "max_bad_consecutive",
    "max_bad_share",
)
"""What may change while a run goes on: where and how it computes, and what it is told after trouble."""


def default_run_dir(stage: str, settings: Mapping[str, Any]) -> str:
    """``runs/sft-tiny-1f0c9a3e``: stage, model, and a hash of all settings that make the run what it is.

    Args:
        stage: name of the recipe.
        settings: the composed configuration as nested dictionaries of plain values.
    """
    named = {group: values for group, values in settings.items() if group not in _MAY_CHANGE_GROUPS}
    named["run"] = {name: value for name, value in settings["run"].items() if name != "dir"}
    named["data"] = {name: value for name, value in settings["data"].items() if name not in _MAY_CHANGE_DATA}
    text = json.dumps([stage, named], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    model = settings["model"]
    size = model["size"] if model["start_from"] is None else str(model["start_from"]).rstrip("/").replace("/", "-")
    return f"{RUNS}/{stage}-{size[-40:].lstrip('-.')}-{digest}"
