"""Training steps here beside those of stock transformers: time, memory, padding, waiting, long rows. Prints ratios.

    python benchmarks/training_speed.py --json FILE                            # scaled down, 2 CPU cores: 10 minutes
    python benchmarks/training_speed.py --size 7b --device cuda --json FILE    # true dimensions, LoRA, one 80 GB GPU
    python benchmarks/training_speed.py --quick                                # shows that it runs, is no measurement

Stock is what one would otherwise run (benchmarks/stock_steps.py); ours is this package's own plan, collator, model and
losses (benchmarks/our_steps.py). Both train one set of weights on the same samples, forward and backward, in turn; the
optimiser costs both the same and is left out, and batches are made before the clock starts. Each side runs as much at
once as it runs fastest. Before anything is timed their losses must agree, and each ratio is predicted by counting
operations (benchmarks/step_costs.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tqdm import tqdm

from benchmarks.both_sides import BothSides
from benchmarks.data_wait import data_wait
from benchmarks.machine import machine
from benchmarks.padding import padding
from benchmarks.random_model import SIZES, Dimensions
from benchmarks.row_scaling import row_scaling
from benchmarks.speech_mixes import MIXES, Sample, mix_samples
from benchmarks.speed_summary import summary, table
from benchmarks.step_ratios import KINDS, AtOnce, Kind, Step, fastest_sizes, require_equal
from qwen_audio_train.training.device_limits import peak_tflops

PACKAGES = ("numpy", "peft", "torch", "transformers", "trl")
GUARD_SEED, CHOICE_SEED, MEMORY_SEED = 1001, 1002, 1003


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    dims: Dimensions
    lora: bool
    mixes: tuple[str, ...]
    repetitions: int
    rows: int
    """Of a step of SFT."""
    pairs: int
    """Of a step of DPO: of two rows each."""
    rows_at_once: tuple[int, ...]
    """Batch sizes that stock is tried with."""
    pairs_at_once: tuple[int, ...]
    tokens_at_once: tuple[int, ...]
    """Bin budgets that ours is tried with."""
    memory_pairs: int
    """In one batch of either side; twice as many rows for SFT."""
    scaling_dims: Dimensions
    scaling_rows: tuple[int, ...]
    scaling_repetitions: int
    wait_tokens: int
    wait_steps: int
    padding_samples: int


CPU = Settings(
    dims=SIZES["cpu"],
    lora=False,
    mixes=tuple(MIXES),
    repetitions=3,
    rows=8,
    pairs=4,
    rows_at_once=(1, 2, 4, 8),
    pairs_at_once=(1, 2, 4),
    tokens_at_once=(512, 1024, 2048),
    memory_pairs=4,
    # Fewer layers: time a token is wanted, and 16,000 tokens of all layers would take 20 GB.
    scaling_dims=replace(SIZES["cpu"], encoder_layers=1, llm_layers=2),
    scaling_rows=(1024, 4096, 16_384),
    scaling_repetitions=2,
    wait_tokens=1024,
    wait_steps=6,
    padding_samples=1000,
)
SETTINGS = {
    "cpu": CPU,
    "7b": Settings(
        dims=SIZES["7b"],
        lora=True,
        mixes=tuple(MIXES),
        repetitions=7,
        rows=32,
        pairs=16,
        rows_at_once=(4, 8, 16, 32),
        pairs_at_once=(2, 4, 8, 16),
        tokens_at_once=(1024, 2048, 4096, 8192),
        memory_pairs=4,
        scaling_dims=replace(SIZES["7b"], encoder_layers=8, llm_layers=8),
        scaling_rows=(1024, 2048, 4096, 8192, 16_384),
        scaling_repetitions=5,
        wait_tokens=4096,
        wait_steps=20,
        padding_samples=1000,
    ),
}


def quick(settings: Settings) -> Settings:
    """The same parts, as small as they can be."""
    tiny = SIZES["small"]
    return replace(
        settings,
        dims=tiny,
        mixes=("3", "5", "10"),
        repetitions=1,
        rows=2,
        pairs=2,
        rows_at_once=(2,),
        pairs_at_once=(1,),
        tokens_at_once=(1024,),
        memory_pairs=1,
        scaling_dims=tiny,
        scaling_rows=(512, 1024),
        scaling_repetitions=1,
        wait_tokens=1024,
        wait_steps=2,
        padding_samples=100,
    )


class Bench:
    """Everything, one part after another."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.parts = 6 + len(KINDS) * (min(3, len(settings.mixes)) + settings.repetitions * len(settings.mixes))

    def run(self) -> dict[str, Any]:
        """The named results, ``predicted`` values, and ``raw``: every repetition behind them."""
        settings, device, dtype = self.settings, self.device, self.dtype
        with tqdm(total=self.parts, unit="part") as self._bar:
            self._at("equality of losses")
            raw: dict[str, Any] = {"loss_differences": self._require_equal()}
            self._at("padding")
            raw["padding"] = padding(settings.padding_samples)
            both = BothSides.build(settings.dims, device, dtype, lora=settings.lora)
            at_once, raw["tried"] = self._choose(both)
            raw["at_once"] = {name: asdict(sizes) for name, sizes in at_once.items()}
            raw["memory"] = self._memory(both)
            raw["steps"] = self._steps(both, at_once)
            del both
            self._at("long rows")
            rows, repetitions = settings.scaling_rows, settings.scaling_repetitions
            raw["row_scaling"] = row_scaling(
                settings.scaling_dims, device, dtype, rows, repetitions, lora=settings.lora
            )
            self._at("waiting for data")
            raw["data_wait"] = data_wait(
                settings.dims,
                device,
                dtype,
                tokens_per_bin=settings.wait_tokens,
                steps=settings.wait_steps,
                lora=settings.lora,
            )
        return {**summary(raw, peak_tflops(device, None)), "raw": raw}

    def _at(self, part: str) -> None:
        self._bar.set_description(part)
        self._bar.update()

    def _samples(self, mix: str, count: int, seed: int) -> list[Sample]:
        dims = self.settings.dims
        return mix_samples(MIXES[mix], count, mel_bins=dims.mel_bins, audio_id=dims.vocab - 1, seed=seed)

    def _require_equal(self) -> dict[str, float]:
        """In fp32, on the scaled model where the one that is measured runs in 16 bits."""
        dims = self.settings.dims if self.dtype == torch.float32 else SIZES["cpu"]
        torch.backends.cudnn.allow_tf32 = False  # convolutions would be rounded, and each side's in its own way
        both = BothSides.build(dims, self.device, torch.float32, lora=False).enlarge_weights()
        samples = mix_samples(MIXES["5"], 4, mel_bins=dims.mel_bins, audio_id=dims.vocab - 1, seed=GUARD_SEED)
        return require_equal(both, samples)

    def _choose(self, both: BothSides) -> tuple[dict[str, AtOnce], dict[str, Any]]:
        """On Common Voice-like clips; what is fastest for DPO is taken for DPO with a frozen encoder too."""
        settings = self.settings
        chosen, tried = {}, {}
        for name, count, stock in (
            ("sft", settings.rows, settings.rows_at_once),
            ("dpo", settings.pairs, settings.pairs_at_once),
        ):
            self._at(f"{name}: batch sizes")
            samples = self._samples("5", count, CHOICE_SEED)
            chosen[name], tried[name] = fastest_sizes(both, KINDS[name], samples, stock, settings.tokens_at_once)
        return {**chosen, "dpo_frozen": chosen["dpo"]}, tried

    def _memory(self, both: BothSides) -> dict[str, Any]:
        """Peaks of a step of one batch, the same samples on both sides."""
        found: dict[str, Any] = {name: {} for name in KINDS}
        for name, kind in KINDS.items():
            for mix in self.settings.mixes[:3]:
                self._at(f"{name}, {mix} s: memory")
                count = self.settings.memory_pairs * (1 if kind.pairs else 2)
                step = Step(both, kind, self._samples(mix, count, MEMORY_SEED), AtOnce(count, 1 << 20))
                predicted = step.predicted_bytes()
                found[name][mix] = {
                    "predicted_bytes": predicted,
                    "peak_bytes": step.peak_bytes(),
                    "weight_bytes": step.weight_bytes(),
                }
        return found

    def _steps(self, both: BothSides, at_once: dict[str, AtOnce]) -> dict[str, Any]:
        """Every repetition has other samples; sides take turns in coming first."""
        found: dict[str, dict[str, list[Any]]] = {name: {mix: [] for mix in self.settings.mixes} for name in KINDS}
        for repetition in range(self.settings.repetitions):
            for mix in self.settings.mixes:
                for name, kind in KINDS.items():
                    self._at(f"{name}, {mix} s")
                    found[name][mix].append(self._step(both, kind, mix, at_once[name], repetition))
        return found

    def _step(self, both: BothSides, kind: Kind, mix: str, sizes: AtOnce, repetition: int) -> dict[str, Any]:
        settings = self.settings
        # Pairs of one repetition are the same with the encoder trained and frozen.
        samples = self._samples(mix, settings.pairs if kind.pairs else settings.rows, repetition)
        step = Step(both, kind, samples, sizes)
        stock, ours = step.flops(settings.dims, lora=settings.lora)
        stock_7b, ours_7b = step.flops(SIZES["7b"], lora=settings.lora)
        seconds = None
        try:
            seconds = step.seconds(stock_first=repetition % 2 == 0)
        except torch.OutOfMemoryError:
            if sizes.stock_samples == 1:
                raise
        if seconds is None:
            # Batch sizes were chosen on one mix; of longer clips only half as many may fit.
            both.zero_grad()
            return self._step(both, kind, mix, replace(sizes, stock_samples=sizes.stock_samples // 2), repetition)
        return {
            "samples": step.num_samples,
            "audio_seconds": step.audio_seconds,
            "stock_samples_at_once": sizes.stock_samples,
            "our_tokens_at_once": sizes.our_tokens,
            "stock_batches": len(step.stock_batches),
            "our_bins": len(step.our_bins),
            "stock_seconds": seconds["stock"],
            "our_seconds": seconds["ours"],
            "stock_flop": stock,
            "our_flop": ours,
            "stock_flop_7b": stock_7b,
            "our_flop_7b": ours_7b,
            "model_flop": step.model_flops(),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results and every repetition there")
    parser.add_argument("--quick", action="store_true", help="a tiny model and one repetition: to see that it runs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=sorted(SETTINGS), default="cpu")
    parser.add_argument("--repetitions", type=int, help="of each timed step (default: 3 on the CPU, 7 of the 7b)")
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: all cores)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads or os.cpu_count() or 1)
    device = torch.device(args.device)
    settings = SETTINGS[args.size]
    settings = quick(settings) if args.quick else settings
    if args.repetitions:
        settings = replace(settings, repetitions=args.repetitions)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    told = {**machine(PACKAGES, gpu=gpu, threads=torch.get_num_threads()), "size": "quick" if args.quick else args.size}
    print(json.dumps(told), flush=True)
    load_before = os.getloadavg()
    result = {**told, **Bench(settings, device).run(), "load_average": [load_before, os.getloadavg()]}
    if args.quick:
        print("A tiny model of other proportions, once: the numbers below mean nothing.")
    print(table(result))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
