"""The 7B from 8 to 1,024 GPUs on paper, and the real planner at 1,024 ranks: the tables of docs/scaling.md.

python -m benchmarks.scaling_model                 # prints the tables; minutes are spent in planning
python -m benchmarks.scaling_model --write         # puts them into docs/scaling.md, between its marks
python -m benchmarks.scaling_model --gigabytes-between-nodes 12.5      # a slower network

Nothing here was run on more than one GPU. Assumptions are the fields of ``Machine``; each says where it is from.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from benchmarks.data_engine_plan import tokens_of
from benchmarks.synthetic_index import speech_seconds
from qwen_audio_train.config.model import Precision
from qwen_audio_train.model.memory import GIB, RELEASED_7B, MicroBatch, Sharding, memory_use
from qwen_audio_train.plan.budget import Budget
from qwen_audio_train.plan.preview import describe
from qwen_audio_train.plan.sources import Source
from qwen_audio_train.plan.steps import Plan, rank_bins
from qwen_audio_train.samples import Lengths

DOCS = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- scaling:begin -->", "<!-- scaling:end -->"
WORLDS = (8, 16, 64, 256, 1024)
BINS_PER_STEP = 1024
"""The same step on every number of GPUs; each takes its share of bins one after another."""
BIN = MicroBatch(llm_tokens=4096, encoder_frames=12_000, scored_tokens=1229)
TRAINED = RELEASED_7B.encoder_parameters + RELEASED_7B.projector_parameters + RELEASED_7B.llm_parameters
SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Machine:
    """What is assumed of the hardware."""

    gpus_a_node: int = 8
    teraflops: float = 297.0
    """Achieved by a GPU: 157.3 TFLOP of matrix products in 0.530 s (benchmarks/results/true_length-7b-h100.json)."""
    gigabytes_within_node: float = 300.0
    """Achieved a GPU and second over NVLink: two thirds of an H100's 450 GB/s a direction. Assumed."""
    gigabytes_between_nodes: float = 40.0
    """Achieved a GPU and second: 80 % of a 400 Gb/s adapter each. Assumed."""
    hop_microseconds: float = 3.0
    """Latency of each hop of a ring. Assumed; NCCL's newer algorithms grow with the logarithm instead."""
    bucket_elements: float = 5e7
    """Of a collective: configs/deepspeed/."""
    storage_gigabytes: float = 10.0
    """Shared file system, written by all nodes together, a second. Assumed."""
    decoded_samples: float = 467.0
    """FLAC clips of 10 s that one core read and decoded a second, on a small CPU machine."""
    restart_minutes: float = 10.0
    """From a failure to the next step: noticing, requeueing (Slurm waits 2), starting, loading. Assumed."""
    failures_per_gpu_day: float = 466 / (54 * 16_384)
    """Llama 3 405B (arXiv:2407.21783, section 3.3.4): 466 interruptions in 54 days on 16,384 H100."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that a GPU sends in a step, and how many collectives of how many members it takes part in."""

    between_nodes: float
    within_node: float
    collectives: float


def traffic(kind: str, world: int, machine: Machine, bins: int) -> Traffic:
    """Of one step in bf16 (2 bytes a parameter).

    ZeRO-1 reduces gradients once a step and gathers the updated weights; ZeRO-2 reduces behind every bin; ZeRO-3
    gathers weights forward and backward and reduces, in every bin; with hpZ the backward gather stays inside the node.

    Args:
        bins: of one GPU, one after another.
    """
    whole = 2.0 * TRAINED * (world - 1) / world
    within = 2.0 * TRAINED * (machine.gpus_a_node - 1) / machine.gpus_a_node
    far, near = {
        "zero1": (2 * whole, 0.0),
        "zero2": (whole * (bins + 1), 0.0),
        "zero3": (3 * whole * bins, 0.0),
        "zero3_hpz": (2 * whole * bins, within * bins),
    }[kind]
    collectives = far / whole * TRAINED / machine.bucket_elements
    if world <= machine.gpus_a_node:
        return Traffic(0.0, far + near, collectives)
    return Traffic(far, near, collectives)


def bin_flops() -> float:
    """Forward, forward again (checkpointing) and backward of a full bin: 8 operations a weight and token or frame."""
    attention = 4.0 * BIN.llm_tokens * 400 * RELEASED_7B.llm_width * RELEASED_7B.llm_layers
    head = RELEASED_7B.vocab * RELEASED_7B.llm_width
    body = RELEASED_7B.llm_parameters - 2 * head
    llm = 2.0 * body * BIN.llm_tokens + attention
    encoder = 2.0 * RELEASED_7B.encoder_parameters * BIN.encoder_frames
    return 4 * (llm + encoder) + 3 * 2.0 * head * BIN.scored_tokens


def step_seconds(kind: str, world: int, machine: Machine, bins: int, size: int = 1) -> tuple[float, float]:
    """(compute, communication) of a step of so many bins a GPU, each ``size`` times as long as ``BIN``."""
    compute = bins * size * bin_flops() / (machine.teraflops * 1e12)
    sent = traffic(kind, world, machine, bins)
    seconds = sent.between_nodes / (machine.gigabytes_between_nodes * 1e9)
    seconds += sent.within_node / (machine.gigabytes_within_node * 1e9)
    return compute, seconds + sent.collectives * (world - 1) * machine.hop_microseconds * 1e-6


def head(*names: str) -> Iterator[str]:
    """Two lines of Markdown; numbers stand to the right."""
    yield f"| {' | '.join(names)} |"
    yield "|" + "---:|" * len(names)


def step_table(machine: Machine) -> Iterator[str]:
    yield from head(
        "GPUs", "sharding", "GB a GPU, between nodes", "within", "compute s", "communication s", "step s", "efficiency",
        "memory GiB",
    )  # fmt: skip
    for world in WORLDS:
        for kind in ("zero1", "zero2", "zero3", "zero3_hpz"):
            if kind == "zero3_hpz" and world <= machine.gpus_a_node:
                continue
            bins = BINS_PER_STEP // world
            sent = traffic(kind, world, machine, bins)
            compute, communication = step_seconds(kind, world, machine, bins)
            best, worst = max(compute, communication), compute + communication
            yield (
                f"| {world:,} | {kind} | {sent.between_nodes / 1e9:,.0f} | {sent.within_node / 1e9:,.0f} "
                f"| {compute:.2f} | {communication:.2f} | {best:.2f} - {worst:.2f} "
                f"| {compute / worst:.0%} - {compute / best:.0%} | {memory_gib(kind, world, machine):.0f} |"
            )


def length_table(machine: Machine) -> Iterator[str]:
    """Longer bins, one a GPU: more work for the same traffic."""
    yield from head("GPUs", "sharding", "tokens a bin", "tokens a step", "step s", "efficiency", "memory GiB")
    for world in (64, 256, 1024):
        for kind in ("zero2", "zero3", "zero3_hpz"):
            for size in (1, 2, 4):
                compute, communication = step_seconds(kind, world, machine, 1, size)
                best, worst = max(compute, communication), compute + communication
                yield (
                    f"| {world:,} | {kind} | {size * BIN.llm_tokens:,} | {world * size * BIN.llm_tokens / 1e6:.1f} M "
                    f"| {best:.2f} - {worst:.2f} | {compute / worst:.0%} - {compute / best:.0%} "
                    f"| {memory_gib(kind, world, machine, size):.0f} |"
                )


def memory_gib(kind: str, world: int, machine: Machine, size: int = 1) -> float:
    """Of a GPU, by qwen_audio_train/model/memory.py."""
    group = machine.gpus_a_node if kind == "zero3_hpz" else None
    sharding = Sharding(stage=int(kind[4]), world=world, weight_group=group)
    batch = MicroBatch(*(size * count for count in (BIN.llm_tokens, BIN.encoder_frames, BIN.scored_tokens)))
    use = memory_use(
        RELEASED_7B,
        batch,
        trained=TRAINED,
        trains_encoder=True,
        precision=Precision.bfloat16,
        sharding=sharding,
        checkpointing=True,
    )
    return use.total / GIB


