"""What a training step costs here and in stock transformers: time and peak memory, same weights, same rows.

    python benchmarks/true_length.py                                # true Qwen2-Audio-7B dimensions, one 80 GB GPU
    python benchmarks/true_length.py --size small --device cpu      # scaled down, a minute or so on an idle CPU

Stock is what one would otherwise run: every clip padded to 30 s, a copy of it for every row, logits at every position,
and transformers' own loss (DPO: trl's ``selective_log_softmax``). Ours is what the recipes run: true-length clips, a
preference pair's clip encoded once a pass, logits where a label is. Both are called on *one* model with random weights:
called the stock way, ours is the stock class. A LoRA trains in the language model, and in one case the encoder too.
The learning rate is zero, so that all repetitions do the same work. Mels are computed before the clock starts.

The sides take turns, and so does the side that comes first. Beside the measured ratio stands the one predicted from
floating-point operations (benchmarks/step_flops.py).
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import logging
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.nn.functional import logsigmoid
from trl.trainer.utils import selective_log_softmax

from benchmarks.random_model import SIZES, Dimensions, build
from benchmarks.step_flops import StepShape, step_flops
from benchmarks.step_rows import RowMaker
from qwen_audio_train.losses.reduction import token_mean_share

logger = logging.getLogger(__name__)

CASES = {
    "sft, encoder frozen": {"trains_encoder": False, "pairs": False},
    "sft, encoder trains": {"trains_encoder": True, "pairs": False},
    "dpo, encoder frozen": {"trains_encoder": False, "pairs": True},
}
BATCHES = 2
"""Different ones that repetitions go through."""
BETA = 0.1
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Side:
    """What one side's steps took."""

    seconds: list[float]
    peak_gib: float | None
    loss: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    case: str
    clip_seconds: float
    rows: int
    stock: Side
    ours: Side
    predicted: float
    """Stock's floating-point operations over ours."""
    stock_tflop: float
    ours_tflop: float


def ours_loss(model: Any, batch: Batch) -> torch.Tensor:
    count = int((batch["labels"][:, 1:] != -100).sum())
    return token_mean_share(model(**batch).log_probs, num_tokens_in_step=count, num_ranks=1)


def stock_loss(model: Any, batch: Batch) -> torch.Tensor:
    return model(**batch, use_cache=False).loss


def ours_pair_loss(model: Any, batch: Batch) -> torch.Tensor:
    return _preference(model, lambda: model(**batch).log_probs.sum(1))


def stock_pair_loss(model: Any, batch: Batch) -> torch.Tensor:
    labels = batch["labels"][:, 1:]
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}

    def scores() -> torch.Tensor:
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        return (selective_log_softmax(logits, labels.clamp(min=0)) * (labels != -100)).float().sum(1)

    return _preference(model, scores)


