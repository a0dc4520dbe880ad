"""What a run leaves beside its results, so that it can be understood and repeated, and whose folder it is."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from qwen_audio_train.config.load import read_yaml, to_plain, to_yaml
from qwen_audio_train.config.stages import StageConfig, stage_of
from qwen_audio_train.errors import ConfigError
from qwen_audio_train.tracking.run_state import BEAT_SECONDS, RunState, State, last_sign, read_state, write_state

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
CHECKPOINTS = "checkpoints"
IDENTITY = ("model", "trainable", "adapter", "preference")
"""Groups that make a run another run. The plan itself refuses other data, seeds and budgets; the optimiser's settings,
the number of processes, and what is saved and logged may change when a run goes on."""
OWN_FILES = frozenset({CONFIG_FILE, ENVIRONMENT_FILE, CHECKPOINTS, "slurm", "state.json"})
"""Any of these makes a folder a run's."""
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "datasets", "webdataset", "numpy")


def describe_environment() -> dict[str, object]:
    """Machine, Python, package versions and git revision (with a mark when the tree has changes)."""
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "git": _git_revision(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "packages": installed_packages(),
    }


def installed_packages() -> dict[str, str | None]:
    """Versions of what decides how a run learns."""
    return {name: _version(name) for name in _PACKAGES}


def open_run_folder(run_dir: Path, config: StageConfig, *, world: int = 1) -> None:
    """Write the composed configuration, the environment and the state into the run's folder.

    Raises:
        ConfigError: the folder is another run's, or no run's but not empty, or another process trains there.
    """
    problems = list(folder_problems(run_dir, config))
    if problems:
        raise ConfigError(problems)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / CONFIG_FILE).write_text(to_yaml(config), encoding="utf-8")
    environment = json.dumps(describe_environment(), indent=1)
    (run_dir / ENVIRONMENT_FILE).write_text(environment + "\n", encoding="utf-8")
    write_state(run_dir, RunState.of_this_process(stage_of(config).value, world))


def folder_problems(run_dir: Path, config: StageConfig, *, judges_life: bool = True) -> Iterator[str]:
    """Why a run with these settings must not start, or go on, in this folder.

    Args:
        judges_life: whether to ask if another process trains there. The answer depends on the machine that asks: one
            rank's counts. All others are the same on every rank.
    """
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        yield f"run.dir={run_dir} is a file: choose a folder"
        return
    names = {path.name for path in run_dir.iterdir() if not path.name.startswith(".")}  # what tools leave
    if names and not names & OWN_FILES:
        shown = ", ".join(sorted(names)[:5])
        yield f"run.dir={run_dir} holds other things than a run ({shown}): choose a folder of its own"
        return
    state = read_state(run_dir)
    if judges_life and state is not None and _may_train_there(run_dir, state):
        yield (
            f"run.dir={run_dir}: process {state.process} on {state.host} trains there (last sign of life "
            f"{time.time() - last_sign(run_dir):.0f} s ago): stop it first, or choose another run.dir"
        )
    if (run_dir / CONFIG_FILE).is_file() and any((run_dir / CHECKPOINTS).glob("checkpoint-*")):
        yield from _another_run(run_dir, state, config)


def _may_train_there(run_dir: Path, state: RunState) -> bool:
    if state.state is not State.running or state.is_here:
        return False
    if state.host == platform.node():
        return state.process_lives
    own_job = RunState.of_this_process("", 1).slurm_job
    if state.slurm_job and state.slurm_job == own_job:
        return False  # the same job, requeued: Slurm has ended what it started before
    return time.time() - last_sign(run_dir) < 6 * BEAT_SECONDS


def _another_run(run_dir: Path, state: RunState | None, config: StageConfig) -> Iterator[str]:
    stage = stage_of(config).value
    if state is not None and state.stage != stage:
        yield f"run.dir={run_dir} holds a run of stage {state.stage}, this is {stage}: choose another run.dir"
        return
    saved, now = read_yaml(run_dir / CONFIG_FILE), to_plain(config)
    changed = [text for group in IDENTITY for text in _differences(group, saved.get(group), now.get(group))]
    if changed:
        yield (
            f"run.dir={run_dir} holds checkpoints of another run: {'; '.join(changed)}. "
            "Choose another run.dir, or the settings it had"
        )


def _differences(name: str, saved: Any, now: Any) -> Iterator[str]:
    """Settings that a saved configuration has otherwise. One that it does not know is new, and no difference."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        for key in now:
            if key in saved:
                yield from _differences(f"{name}.{key}", saved[key], now[key])
    elif saved is not None and saved != now:
        yield f"{name} was {saved}, is {now}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
