"""metrics.jsonl always, wandb as asked; on rank 0 only."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_audio_train.config.tracking import TrackingConfig, WandbMode

METRICS_FILE = "metrics.jsonl"


class MetricWriter:
    """One line a call. A resumed run goes on in the same file; lines past the checkpoint it resumed from are dropped,
    so that each step stands there once."""

    def __init__(self, run_dir: Path, tracking: TrackingConfig, *, config: Mapping[str, Any], start_step: int) -> None:
        self.path = run_dir / METRICS_FILE
        _drop_lines_after(self.path, start_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._wandb = _start_wandb(run_dir, tracking, config)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of a step."""
        line = {"step": step, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def close(self) -> None:
        """Flush and let wandb finish."""
        self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """All lines of a run's metrics, in order."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _is_whole(line) and json.loads(line)["step"] <= step]
    path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _is_whole(line: str) -> bool:
    """A kill may have cut the last line short."""
    return line.startswith("{") and line.endswith("}")


def _start_wandb(run_dir: Path, tracking: TrackingConfig, config: Mapping[str, Any]) -> Any:
    if tracking.wandb is WandbMode.disabled:
        return None
    import wandb  # noqa: PLC0415 - heavy, and not needed where it is switched off

    return wandb.init(
        project=tracking.project,
        name=run_dir.name,
        dir=str(run_dir),
        mode=tracking.wandb.value,
        config=dict(config),
        resume="allow",
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )
