"""Queue a stage with Slurm: checks the settings first, writes the batch script, shows what it will do, submits.

python scripts/submit.py pretrain --nodes 4 --gpus 8 --partition gpu --time 24:00:00 \
    run.dir=runs/pretrain data=my_mixture run.epochs=1 runtime=zero3
python scripts/submit.py sft --dry-run ...                       # writes and shows the script, queues nothing
python scripts/submit.py sft --sweep optim.learning_rate=1e-5,2e-5 --sweep run.seed=0,1 ...     # an array of four jobs

A job that is preempted, reaches its time limit or loses a node goes on by itself from its last checkpoint (see
scripts/slurm/job.sh). After anything else the same command again goes on.
"""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_audio_train.config.load import CONFIG_DIR, compose
from qwen_audio_train.config.stages import StageConfig
from qwen_audio_train.errors import ConfigError

PROJECT = CONFIG_DIR.parent
STAGES = ("pretrain", "sft", "dpo")
SAVE_MARGIN_SECONDS = 300
"""Between SIGUSR1 and the time limit: two steps and a checkpoint have to fit in."""
REQUEUE_SECONDS = 60
"""Of the margin, for requeueing a job that did not stop in time."""


@dataclass(frozen=True)
class Job:
    """One run of the submission: an element of the array if there is a sweep."""

    overrides: tuple[str, ...]
    config: StageConfig

    @property
    def run_dir(self) -> Path:
        """As the recipe will see it, from the project's folder."""
        return Path(self.config.run.dir)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("overrides", nargs="*", help="settings as the recipe takes them: run.dir=... data.train=...")
    parser.add_argument("--sweep", action="append", default=[], metavar="KEY=A,B,...", help="a job for each value")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=8, help="a node, one process each (default: %(default)s)")
    parser.add_argument("--cpu-processes", type=int, help="no GPUs: this many processes a node on its CPUs")
    parser.add_argument("--cpus-per-process", type=int, default=8, help="cores for a rank and its data workers")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--qos")
    parser.add_argument("--time", default="24:00:00", help="limit of one attempt, as sbatch takes it (%(default)s)")
    parser.add_argument(
        "--save-margin", type=int, default=SAVE_MARGIN_SECONDS, help="seconds before the limit to save (%(default)s)"
    )
    parser.add_argument("--launcher", choices=("srun", "torchrun"), default="srun", help="of the ranks (%(default)s)")
    environment = parser.add_mutually_exclusive_group()
    environment.add_argument("--python", type=Path, help="interpreter of a venv that every node sees (this one)")
    environment.add_argument("--container", help="image to run in; its own python is used")
    parser.add_argument("--container-runtime", choices=("pyxis", "apptainer"), default="pyxis")
    parser.add_argument(
        "--export", action="append", default=[], metavar="NAME=VALUE", help="into the job's environment"
    )
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="more, such as --sbatch=--mem=0"
    )
    parser.add_argument("--max-parallel", type=int, help="jobs of a sweep that run at the same time")
    parser.add_argument("--dry-run", action="store_true", help="write and show the script; queue nothing")
    options = parser.parse_intermixed_args(arguments)
    for name in ("nodes", "gpus", "cpu_processes", "cpus_per_process", "max_parallel", "save_margin"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value}: must be at least 1")
    for pair in options.export:
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", pair):
            parser.error(f"--export {pair}: must be NAME=VALUE")
    return options


def swept(overrides: Sequence[str], sweep: Sequence[str]) -> list[tuple[str, ...]]:
    """Overrides of each job: the product of all swept keys.

    Raises:
        ConfigError: a sweep is not KEY=A,B,...
    """
    choices = []
    for text in sweep:
        key, sign, values = text.partition("=")
        if not (key and sign and values):
            raise ConfigError(f"--sweep {text}: must be KEY=A,B,..., for instance --sweep run.seed=0,1,2")
        choices.append([f"{key}={value}" for value in values.split(",")])
    return [(*overrides, *chosen) for chosen in itertools.product(*choices)]


def checked_jobs(stage: str, overrides: Sequence[str], sweep: Sequence[str], world: int) -> list[Job]:
    """All runs, each with a folder of its own.

    Raises:
        ConfigError: every problem of every run.
    """
    jobs: list[Job] = []
    problems: list[str] = []
    all_overrides = swept(overrides, sweep)
    for chosen in all_overrides:
        mine = [*chosen, *_own_folder(overrides, chosen[len(overrides) :])]
        try:
            config = compose(stage, mine)
        except ConfigError as error:
            problems += [problem for problem in error.problems if problem not in problems]
            continue
        jobs.append(Job(tuple(mine), config))
        bins = config.batching.bins_per_step
        if bins % world:
            problem = (
                f"batching.bins_per_step={bins} cannot be shared by {world} processes (nodes x processes a node): "
                f"choose a multiple of {world}, or another number of processes"
            )
            problems += [problem] if problem not in problems else []
    folders = [job.run_dir for job in jobs]
    if len(set(folders)) < len(folders):
        problems.append("--sweep makes two runs with the same run.dir: sweep different values")
    if problems:
        raise ConfigError(problems)
    return jobs


