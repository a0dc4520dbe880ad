"""Runs that faults are done to, what an unbroken one of them did, and the table."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from qwen_audio_train.checkpoint import publish
from qwen_audio_train.model.build import save_built
from qwen_audio_train.model.sizes import build_tiny
from tests import rank_runs, sets

STEPS = 6
PATIENCE_SECONDS = 60.0
"""For the others of a rank that has died to end by themselves."""
EVERY_STEPS = 2
MAKERS = {"pretrain": sets.pretrain_set, "sft": sets.chat_set, "dpo": sets.preference_set}
OVERRIDES = {
    "pretrain": ["trainable=all"],
    "sft": ["adapter=lora", "adapter.dropout=0.3"],
    "dpo": ["preference.disable_dropout=false"],
}
ROUNDING = 1e-4
"""Relative difference of losses that another order of summing may make."""
KINDS = {
    "SIGKILL .* before operation": "SIGKILL before a file operation of a save",
    "SIGKILL .* from the beginning": "SIGKILL of a rank in a step",
    "SIGKILL .* gone on with": "the same, gone on with another number of ranks",
    "SIGSTOP": "SIGSTOP of a rank",
    "flipped bit": "a flipped bit in a file of the newest checkpoint",
    "latest removed": "`latest` removed",
    "disk full": "disk full while saving",
    "read-only folder in": "folder read-only while saving",
    "started in": "started in a read-only folder",
}
"""Beginnings of rows' faults, as patterns, and what the table calls them."""


@dataclass(frozen=True)
class Case:
    """What is run."""

    stage: str
    sharding: str
    """A name of configs/runtime."""
    world: int
    has_dropout: bool = True

    def __str__(self) -> str:
        return f"{self.stage}, {self.sharding}, {self.world} rank(s)"


@dataclass(frozen=True)
class Outcome:
    """What a finished run did."""

    losses: dict[int, float]
    keys: dict[int, Any]
    weights: str
    """SHA-256 of the file."""

    def differences(self, other: Outcome, *, is_exact: bool) -> list[str]:
        """In words; nothing where the runs are alike."""
        found = []
        if self.keys != other.keys:
            found.append("sample keys differ")
        if self.losses.keys() != other.losses.keys():
            found.append(f"steps {sorted(other.losses)} for {sorted(self.losses)}")
        elif is_exact and self.losses != other.losses:
            found.append("losses differ")
        elif any(abs(other.losses[step] - loss) > ROUNDING * abs(loss) for step, loss in self.losses.items()):
            found.append("losses differ by more than rounding")
        if is_exact and self.weights != other.weights:
            found.append("final weights differ")
        return found