def data_table(machine: Machine) -> Iterator[str]:
    """A step's bins over the fastest step there can be (compute alone)."""
    seconds = speech_seconds(100_000)
    tokens, frames = tokens_of(seconds)
    samples = min(BIN.llm_tokens / tokens.mean(), BIN.encoder_frames / frames.mean())
    bytes_a_sample = 17_000 * seconds.mean()
    yield from head("GPUs", "samples a second", "a GPU", "decoding cores a GPU", "read GB a second, all nodes")
    for world in WORLDS:
        rate = samples * BINS_PER_STEP / step_seconds("zero1", world, machine, BINS_PER_STEP // world)[0]
        cores = rate / world / machine.decoded_samples
        yield f"| {world:,} | {rate:,.0f} | {rate / world:.1f} | {cores:.2f} | {rate * bytes_a_sample / 1e9:.3f} |"


def failure_table(machine: Machine) -> Iterator[str]:
    """Checkpoints, failures and goodput. Interval by Young (1974): sqrt(2 x stall x time between failures)."""
    size = 14.0 * TRAINED
    yield from head(
        "GPUs", "checkpoint GB", "GB a rank", "written in s", "hours between failures", "best interval, min", "goodput",
        "at 10 x the failures",
    )  # fmt: skip
    for world in WORLDS:
        stall = size / (machine.storage_gigabytes * 1e9)
        between = SECONDS_A_DAY / (machine.failures_per_gpu_day * world)
        interval = math.sqrt(2 * stall * between)
        yield (
            f"| {world:,} | {size / 1e9:.0f} | {size / world / 1e9:.2f} | {stall:.0f} | {between / 3600:,.0f} "
            f"| {interval / 60:.0f} | {goodput(stall, between, machine):.2%} "
            f"| {goodput(stall, between / 10, machine):.2%} |"
        )


def goodput(stall: float, between: float, machine: Machine) -> float:
    """Share of the time that ends in kept steps: less saves, half an interval lost a failure, and restarts."""
    interval = math.sqrt(2 * stall * between)
    return 1 - stall / interval - (interval / 2 + machine.restart_minutes * 60) / between


def plan_table(num_samples: int) -> Iterator[str]:
    """The real planner at 1,024 ranks: each rank's bins of each step of an epoch are taken, as the ranks take them."""
    tokens, frames = tokens_of(speech_seconds(num_samples))
    source = Source("speech", Lengths(tokens, tokens, frames))
    yield from head(
        "layout", "window, samples", "steps of an epoch", "token budget unused", "plan s a window", "first step s",
        "slowest / mean rank", "waiting", "empty bins", "ranks with equally many bins",
    )  # fmt: skip
    for layout in ("padded", "packed"):
        for window in (32_768, 262_144):
            budget = Budget(BIN.llm_tokens, BIN.encoder_frames, BINS_PER_STEP, window, layout=layout)
            plan = Plan([source], seed=0, budget=budget)
            started = time.perf_counter()
            next(plan.steps_from())
            first = time.perf_counter() - started
            windows = len(plan.windows_of(0))
            plan = Plan([source], seed=0, budget=budget)
            started = time.perf_counter()
            preview = describe(plan, 0)
            each = (time.perf_counter() - started) / windows
            counts = np.zeros(BINS_PER_STEP, np.int64)
            for index in range(preview.steps):
                step = plan.step(index)
                counts += [len(rank_bins(step, rank, BINS_PER_STEP)) for rank in range(BINS_PER_STEP)]
            assert (counts == preview.steps).all()
            yield (
                f"| {layout} | {window:,} | {preview.steps} | {preview.unused_token_share:.0%} "
                f"| {each:.2f} | {first:.2f} | {preview.imbalance:.3f} | "
                f"{preview.waiting_share:.1%} | {preview.empty_bins} | all 1,024 |"
            )


def tables(machine: Machine, num_samples: int) -> str:
    """All of them."""
    parts = [
        ("Communication, memory and time of a step", step_table(machine)),
        ("Longer bins, one a GPU", length_table(machine)),
        ("Data", data_table(machine)),
        ("Checkpoints, failures, goodput", failure_table(machine)),
        (f"The planner at 1,024 ranks, {num_samples:,} samples", plan_table(num_samples)),
    ]
    return "\n\n".join(f"### {title}\n\n" + "\n".join(lines) for title, lines in parts)


def machine_arguments(parser: argparse.ArgumentParser) -> None:
    for field in fields(Machine):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000, help="of the planned set (%(default)s)")
    parser.add_argument("--write", action="store_true", help=f"into {DOCS.name}")
    machine_arguments(parser)
    options = parser.parse_args(arguments)
    machine = replace(Machine(), **{field.name: getattr(options, field.name) for field in fields(Machine)})
    text = tables(machine, options.samples)
    print(text)
    if options.write:
        before, _, rest = DOCS.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        DOCS.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
