"""How long training stands still for a save, and how long a resume takes, beside DeepSpeed's own save and load.

python benchmarks/save_stall.py --json FILE                 # 100 M parameters, two ranks, ZeRO-2 and 3
python benchmarks/save_stall.py --width 64 --layers 2       # shows that it runs

A run of 6 steps saves every second one. After each of our saves was published, DeepSpeed saves the same engine into
another folder (no manifest, no flush to the disk, no weights in the released layout). Then the same command goes on:
our time is that to find and verify the newest checkpoint, and to load it; DeepSpeed's is its load alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch.distributed as dist
import transformers.trainer

from benchmarks.machine import machine
from qwen_audio_train.model.build import build_from_parts, save_built
from qwen_audio_train.model.sizes import DEFAULT_LANGUAGES, NewLanguageModel, tiny_whisper
from qwen_audio_train.training import run
from qwen_audio_train.training.saving import Saver
from tests import rank_runs, sets

PACKAGES = ("torch", "deepspeed", "transformers")
STEPS = 6
EVERY_STEPS = 2
WORLD = 2


@dataclass(frozen=True)
class Watch:
    """Times what a run does with its checkpoints; the first rank writes it down."""

    run_dir: Path

    def __call__(self, rank: int) -> None:
        """Install."""
        log = self.run_dir / f"times-{rank}.jsonl"
        save, find, load = Saver.save, run.newest_checkpoint, transformers.trainer.deepspeed_load_checkpoint

        def note(**seconds: float) -> None:
            with log.open("a") as file:
                file.write(json.dumps(seconds) + "\n")

        def timed(function: Any, *arguments: Any, **named: Any) -> tuple[Any, float]:
            dist.barrier()
            started = time.perf_counter()
            result = function(*arguments, **named)
            dist.barrier()
            return result, time.perf_counter() - started

        def saving(saver: Any) -> None:
            saver.settle()
            _, stall = timed(save, saver)
            _, rest = timed(saver.settle)
            note(stall_seconds=stall, published_after_seconds=stall + rest)
            engine = saver._trainer.model_wrapped
            theirs = self.run_dir / "deepspeed"
            _, seconds = timed(engine.save_checkpoint, str(theirs), tag="save")
            note(deepspeed_save_seconds=seconds)
            if rank == 0:
                shutil.rmtree(theirs)
            dist.barrier()

        def finding(*arguments: Any) -> Any:
            found, seconds = timed(find, *arguments)
            if found is not None:
                note(find_and_verify_seconds=seconds)
            return found

        def loading(*arguments: Any, **named: Any) -> None:
            _, seconds = timed(load, *arguments, **named)
            note(deepspeed_load_seconds=seconds)

        Saver.save = saving  # type: ignore[method-assign]
        run.newest_checkpoint = finding
        transformers.trainer.deepspeed_load_checkpoint = loading


def build(folder: Path, width: int, layers: int) -> int:
    """A random model; its number of parameters."""
    language_model = NewLanguageModel(
        hidden_size=width,
        num_layers=layers,
        num_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 64),
        intermediate_size=3 * width,
        vocab_size=400,
    )
    texts = [f"please press {number} now again" for number in range(50)]
    built = build_from_parts(
        whisper=tiny_whisper(), language_model=language_model.build(texts, 1), languages=DEFAULT_LANGUAGES, seed=1
    )
    save_built(*built, folder)
    return sum(parameter.numel() for parameter in built[0].parameters())


def measure(folder: Path, sharding: str) -> dict[str, Any]:
    """One sharding: medians over the saves."""
    run_dir = folder / sharding
    for steps in (STEPS, STEPS + 1):
        shutil.rmtree(run_dir / "final", ignore_errors=True)
        settings = [*rank_runs.SETTINGS, f"model.start_from={folder / 'model'}", f"data.train={folder / 'set'}"]
        settings += [f"data.cache_dir={folder / 'cache'}", "batching.bins_per_step=2", "batching.window_samples=16"]
        settings += ["trainable=all", f"checkpoint.every_steps={EVERY_STEPS}", f"run.max_steps={steps}"]
        settings += [f"runtime={sharding}", "runtime.device=cpu", "batching.llm_tokens_per_bin=256"]
        ranks = rank_runs.start("pretrain", settings, run_dir=run_dir, world=WORLD, prepare=Watch(run_dir))
        codes = rank_runs.finish(ranks, 1800)
        if codes != [0] * WORLD:
            raise RuntimeError(f"{sharding} ended with {codes}\n{rank_runs.told(run_dir)}")
    times: dict[str, list[float]] = {}
    for line in (run_dir / "times-0.jsonl").read_text().splitlines():
        for name, seconds in json.loads(line).items():
            times.setdefault(name, []).append(seconds)
    newest = run_dir / "checkpoints" / f"checkpoint-{STEPS}"
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    medians = {name: round(statistics.median(values), 3) for name, values in times.items()}
    resume = medians["find_and_verify_seconds"] + medians["deepspeed_load_seconds"]
    return {"sharding": sharding, "checkpoint_bytes": size, **medians, "verified_resume_seconds": round(resume, 3)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the table goes")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        num_parameters = build(folder / "model", arguments.width, arguments.layers)
        sets.pretrain_set(folder / "set")
        rows = [measure(folder, sharding) for sharding in ("zero2", "zero3")]
    table = {**machine(PACKAGES), "parameters": num_parameters, "ranks": WORLD, "rows": rows}
    print(json.dumps(table, indent=1))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