@dataclass
class Report:
    """A row a fault."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, fault: str, case: Case, **values: Any) -> None:
        """Note one fault, and say it."""
        row = {"fault": fault, "case": str(case), **values}
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def sums(self) -> dict[str, Any]:
        """Over all rows but those of the test of the test."""
        rows = [row for row in self.rows if "caught" not in row and "not_tried" not in row]
        return {
            "tried": len(rows),
            "lost_work": sum(row["lost_work"] for row in rows),
            "wrong_resumes": sum(bool(row["differences"]) for row in rows),
            "failed_restarts": sum(row["failed"] for row in rows),
            "longest_recovery_seconds": max((row["recovery_seconds"] for row in rows), default=0.0),
            "wrong_resume_is_caught": all(row["caught"] for row in self.rows if "caught" in row),
            "not_tried": [row["fault"] for row in self.rows if "not_tried" in row],
        }

    def table(self) -> str:
        """Markdown: a line a kind of fault."""
        lines = [
            "| fault | runs | tried | lost work | wrong resumes | longest recovery, s |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for pattern, name in KINDS.items():
            rows = [row for row in self.rows if re.match(pattern, row["fault"]) and "not_tried" not in row]
            if rows:
                cases = "; ".join(sorted({row["case"] for row in rows}))
                lost, wrong = sum(row["lost_work"] for row in rows), sum(bool(row["differences"]) for row in rows)
                longest = max(row["recovery_seconds"] for row in rows)
                lines.append(f"| {name} | {cases} | {len(rows)} | {lost} | {wrong} | {longest:.1f} |")
        return "\n".join(lines)

    def is_good(self) -> bool:
        """Nothing lost, nothing wrong, and a wrong one would have been seen."""
        sums = self.sums()
        return sums["wrong_resume_is_caught"] and not (
            sums["lost_work"] or sums["wrong_resumes"] or sums["failed_restarts"]
        )


class Runs:
    """A model, its sets, and a folder a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = count()
        self._unbroken: dict[Case, tuple[Path, Outcome]] = {}

    @classmethod
    def make(cls, folder: Path) -> Runs:
        """Build what all runs start from."""
        folder.mkdir(parents=True, exist_ok=True)
        save_built(*build_tiny(seed=1), folder / "plain")
        shutil.copytree(folder / "plain", folder / "dropout")
        config = folder / "dropout" / "config.json"
        values = json.loads(config.read_text())
        values["text_config"]["attention_dropout"] = 0.2
        config.write_text(json.dumps(values))
        for stage, make in MAKERS.items():
            make(folder / stage)
        return cls(folder)

    def new_folder(self) -> Path:
        """For one more run."""
        return self.folder / f"run-{next(self._numbers)}"

    def start(self, case: Case, run_dir: Path, prepare: Callable[[int], None] | None = None) -> list[Any]:
        """All ranks of a case."""
        settings = [
            *rank_runs.SETTINGS,
            f"model.start_from={self.folder / ('dropout' if case.has_dropout else 'plain')}",
            f"data.train={self.folder / case.stage}",
            f"data.cache_dir={self.folder / 'cache'}",
            "batching.llm_tokens_per_bin=256",
            "batching.bins_per_step=4",
            "batching.window_samples=16",
            f"checkpoint.every_steps={EVERY_STEPS}",
            f"run.max_steps={STEPS}",
            f"runtime={case.sharding}",
            "runtime.device=cpu",
            *OVERRIDES[case.stage],
        ]
        if case.stage != "pretrain":
            settings.remove("model=tiny")
        return rank_runs.start(case.stage, settings, run_dir=run_dir, world=case.world, prepare=prepare)

    def unbroken(self, case: Case) -> tuple[Path, Outcome]:
        """Folder and outcome; run when first asked for."""
        if case not in self._unbroken:
            run_dir = self.folder / f"unbroken-{len(self._unbroken)}"
            codes = rank_runs.finish(self.start(case, run_dir))
            if codes != [0] * case.world:
                raise RuntimeError(f"the unbroken run of {case} ended with {codes}\n{rank_runs.told(run_dir)}")
            self._unbroken[case] = run_dir, outcome(run_dir)
        return self._unbroken[case]

    def broken_copy(self, case: Case, step: int) -> Path:
        """An unbroken run's folder as a kill some time after a step's checkpoint leaves it."""
        run_dir = self.new_folder()
        shutil.copytree(self.unbroken(case)[0], run_dir)
        shutil.rmtree(run_dir / "final")
        for path in (run_dir / "checkpoints").glob("checkpoint-*"):
            if int(path.name.partition("-")[2]) > step:
                shutil.rmtree(path)
        return run_dir

    def go_on(self, fault: str, case: Case, run_dir: Path, report: Report, *, least_step: int, **more: Any) -> None:
        """Start again, finish, compare, note. ``least_step``: of the newest checkpoint that must be there."""
        newest = publish.newest_whole(run_dir / "checkpoints")
        stands = 0 if newest is None else int(newest.name.partition("-")[2])
        started = time.time()
        ranks = self.start(case, run_dir)
        codes = rank_runs.finish(ranks)
        failed = codes != [0] * case.world
        exact = more.pop("is_exact", True)
        compared = more.pop("compared_with", case)
        found = [] if failed else self.unbroken(compared)[1].differences(outcome(run_dir), is_exact=exact)
        lines = [line for line in rank_runs.key_lines(run_dir) if line["start"] >= started]
        first = min((line["step"] for line in lines), default=STEPS + 1)
        if not failed and first != stands + 1:
            found.append(f"went on with step {first} from checkpoint {stands}")
        recovered = min((line["time"] for line in lines), default=time.time()) - started
        report.add(
            fault,
            case,
            stood_at=stands,
            lost_work=int(stands < least_step),
            failed=int(failed),
            differences=found,
            recovery_seconds=round(recovered, 2),
            **more,
        )
        if failed:
            print(rank_runs.told(run_dir)[-3000:], flush=True)
        shutil.rmtree(run_dir, ignore_errors=True)


def outcome(run_dir: Path) -> Outcome:
    """Of a finished run."""
    weights = next((run_dir / "final").glob("*model*.safetensors"))
    return Outcome(rank_runs.losses(run_dir), rank_runs.keys(run_dir), hashlib.sha256(weights.read_bytes()).hexdigest())


def end_after_first_death(ranks: Sequence[Any]) -> float:
    """Wait for a rank to end by the fault, then end the others as a launcher does, at once or when they did not end by
    themselves. Seconds that the others took."""
    while all(process.is_alive() for process in ranks):
        time.sleep(0.02)
    died = time.monotonic()
    while any(process.is_alive() for process in ranks) and time.monotonic() - died < PATIENCE_SECONDS:
        time.sleep(0.02)
    seconds = time.monotonic() - died
    for process in ranks:
        process.kill()
        process.join()
    return seconds
