"""What runs there are, and how each stands: state, step, loss, last checkpoint.

python scripts/runs.py                       # every run below runs/
python scripts/runs.py runs/sweep --json
python scripts/runs.py --state failed stale  # with the reason

running    its process lives, or gave a sign of life lately on another machine
finished   its result is under final/
stopped    by a signal, with a checkpoint: the same command again goes on
failed     by an error (told in the last column)
stale      called running, but its process is gone: killed, or its machine lost. The same command again goes on
opened     made before states were kept, or never came as far as training
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qwen_audio_train.checkpoint.publish import MANIFEST
from qwen_audio_train.config.load import read_yaml
from qwen_audio_train.tracking.run_folder import CHECKPOINTS, CONFIG_FILE
from qwen_audio_train.tracking.run_state import State, judged, last_sign, read_state
from qwen_audio_train.tracking.writer import METRICS_FILE

STATES = (*(state.value for state in State), "opened")
TAIL_BYTES = 65_536
DEEPEST = 4
"""Folders below the given ones that runs are looked for in."""


@dataclass(frozen=True)
class Row:
    """One run."""

    folder: str
    state: str
    stage: str
    step: int | None
    steps: int | None
    """None where the run's length is given in epochs."""
    loss: float | None
    checkpoint: int | None
    """Step of the newest checkpoint that was published; it is not read through here."""
    world: int | None
    slurm_job: str
    silent_seconds: float | None
    """Since the last sign of life."""
    reason: str


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs")], help="look below these (runs/)")
    parser.add_argument("--state", nargs="+", choices=STATES, help="only runs in one of these")
    parser.add_argument("--json", action="store_true", help="one object a line")
    return parser.parse_intermixed_args(arguments)


def run_folders(folder: Path, depth: int = DEEPEST) -> Iterator[Path]:
    """Folders of runs at or below one; does not look inside runs."""
    if (folder / CONFIG_FILE).is_file():
        yield folder
    elif depth > 0 and folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                yield from run_folders(path, depth - 1)


def row_of(folder: Path) -> Row:
    """How a run stands, from its files."""
    state = read_state(folder)
    last = last_line(folder / METRICS_FILE)
    settings = read_yaml(folder / CONFIG_FILE)
    numbers = [
        int(match[1])
        for path in (folder / CHECKPOINTS).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / MANIFEST).is_file()
    ]
    shown = "opened" if state is None else judged(folder, state).value
    if (folder / "final" / MANIFEST).is_file() and shown != "running":
        shown = State.finished.value
    sign = last_sign(folder)
    return Row(
        folder=str(folder),
        state=shown,
        stage="" if state is None else state.stage,
        step=None if last is None else int(last["step"]),
        steps=settings.get("run", {}).get("max_steps"),
        loss=None if last is None or "loss" not in last else float(last["loss"]),
        checkpoint=max(numbers, default=None),
        world=None if state is None else state.world,
        slurm_job="" if state is None else state.slurm_job,
        silent_seconds=round(time.time() - sign, 1) if sign else None,
        reason="" if state is None or shown != state.state.value else state.reason,
    )


def last_line(path: Path) -> dict[str, float] | None:
    """The last whole line of a run's metrics, read from the file's end."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue  # being written, or cut by the seek
        if isinstance(found, dict) and "step" in found:
            return found
    return None


def table(rows: Sequence[Row]) -> str:
    """For people."""
    head = ("run", "state", "stage", "step", "loss", "checkpoint", "silent", "")
    lines = [head]
    for row in rows:
        step = "-" if row.step is None else f"{row.step:,}" + (f"/{row.steps:,}" if row.steps else "")
        loss = "-" if row.loss is None else f"{row.loss:.4f}"
        checkpoint = "-" if row.checkpoint is None else f"{row.checkpoint:,}"
        job = f"job {row.slurm_job} " if row.slurm_job else ""
        note = job + " ".join(row.reason.split())[:100]
        lines.append((row.folder, row.state, row.stage, step, loss, checkpoint, _age(row.silent_seconds), note))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(line.rstrip() for line in padded)


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    missing = [str(folder) for folder in options.folders if not folder.is_dir()]
    if missing:
        print(f"no such folder: {', '.join(missing)}", file=sys.stderr)
        return 2
    rows = [row_of(run) for folder in options.folders for run in run_folders(folder)]
    if options.state:
        rows = [row for row in rows if row.state in options.state]
    if options.json:
        for row in rows:
            print(json.dumps(asdict(row)))
    else:
        print(table(rows) if rows else "no runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
