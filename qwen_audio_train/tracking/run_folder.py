"""What a run leaves beside its results, so that it can be understood and repeated."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from qwen_audio_train.config.load import to_yaml

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
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


def open_run_folder(run_dir: Path, config: object) -> None:
    """Write the composed configuration and the environment into the run's folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / CONFIG_FILE).write_text(to_yaml(config), encoding="utf-8")
    environment = json.dumps(describe_environment(), indent=1)
    (run_dir / ENVIRONMENT_FILE).write_text(environment + "\n", encoding="utf-8")


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
