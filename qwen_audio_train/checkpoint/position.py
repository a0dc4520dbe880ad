"""Where in the plan a checkpoint stands: a few numbers and hashes in JSON, checked before a run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_audio_train.errors import CheckpointError

POSITION_FILE = "position.json"


def write_position(checkpoint: Path, position: Mapping[str, Any]) -> None:
    """Put the position beside the weights it belongs to."""
    text = json.dumps(dict(position), indent=1, sort_keys=True)
    (checkpoint / POSITION_FILE).write_text(text + "\n", encoding="utf-8")


def resume_step(checkpoint: Path, expected: Mapping[str, Any]) -> int:
    """The step to go on from.

    Args:
        checkpoint: a verified checkpoint folder.
        expected: the position of the plan that this run would follow, at step 0.

    Raises:
        CheckpointError: when the checkpoint followed another plan; says what changed.
    """
    saved = json.loads((checkpoint / POSITION_FILE).read_text(encoding="utf-8"))
    changed = [
        f"{name} was {saved.get(name)!r}, is {value!r}"
        for name, value in expected.items()
        if name != "step" and saved.get(name) != value
    ]
    if changed:
        raise CheckpointError(
            f"{checkpoint}: it follows another plan ({'; '.join(changed)}). "
            "Put the setting back, or start in another run.dir"
        )
    return int(saved["step"])
