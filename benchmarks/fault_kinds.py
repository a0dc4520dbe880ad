"""Every kind of fault: do it, then let ``Runs.go_on`` start again and compare."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.fault_cases import EVERY_STEPS, STEPS, Case, Report, Runs, end_after_first_death, outcome
from qwen_audio_train.checkpoint import manifest, publish
from tests import fault_hooks, rank_runs

STOPPED_SECONDS = 3.0
TMPFS_BYTES = 64 << 20
_RANDOM = random.Random(5)


def kill_at_operations(
    runs: Runs, report: Report, case: Case, *, rank: int, every: int = 1, at_most: int | None = None
) -> None:
    """SIGKILL at file operations: all of the last save (which also deletes the first), and every so many of the others.

    ``at_most``: so many of all, evenly.
    """
    names = operations(runs, case, rank)
    last = next(number for number, name in enumerate(names, start=1) if f"step-{STEPS}." in name)
    numbers = [number for number in range(1, len(names) + 1) if number >= last or number % every == 0]
    if at_most is not None:
        numbers = [numbers[len(numbers) * (2 * k + 1) // (2 * at_most)] for k in range(at_most)]
    for number in numbers:
        kill_before(runs, report, case, rank=rank, number=number, names=names)


def kill_before(runs: Runs, report: Report, case: Case, *, rank: int, number: int, names: Sequence[str]) -> None:
    """SIGKILL of one rank before one of its ``operations``, from 1."""
    run_dir = runs.new_folder()
    ranks = runs.start(case, run_dir, fault_hooks.AtOperation(run_dir / "checkpoints", rank, number))
    others = end_after_first_death(ranks)
    runs.go_on(
        f"SIGKILL of rank {rank} before operation {number} of {len(names)}: {names[number - 1]}",
        case,
        run_dir,
        report,
        least_step=_settled(run_dir),
        # A rank that ended by itself had fewer operations: threads do not always flush in the same order.
        was_killed=ranks[rank].exitcode == -signal.SIGKILL,
        others_ended_after_seconds=round(others, 1),
    )


def kill_at_steps(runs: Runs, report: Report, case: Case, *, steps: Iterable[int]) -> None:
    """SIGKILL of the only rank at the beginning of a step."""
    kill_one_rank(runs, report, case, ranks=(0,), steps=steps)


def kill_one_rank(runs: Runs, report: Report, case: Case, *, ranks: Iterable[int], steps: Iterable[int]) -> None:
    """SIGKILL of one rank while a step runs; the others end, or are ended as a launcher does."""
    for rank in ranks:
        for step in steps:
            run_dir = runs.new_folder()
            seconds = _RANDOM.choice((0.0, 0.02, 0.1))
            kill = fault_hooks.AtStep(rank, step, seconds=seconds)
            others = end_after_first_death(runs.start(case, run_dir, kill))
            fault = f"SIGKILL of rank {rank}, {seconds} s from the beginning of step {step}"
            least = _settled(run_dir)
            runs.go_on(fault, case, run_dir, report, least_step=least, others_ended_after_seconds=round(others, 1))


def stopped_rank(runs: Runs, report: Report, case: Case) -> None:
    """SIGSTOP of one rank: for a while, and for good, until somebody ends the run."""
    run_dir = runs.new_folder()
    ranks = runs.start(case, run_dir, fault_hooks.AtStep(1, 4, signal.SIGSTOP))
    _wait_until_stopped(ranks[1].pid)
    time.sleep(STOPPED_SECONDS)
    os.kill(ranks[1].pid, signal.SIGCONT)
    codes = rank_runs.finish(ranks)
    _note_alive(runs, report, case, run_dir, f"SIGSTOP of rank 1 for {STOPPED_SECONDS:.0f} s", codes)

    run_dir = runs.new_folder()
    ranks = runs.start(case, run_dir, fault_hooks.AtStep(1, 4, signal.SIGSTOP))
    _wait_until_stopped(ranks[1].pid)
    time.sleep(STOPPED_SECONDS)
    for process in ranks:
        process.kill()
        process.join()
    runs.go_on("SIGSTOP of rank 1, then all are killed", case, run_dir, report, least_step=_settled(run_dir))


def damaged_files(runs: Runs, report: Report, case: Case, *, at_most: int | None = None) -> None:
    """A bit of one file of the newest checkpoint is flipped: each file of it in turn."""
    newest = EVERY_STEPS * 2
    names = manifest.names_in(publish.checkpoint_folder(runs.unbroken(case)[0] / "checkpoints", newest))
    names = [name for name in [*names, manifest.MANIFEST] if _size(runs, case, newest, name)]
    if at_most is not None:
        names = [names[len(names) * (2 * k + 1) // (2 * at_most)] for k in range(at_most)]
    for name in names:
        run_dir = runs.broken_copy(case, newest)
        # keep_last=2 left no older one in a run of six steps that saves every second: make it again.
        _restore_older(runs, case, run_dir)
        path = publish.checkpoint_folder(run_dir / "checkpoints", newest) / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        found = publish.newest_whole(run_dir / "checkpoints")
        if found is None or found.name != f"checkpoint-{EVERY_STEPS}":
            report.add(
                f"flipped bit in {name}",
                case,
                stood_at=None if found is None else found.name,
                lost_work=0,
                failed=0,
                differences=[f"{found} was taken for whole"],
                recovery_seconds=0.0,
            )
            continue
        runs.go_on(f"flipped bit in {name}", case, run_dir, report, least_step=EVERY_STEPS)


def latest_removed(runs: Runs, report: Report, case: Case) -> None:
    """The pointer is gone."""
    run_dir = runs.broken_copy(case, EVERY_STEPS * 2)
    (run_dir / "checkpoints" / publish.LATEST).unlink()
    runs.go_on("latest removed", case, run_dir, report, least_step=EVERY_STEPS * 2)


def full_disk(runs: Runs, report: Report, case: Case) -> None:
    """No room while a save runs: the run goes on, and one that is killed later has what was published before."""
    run_dir = runs.new_folder()
    checkpoints = run_dir / "checkpoints"
    with _own_disk(checkpoints) as has_disk:
        fault: Any = fault_hooks.NoRoom(0, 4)
        if has_disk:
            fault = fault_hooks.FullDisk(checkpoints, 4, bytes=64 << 10)
        codes = rank_runs.finish(runs.start(case, run_dir, fault))
        what = "disk full (tmpfs) in the save of step 4" if has_disk else "files limited (RLIMIT_FSIZE) in that save"
        _note_alive(runs, report, case, run_dir, what, codes, absent=4)


def read_only_folder(runs: Runs, report: Report, case: Case) -> None:
    """The checkpoints' folder cannot be written while a save runs; then the whole run's when it is started again."""
    if not _can_mount():
        report.add("read-only folder", case, not_tried="this user may not mount")
        return
    run_dir = runs.new_folder()
    (run_dir / "checkpoints").mkdir(parents=True)
    fault = fault_hooks.ReadOnly(run_dir / "checkpoints", 4)
    codes = rank_runs.finish(runs.start(case, run_dir, fault))
    _note_alive(runs, report, case, run_dir, "read-only folder in the save of step 4", codes, absent=4)

    run_dir = runs.broken_copy(case, EVERY_STEPS * 2)
    told = sorted(run_dir.glob(".said-*"))
    with tempfile.TemporaryDirectory() as folder:
        for path in told:  # what the ranks say must go somewhere
            shutil.move(path, Path(folder) / path.name)
            path.symlink_to(Path(folder) / path.name)
        for path in run_dir.glob(".keys-*"):
            shutil.copy(path, Path(folder) / path.name)
        with fault_hooks.read_only(run_dir):
            codes = rank_runs.finish(runs.start(case, run_dir))
        for path in told:
            path.unlink()
    fault_name = f"started in a read-only folder (exit codes {codes}), then in a writable one"
    runs.go_on(fault_name, case, run_dir, report, least_step=EVERY_STEPS * 2)


def world_changes(runs: Runs, report: Report, cases: Sequence[Case]) -> None:
    """Killed on four ranks, gone on with two."""
    for case in cases:
        still = replace(case, has_dropout=False)
        run_dir = runs.new_folder()
        end_after_first_death(runs.start(still, run_dir, fault_hooks.AtStep(1, 4)))
        fault, fewer = f"SIGKILL of rank 1 in step 4 of {case.world} ranks, gone on with 2", replace(still, world=2)
        least = _settled(run_dir)
        runs.go_on(fault, fewer, run_dir, report, least_step=least, is_exact=False, compared_with=still)


def one_step_off(runs: Runs, report: Report, case: Case) -> None:
    """The test of the test: a run that goes on one step off must be seen by the comparison."""
    run_dir = runs.broken_copy(case, EVERY_STEPS * 2)
    codes = rank_runs.finish(runs.start(case, run_dir, fault_hooks.OneStepOff()))
    found = ["it ended with an error"]
    if codes == [0] * case.world:
        found = runs.unbroken(case)[1].differences(outcome(run_dir), is_exact=True)
    report.add("test of the test: resumed one step off", case, caught=bool(found), differences=found, codes=codes)


def operations(runs: Runs, case: Case, rank: int) -> list[str]:
    """File operations of a rank in all saves of an unbroken run, in words."""
    run_dir = runs.new_folder()
    log = runs.folder / f"{run_dir.name}-operations.txt"
    fault = fault_hooks.AtOperation(run_dir / "checkpoints", rank, 0, log)
    codes = rank_runs.finish(runs.start(case, run_dir, fault))
    if codes != [0] * case.world:
        raise RuntimeError(f"counting operations of {case} ended with {codes}\n{rank_runs.told(run_dir)}")
    shutil.rmtree(run_dir)
    said = log.read_text().replace(f"{run_dir / 'checkpoints'}/", "").replace(f"{run_dir}/", "")
    return [line.partition(" ")[2] for line in said.splitlines()]


def _settled(run_dir: Path) -> int:
    """Step of the checkpoint that must be there: a save begins with the one before being published."""
    taken = max((line["step"] for line in rank_runs.key_lines(run_dir)), default=1) - 1
    return max(0, taken // EVERY_STEPS * EVERY_STEPS - EVERY_STEPS)


def _note_alive(
    runs: Runs, report: Report, case: Case, run_dir: Path, fault: str, codes: Sequence[int | None], absent: int = 0
) -> None:
    """A run that went through a fault without ending."""
    failed = list(codes) != [0] * case.world
    found = [] if failed else runs.unbroken(case)[1].differences(outcome(run_dir), is_exact=True)
    steps = {step for step in range(EVERY_STEPS, STEPS + 1, EVERY_STEPS) if _is_whole(run_dir, step)}
    expected = {STEPS, STEPS - EVERY_STEPS}
    if absent:
        expected = {EVERY_STEPS, STEPS}
    report.add(
        fault,
        case,
        stood_at=max(steps, default=0),
        lost_work=int(not steps >= expected or absent in steps),
        failed=int(failed),
        differences=found,
        recovery_seconds=0.0,
    )
    if failed:
        print(rank_runs.told(run_dir)[-3000:], flush=True)
    shutil.rmtree(run_dir, ignore_errors=True)


def _is_whole(run_dir: Path, step: int) -> bool:
    path = publish.checkpoint_folder(run_dir / "checkpoints", step)
    if not path.exists():
        return False
    manifest.verify(path)
    return True


def _restore_older(runs: Runs, case: Case, run_dir: Path) -> None:
    older = publish.checkpoint_folder(run_dir / "checkpoints", EVERY_STEPS)
    if older.exists():
        return
    kept = runs.folder / f"older-{str(case).replace(' ', '').replace(',', '-')}"
    if not kept.exists():
        killed = runs.new_folder()
        end_after_first_death(runs.start(case, killed, fault_hooks.AtStep(0, 4)))
        shutil.copytree(publish.checkpoint_folder(killed / "checkpoints", EVERY_STEPS), kept)
        shutil.rmtree(killed)
    shutil.copytree(kept, older)


def _size(runs: Runs, case: Case, step: int, name: str) -> int:
    return (publish.checkpoint_folder(runs.unbroken(case)[0] / "checkpoints", step) / name).stat().st_size


def _wait_until_stopped(pid: int) -> None:
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.05)


def _can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


@contextmanager
def _own_disk(folder: Path) -> Iterator[bool]:
    """A small file system of its own for a folder; False where this user may not mount."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(folder)]
    is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