def _own_folder(overrides: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """run.dir of one run of a sweep, named after its values, below the run.dir that was given."""
    given = [text for text in overrides if text.startswith("run.dir=")]
    if not chosen or not given:
        return []  # without run.dir it is named after all settings anyway
    name = "__".join(re.sub(r"[^\w.+-]", "-", text) for text in chosen)
    return [f"{given[-1].rstrip('/')}/{name}"]


def batch_script(options: argparse.Namespace, jobs: Sequence[Job], folder: Path) -> str:
    """The whole script, for sbatch."""
    processes = options.cpu_processes or options.gpus
    log = "%x-%A_%a.out" if len(jobs) > 1 else "%x-%j.out"
    directives = [
        f"--job-name={options.stage}",
        f"--nodes={options.nodes}",
        f"--ntasks-per-node={processes}",
        *([] if options.cpu_processes else [f"--gpus-per-node={options.gpus}"]),
        f"--cpus-per-task={options.cpus_per_process}",
        *(f"--{name}={getattr(options, name)}" for name in ("partition", "account", "qos") if getattr(options, name)),
        f"--time={options.time}",
        f"--signal=B:USR1@{options.save_margin}",
        "--requeue",
        "--open-mode=append",
        f"--output={folder / log}",
        *options.sbatch,
    ]
    if len(jobs) > 1:
        limit = f"%{options.max_parallel}" if options.max_parallel else ""
        directives.append(f"--array=0-{len(jobs) - 1}{limit}")
    settings = {
        "PROCESSES_PER_NODE": str(processes),
        "LAUNCHER": options.launcher,
        "SAVE_SECONDS": str(max(1, options.save_margin - REQUEUE_SECONDS)),
        "FLIGHT_FOLDER": str(folder),
        "OMP_NUM_THREADS": str(max(1, options.cpus_per_process // 2)),
    }
    if options.container:
        settings |= {
            "PYTHON": "python",
            "CONTAINER": options.container,
            "CONTAINER_RUNTIME": options.container_runtime,
        }
    else:
        settings["PYTHON"] = str((options.python or Path(sys.executable)).absolute())
    settings |= dict(pair.split("=", 1) for pair in options.export)
    lines = ["#!/usr/bin/env bash", "# Written by scripts/submit.py."]
    lines += [f"#SBATCH {directive}" for directive in directives]
    lines += [f"cd {shlex.quote(str(PROJECT))} || exit 2"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    lines += ["source scripts/slurm/job.sh"]
    commands = [f"run_stage {options.stage} {shlex.join(job.overrides)}" for job in jobs]
    if len(commands) == 1:
        lines += commands
    else:
        lines += ['case "$SLURM_ARRAY_TASK_ID" in']
        lines += [f"  {number}) {command} ;;" for number, command in enumerate(commands)]
        lines += ["esac"]
    return "\n".join(lines) + "\n"


def summary(options: argparse.Namespace, jobs: Sequence[Job]) -> str:
    """What will be done, for people."""
    processes = options.cpu_processes or options.gpus
    world = options.nodes * processes
    config = jobs[0].config
    bins = config.batching.bins_per_step
    rows = [
        ("stage", options.stage),
        ("nodes", f"{options.nodes} with {processes} processes each, {world} in all, by {options.launcher}"),
        ("step", f"{bins} bins, {bins // world} a process one after another"),
        ("sharding", config.runtime.deepspeed or "none (every process holds the whole model)"),
        ("time limit", f"{options.time}; saves {options.save_margin} s before, is requeued and goes on"),
        *(("run", str(job.run_dir)) for job in jobs),
    ]
    return "\n".join(f"{name:11} {value}" for name, value in rows)


def submit(script: Path) -> str:
    """Queue it; the job's number.

    Raises:
        ConfigError: sbatch is not there, or refuses.
    """
    try:
        done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise ConfigError("sbatch is not on this machine: submit from a login node, or use --dry-run") from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"sbatch refused {script}: {error.stderr.strip()}") from error
    return str(done.stdout.strip().split(";")[0])


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    world = options.nodes * (options.cpu_processes or options.gpus)
    if Path.cwd().resolve() != PROJECT:
        print(f"Relative paths would mean other files in the job: run this from {PROJECT}", file=sys.stderr)
        return 2
    try:
        jobs = checked_jobs(options.stage, options.overrides, options.sweep, world)
    except ConfigError as error:
        print(f"Nothing is queued. {len(error.problems)} problem(s):\n{error}", file=sys.stderr)
        return 2
    # A sweep's script and logs lie above its runs.
    folder = (jobs[0].run_dir.parent if len(jobs) > 1 else jobs[0].run_dir).absolute() / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "job.sbatch"
    script.write_text(batch_script(options, jobs, folder), encoding="utf-8")
    print(summary(options, jobs))
    print(f"{'script':11} {script}")
    if options.dry_run:
        print(f"\n{script.read_text(encoding='utf-8')}\nNothing is queued (--dry-run).")
        return 0
    try:
        number = submit(script)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{'job':11} {number}; log: {folder}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
