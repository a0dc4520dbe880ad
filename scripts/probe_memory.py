"""The largest batching.llm_tokens_per_bin that fits the device, and how much memory each part of training takes.

Takes the same settings as the recipe. Each trial takes real optimiser steps of the stage in a fresh process, on
synthetic bins of the costliest kind (30 s clips, all text supervised, both budgets full); budgets are doubled until one
does not fit, then bisected. encoder_frames_per_bin stays in the settings' proportion.

python scripts/probe_memory.py sft --random-weights model.start_from=Qwen/Qwen2-Audio-7B data.train=data/set ...
python scripts/probe_memory.py pretrain model=tiny data.train=data/set runtime=cpu --limit-gb 4
python scripts/probe_memory.py sft ... runtime=zero3 --processes 8
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm.auto import tqdm

from qwen_audio_train.config.load import compose
from qwen_audio_train.config.model import Quantization
from qwen_audio_train.config.runtime import Device
from qwen_audio_train.config.stages import StageConfig
from qwen_audio_train.errors import ConfigError, QwenAudioTrainError
from qwen_audio_train.training.dry_run import STAGES
from qwen_audio_train.training.memory_trial import LONGEST_CLIP_FRAMES, LONGEST_CLIP_TOKENS, Request, Result

GRAIN_TOKENS = 64
LEAST_TOKENS = LONGEST_CLIP_TOKENS + GRAIN_TOKENS
BYTES_PER_GB = 10**9
STDERR_LINES = 15
KILLED = (-9, 137)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("overrides", nargs="*", help="settings as the recipe takes them")
    parser.add_argument("--limit-gb", type=float, help="memory of a rank, in 10^9 bytes (CPU: needed)")
    parser.add_argument("--processes", type=int, default=1, help="ranks on this machine (default: %(default)s)")
    parser.add_argument("--random-weights", action="store_true", help="read the model's config, not its weights")
    parser.add_argument("--most-tokens", type=int, default=131_072, help="never try more (default: %(default)s)")
    parser.add_argument("--within", type=float, default=0.05, help="stop at this share of the answer (default: 5 %%)")
    options = parser.parse_intermixed_args(arguments)
    if options.most_tokens < LEAST_TOKENS:
        parser.error(f"--most-tokens {options.most_tokens}: a 30 s clip takes {LEAST_TOKENS}")
    if options.processes < 1 or options.within <= 0:
        parser.error("--processes and --within must be above 0")
    return options


def largest_that_fits(fits: Callable[[int], bool], lowest: int, highest: int, within: float) -> int | None:
    """Largest tried budget that fits, or None: doubling from ``lowest``, then bisection down to ``within`` of it."""
    if not fits(lowest):
        return None
    good, bad = lowest, highest + 1
    while good < highest and bad > highest:
        tried = min(2 * good, highest)
        good, bad = (tried, bad) if fits(tried) else (good, tried)
    while bad <= highest and bad - good > max(GRAIN_TOKENS, within * good):
        tried = (good + bad) // 2 // GRAIN_TOKENS * GRAIN_TOKENS
        if tried <= good:
            break
        good, bad = (tried, bad) if fits(tried) else (good, tried)
    return good


def frames_for(config: StageConfig, llm_tokens: int) -> int:
    """Encoder frames in the settings' proportion, at least one 30 s clip's."""
    batching = config.batching
    return max(LONGEST_CLIP_FRAMES, llm_tokens * batching.encoder_frames_per_bin // batching.llm_tokens_per_bin)


def attempt(request: Request, num_processes: int) -> Result:
    """One trial in fresh processes; the fullest rank.

    Raises:
        QwenAudioTrainError: it failed for another reason than memory.
    """
    module = ["-m", "qwen_audio_train.training.memory_trial"]
    with tempfile.TemporaryDirectory(prefix="probe-memory-") as name:
        file = Path(name) / "request.json"
        file.write_text(json.dumps(asdict(request)), encoding="utf-8")
        command = [sys.executable, *module, str(file)]
        if num_processes > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
            command = [sys.executable, *launcher, *module, str(file)]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        found = [Result(**json.loads(path.read_text(encoding="utf-8"))) for path in Path(name).glob("result-*.json")]
    if any(not result.fits for result in found) or child.returncode in KILLED:
        return Result(fits=False, peak=max((result.peak for result in found), default=0))
    if child.returncode != 0 or len(found) < num_processes:
        tail = "\n".join(child.stderr.strip().splitlines()[-STDERR_LINES:])
        raise QwenAudioTrainError(
            f"a trial of {request.llm_tokens} tokens failed (exit code {child.returncode}), not for memory:\n{tail}"
        )
    return max(found, key=lambda result: result.peak)


def report(config: StageConfig, llm_tokens: int, result: Result, num_processes: int) -> str:
    """The table and the settings to paste."""
    rows = [
        ("process and libraries", result.process),
        ("parameters", result.parameters),
        ("gradients", result.gradients),
        ("optimiser states", result.optimiser),
        ("activations and buffers", result.activations),
        ("peak", result.peak),
    ]
    is_sharded = config.runtime.deepspeed is not None
    title = f"memory of a rank (the fullest of {num_processes})" if num_processes > 1 or is_sharded else "memory"
    note = ["gradients under ZeRO are in the last part: it keeps them in buffers of its own"] if is_sharded else []
    lines = [f"{title:<34} {'GB':>9}"]
    lines += [f"{name:<34} {num_bytes / BYTES_PER_GB:>9.3f}" for name, num_bytes in rows]
    settings = (
        f"batching.llm_tokens_per_bin={llm_tokens} batching.encoder_frames_per_bin={frames_for(config, llm_tokens)}"
    )
    return "\n".join([*lines, *note, "", settings])


def probe(options: argparse.Namespace) -> str:
    """Search, and say what was found.

    Raises:
        ConfigError: the settings cannot run, or nothing fits.
    """
    given = [*options.overrides]
    if not any(text.startswith("run.dir=") for text in given):
        given.append("run.dir=runs/probe")  # never written
    if not any(text.startswith(("run.max_steps=", "run.epochs=", "experiment=")) for text in given):
        given.append("run.max_steps=1")
    config: StageConfig = compose(options.stage, given)
    if options.random_weights and config.model.quantization is not Quantization.none:
        raise ConfigError(
            "--random-weights with model.quantization: weights are quantised while they are read; drop one"
        )
    uses_cpu = config.runtime.device is Device.cpu or not torch.cuda.is_available()
    if uses_cpu and options.limit_gb is None:
        raise ConfigError("on a CPU nothing says how much a run may take: give --limit-gb")
    limit = None if options.limit_gb is None else int(options.limit_gb * BYTES_PER_GB)
    fitting: dict[int, Result] = {}

    with tqdm(desc="Probing", unit="trial") as bar:

        def fits(llm_tokens: int) -> bool:
            bar.set_postfix_str(f"{llm_tokens} tokens")
            frames = frames_for(config, llm_tokens)
            request = Request(options.stage, given, llm_tokens, frames, limit, options.random_weights)
            result = attempt(request, options.processes)
            bar.update()
            if result.fits:
                fitting[llm_tokens] = result
            return result.fits

        largest = largest_that_fits(fits, LEAST_TOKENS, options.most_tokens, options.within)
    if largest is None:
        raise ConfigError(
            f"not even one 30 s clip ({LEAST_TOKENS} tokens) fits: choose adapter=lora, model.checkpoint_llm=true, "
            "model.quantization=nf4, runtime=zero3 over more ranks, or a smaller model (docs/knobs.md)"
        )
    return report(config, largest, fitting[largest], options.processes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 found, 1 a trial failed, 2 a mistake in the settings, or nothing fits."""
    options = parse_arguments(arguments)
    try:
        print(probe(options))
    except ConfigError as error:
        sys.stderr.write(f"The configuration has {len(error.problems)} problem(s):\n{error}\n")
        return 2
    except QwenAudioTrainError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
