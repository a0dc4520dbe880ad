"""Loss curves of runs that change their number of ranks, over the unbroken one's: a table and a picture.

python benchmarks/world_size_curves.py --picture docs/world_size_changes.png --json FILE
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib.pyplot as plt

from qwen_audio_train.model.build import save_built
from qwen_audio_train.model.sizes import build_tiny
from tests import rank_runs, sets

SHARDINGS = {"auto": "plain DDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}
STEPS = 24
_LEAST = 1e-8
CHANGES = {4: 8, 2: 16, 3: STEPS}
"""Ranks -> step at which they stop."""


def run(folder: Path, run_dir: Path, sharding: str, plan: dict[int, int]) -> dict[int, float]:
    """Losses of a run whose ranks change as the plan says."""
    for world, steps in plan.items():
        shutil.rmtree(run_dir / "final", ignore_errors=True)
        settings = [*rank_runs.SETTINGS, f"model.start_from={folder / 'model'}", f"data.train={folder / 'set'}"]
        settings += [f"data.cache_dir={folder / 'cache'}", "batching.bins_per_step=12", "checkpoint.every_steps=8"]
        settings += ["trainable=all", "optim.final_learning_rate_ratio=1", f"run.max_steps={steps}"]
        settings += ["optim.learning_rate=3e-3", f"runtime={sharding}", "runtime.device=cpu"]
        ranks = rank_runs.start("pretrain", settings, run_dir=run_dir, world=world)
        codes = rank_runs.finish(ranks, 600)
        if codes != [0] * world:
            raise RuntimeError(f"{run_dir.name} on {world} ranks ended with {codes}\n{rank_runs.told(run_dir)}")
    return rank_runs.losses(run_dir)


def draw(path: Path, unbroken: dict[int, float], curves: dict[str, dict[int, float]]) -> None:
    """Losses above, differences below."""
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7, 5), height_ratios=(2, 1), layout="constrained")
    above.plot(list(unbroken), list(unbroken.values()), color="black", linewidth=4, alpha=0.25, label="one process")
    for name, losses in curves.items():
        above.plot(list(losses), list(losses.values()), linewidth=1, label=f"{name}, 4 then 2 then 3 ranks")
        apart = [max(_LEAST, abs(losses[step] / unbroken[step] - 1)) for step in losses]
        below.plot(list(losses), apart, marker=".", linewidth=0.5, label=name)
    for axes in (above, below):
        for step in list(CHANGES.values())[:-1]:
            axes.axvline(step + 0.5, color="grey", linestyle=":", linewidth=1)
    above.set_ylabel("loss per token (nats)")
    above.legend(fontsize=8)
    below.set_yscale("log")
    below.set_ylim(_LEAST / 2, 1e-3)
    below.axhline(1e-4, color="red", linewidth=0.8)
    below.set_ylabel("relative difference")
    below.set_xlabel("step (dotted: other ranks; red: limit of the tests; equal is drawn at 1e-8)")
    figure.savefig(path, dpi=80, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="worlds-") as name:
        folder = Path(name)
        save_built(*build_tiny(seed=1), folder / "model")
        sets.pretrain_set(folder / "set", num_samples=48)
        unbroken = run(folder, folder / "unbroken", "auto", {1: STEPS})
        curves = {title: run(folder, folder / key, key, CHANGES) for key, title in SHARDINGS.items()}
    worst = {name: max(abs(losses[step] / unbroken[step] - 1) for step in unbroken) for name, losses in curves.items()}
    print(json.dumps(worst, indent=1))
    if arguments.json is not None:
        table = {"unbroken": unbroken, "changed": curves, "largest_relative_difference": worst}
        arguments.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    if arguments.picture is not None:
        draw(arguments.picture, unbroken, curves)
    return 0 if max(worst.values()) < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
