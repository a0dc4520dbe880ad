"""Whole recipes on several gloo ranks, forked from a process that has everything imported: a run takes seconds.

What each rank's batches held is written down step by step: ``.keys-RANK.jsonl`` in the run's folder.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = ["tests.rank_runs_preload"]
SETTINGS = [
    "model=tiny",
    "model.precision=float32",
    "model.checkpoint_encoder=false",
    "model.checkpoint_llm=false",
    "batching.llm_tokens_per_bin=96",
    "batching.window_samples=48",
    "tracking=none",
    "tracking.log_every_steps=1",
    "tracking.progress_bar=false",
    "optim.warmup_steps=0",
    "optim.learning_rate=1e-3",
    "optim.weight_decay=10",
    "runtime.device=cpu",
]
"""Weight decay is large, so that parameters that must have none of it would show."""


def start(
    stage: str,
    overrides: Sequence[str],
    *,
    run_dir: Path,
    world: int,
    prepare: Callable[[int], None] | None = None,
) -> list[Any]:
    """Processes of one run, in the order of their ranks. ``prepare(rank)`` is called in each before it begins."""
    # The server leaves out what it cannot import, without a word: it must find this folder wherever we are.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    run_dir.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [f"{stage}.py", f"run.dir={run_dir}", *overrides]
    began = time.time()
    ranks = [
        context.Process(target=_rank, args=(command, run_dir, rank, world, port, began, prepare))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


def finish(ranks: Sequence[Any], seconds: float = 500) -> list[int | None]:
    """Exit codes; None for a rank that had to be killed because it did not end in time."""
    for process in ranks:
        process.join(seconds)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
        process.join()
    return codes


def told(run_dir: Path) -> str:
    """What the ranks said, for assertions."""
    return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(run_dir.glob(".said-*.txt")))


def losses(run_dir: Path) -> dict[int, float]:
    """Step -> loss; of a step that was taken twice, the later."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line["loss"] for line in map(json.loads, lines)}


def keys(run_dir: Path) -> dict[int, list[Any]]:
    """Step -> its bins, as the plan numbers them, whatever the number of ranks was; of a repeated step, the later."""
    steps: dict[int, dict[int, Any]] = {}
    for line in key_lines(run_dir):
        bins = steps.setdefault(line["step"], {})
        if bins and bins.get("start") != line["start"]:
            bins.clear()
        bins["start"] = line["start"]
        for number, samples in enumerate(line["bins"]):
            bins[number * line["world"] + line["rank"]] = samples
    return {step: [bins[number] for number in sorted(k for k in bins if k != "start")] for step, bins in steps.items()}


def key_lines(run_dir: Path) -> list[dict[str, Any]]:
    """All steps that all ranks of all starts began, in the order of the starts."""
    lines = [json.loads(line) for path in run_dir.glob(".keys-*.jsonl") for line in whole_lines(path)]
    return sorted(lines, key=lambda line: line["start"])


def whole_lines(path: Path) -> list[str]:
    """A kill may have cut the last one short."""
    return [line for line in path.read_text().splitlines() if line.endswith("}")]


def _rank(
    command: list[str],
    run_dir: Path,
    rank: int,
    world: int,
    port: int,
    began: float,
    prepare: Callable[[int], None] | None,
) -> None:
    with (run_dir / f".said-{rank}.txt").open("a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.chdir(ROOT)
    os.environ |= {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    _record_keys(run_dir / f".keys-{rank}.jsonl", {"start": began, "world": world, "rank": rank})
    if prepare is not None:
        prepare(rank)
    sys.argv = command
    import_module(f"recipes.{command[0].removesuffix('.py')}").main()


def _record_keys(path: Path, whose: dict[str, Any]) -> None:
    from qwen_audio_train.pipeline.batches import BatchBuilder
    from qwen_audio_train.training.planned import PlannedTraining

    bins: list[Any] = []
    build, get = BatchBuilder.build, PlannedTraining.get_batch_samples

    def building(builder: BatchBuilder, draws: Any) -> Any:
        bins.append([[draw.source, draw.epoch, draw.sample] for draw in draws])
        return build(builder, draws)

    def getting(trainer: Any, *arguments: Any) -> Any:
        bins.clear()
        got = get(trainer, *arguments)
        line = {"step": trainer.state.global_step + 1, "time": time.time(), **whose, "bins": bins}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return got

    BatchBuilder.build = building  # type: ignore[method-assign]
    PlannedTraining.get_batch_samples = getting  # type: ignore[method-assign]