def _preference(model: Any, scores: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Sigmoid DPO loss over [chosen; rejected] rows; the reference is the model with its adapter off."""
    with torch.no_grad(), model.disable_adapter():
        reference = scores()
    chosen, rejected = (scores() - reference).chunk(2)
    return -logsigmoid(BETA * (chosen - rejected)).mean()


class Bench:
    """Alternating steps of both sides on one model."""

    def __init__(self, model: Any, device: torch.device, repetitions: int) -> None:
        self.model, self.device, self.repetitions = model, device, repetitions
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=0.0, fused=device.type == "cuda")

    def step(self, loss_of: Callable[[Any, Batch], torch.Tensor], batch: Batch) -> tuple[float, float, float]:
        """(seconds, peak GiB, loss) of one training step."""
        self._wait()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        loss = loss_of(self.model, batch)
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self._wait()
        seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0
        return seconds, peak, float(loss.detach())

    def alternate(self, sides: dict[str, tuple[Callable, list[Batch]]]) -> dict[str, Side]:
        """One step for each batch to warm up, then the repetitions, the order turning round each time."""
        taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
        for repetition in range(-BATCHES, self.repetitions):
            for name in sorted(sides, reverse=repetition % 2 == 0):
                loss_of, batches = sides[name]
                result = self.step(loss_of, batches[repetition % len(batches)])
                if repetition >= 0:
                    taken[name].append(result)
        on_gpu = self.device.type == "cuda"
        return {
            name: Side([t[0] for t in steps], max(t[1] for t in steps) if on_gpu else None, steps[0][2])
            for name, steps in taken.items()
        }

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(bench: Bench, dims: Dimensions, case: str, clip_seconds: float, rows: int, *, more_than: int) -> Row | None:
    """One line of the table; halves the rows of both sides as long as one of them runs out of memory.

    None when that leads down to ``more_than`` rows, which were measured before.
    """
    pairs = CASES[case]["pairs"]
    maker = RowMaker(dims, bench.device, bench.model.dtype)
    while rows > more_than:
        batches = [maker.make(clip_seconds, rows, pairs=pairs, seed=seed) for seed in range(BATCHES)]
        losses = (stock_pair_loss, ours_pair_loss) if pairs else (stock_loss, ours_loss)
        try:
            sides = bench.alternate(
                {"stock": (losses[0], [b.stock for b in batches]), "ours": (losses[1], [b.ours for b in batches])}
            )
            break
        except torch.cuda.OutOfMemoryError:
            logger.warning("%s, %g s: out of memory with %d rows", case, clip_seconds, rows)
            rows //= 2
        bench.optimiser.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()
    else:
        return None
    shape = StepShape.of(batches[0].ours, rows=rows, pairs=pairs, trains_encoder=CASES[case]["trains_encoder"])
    stock, ours = step_flops(dims, shape, stock=True), step_flops(dims, shape, stock=False)
    return Row(case, clip_seconds, rows, sides["stock"], sides["ours"], stock / ours, stock / 1e12, ours / 1e12)


def environment(device: torch.device) -> dict[str, str]:
    """Machine, versions and date."""
    packages = ("torch", "transformers", "peft", "trl")
    return {
        "date": datetime.date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


HEADER = """\
| step | clip s | rows | stock ms (min-max) | ours ms (min-max) | times faster | predicted | stock GiB | ours GiB |
|---|---:|---:|---:|---:|---:|---:|---:|---:|"""


def line(row: Row) -> str:
    """The row in Markdown."""

    def timing(side: Side) -> str:
        return f"{1e3 * side.median:.0f} ({1e3 * min(side.seconds):.0f}-{1e3 * max(side.seconds):.0f})"

    def memory(side: Side) -> str:
        return "-" if side.peak_gib is None else f"{side.peak_gib:.1f}"

    cells = [row.case, f"{row.clip_seconds:g}", str(row.rows), timing(row.stock), timing(row.ours)]
    cells += [f"{row.stock.median / row.ours.median:.2f}", f"{row.predicted:.2f}", memory(row.stock), memory(row.ours)]
    return "| " + " | ".join(cells) + " |"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="7b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", nargs="+", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--clip-seconds", nargs="+", type=float, default=[3.0, 5.0, 10.0, 30.0])
    parser.add_argument("--rows", nargs="+", type=int, help="rows a batch (default 8 and 32, small 2); a pair is two")
    parser.add_argument("--repetitions", type=int, help="default 10, small 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    return parser.parse_args()


def main() -> None:
    options = parse()
    is_small = options.size == "small"
    device, dims = torch.device(options.device), SIZES[options.size]
    told = {"size": options.size, **environment(device)}
    print(", ".join(f"{name} {value}" for name, value in told.items()), HEADER, sep="\n\n", flush=True)
    rows: list[Row] = []
    for trains_encoder in (False, True):
        cases = [case for case in options.cases if CASES[case]["trains_encoder"] == trains_encoder]
        if not cases:
            continue
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = build(dims, device, dtype, trains_encoder=trains_encoder)
        bench = Bench(model, device, options.repetitions or (2 if is_small else 10))
        for case in cases:
            for clip_seconds in options.clip_seconds:
                measured = 1
                for num_rows in sorted(options.rows or ([2] if is_small else [8, 32])):
                    row = measure(bench, dims, case, clip_seconds, num_rows, more_than=measured)
                    if row is not None:
                        measured = row.rows
                        rows.append(row)
                        print(line(row), flush=True)
            if options.json:
                everything = {**told, "rows": [asdict(row) for row in rows]}
                options.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
        del bench, model
        gc.collect()
        torch.cuda.empty_cache()
    worst = max(abs(row.stock.loss - row.ours.loss) for row in rows)
    print(f"\nLargest difference between the two sides' losses: {worst:.1e}")


if __name__ == "__main__":
    main()
