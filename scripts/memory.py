"""Bytes a GPU of weights, gradients, optimiser and activations, before a GPU is rented: which ZeRO stage fits?

python scripts/memory.py                                         # Qwen2-Audio-7B, everything trains, 8 to 1,024 GPUs
python scripts/memory.py --trains projector llm --lora 8 --world 1 8
python scripts/memory.py --model runs/pretrain/final --precision float32 --tokens 8192 --frames 24000

How the numbers come about: qwen_audio_train/model/memory.py. They lack the CUDA context, NCCL's buffers and
fragmentation: leave 10 % of the GPU free.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from qwen_audio_train.config.adapter import AdapterConfig, AdapterKind
from qwen_audio_train.config.batching import BatchingConfig
from qwen_audio_train.config.model import Precision
from qwen_audio_train.config.trainable import TrainableConfig
from qwen_audio_train.model.memory import (
    FROM_PARTS_7B,
    GIB,
    RELEASED_7B,
    MemoryUse,
    MicroBatch,
    ModelShape,
    Sharding,
    memory_use,
)

KNOWN = {"qwen2_audio_7b": RELEASED_7B, "qwen2_audio_7b_from_parts": FROM_PARTS_7B}
TOWERS = ("encoder", "projector", "llm")
GPUS_A_NODE = 8
USABLE_SHARE = 0.9


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    budget = BatchingConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2_audio_7b", help=f"{', '.join(KNOWN)}, or a model's folder")
    parser.add_argument("--trains", nargs="+", choices=TOWERS, default=list(TOWERS), help="towers (default: all)")
    parser.add_argument("--lora", type=int, metavar="RANK", help="adapters in place of the towers' own weights")
    parser.add_argument("--precision", choices=[p.value for p in Precision], default=Precision.bfloat16.value)
    parser.add_argument(
        "--no-checkpointing", action="store_true", help="model.checkpoint_encoder=false model.checkpoint_llm=false"
    )
    parser.add_argument(
        "--tokens", type=int, default=budget.llm_tokens_per_bin, help="llm_tokens_per_bin (%(default)s)"
    )
    parser.add_argument(
        "--frames", type=int, default=budget.encoder_frames_per_bin, help="encoder_frames_per_bin (%(default)s)"
    )
    parser.add_argument("--scored-share", type=float, default=0.3, help="of the tokens, how many have labels (0.3)")
    parser.add_argument("--world", type=int, nargs="+", default=[8, 64, 256, 1024], help="numbers of GPUs")
    parser.add_argument("--gpu-gib", type=float, default=80.0, help="memory of a GPU (%(default)s)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args(arguments)
    if min(options.world) < 1 or options.tokens < 1 or options.frames < 1 or not 0 < options.scored_share <= 1:
        parser.error("--world, --tokens and --frames count from 1, --scored-share lies in (0, 1]")
    return options


def shape_of(model: str) -> ModelShape:
    """Of a known size or a model's folder."""
    if model in KNOWN:
        return KNOWN[model]
    if not (Path(model) / "config.json").is_file():
        raise SystemExit(f"--model {model}: no folder with a config.json; known sizes: {', '.join(KNOWN)}")
    from transformers import Qwen2AudioConfig  # noqa: PLC0415 - seconds to load; known sizes need nothing of it

    return ModelShape.of(Qwen2AudioConfig.from_pretrained(model))


def shardings(world: int) -> Iterator[tuple[str, Sharding]]:
    """All that runtime= offers for so many GPUs."""
    yield "auto (DDP)", Sharding(world=world)
    for stage in (1, 2, 3):
        yield f"zero{stage}", Sharding(stage=stage, world=world)
    if world > GPUS_A_NODE:
        yield "zero3_hpz", Sharding(stage=3, world=world, weight_group=GPUS_A_NODE)
    yield "zero3_offload", Sharding(stage=3, world=world, offloads=True)


def uses(options: argparse.Namespace) -> Iterator[tuple[int, str, MemoryUse]]:
    """(GPUs, runtime, bytes) of each row."""
    shape = shape_of(options.model)
    trainable = TrainableConfig(**{tower: tower in options.trains for tower in TOWERS})
    adapter = AdapterConfig(kind=AdapterKind.lora, rank=options.lora) if options.lora else AdapterConfig()
    trained = shape.trained(trainable, adapter)
    batch = MicroBatch(options.tokens, options.frames, round(options.tokens * options.scored_share))
    for world in options.world:
        for name, sharding in shardings(world):
            yield (
                world,
                name,
                memory_use(
                    shape,
                    batch,
                    trained=trained,
                    added=trained if options.lora else 0,
                    trains_encoder=trainable.encoder,
                    precision=Precision(options.precision),
                    sharding=sharding,
                    checkpointing=not options.no_checkpointing,
                ),
            )


def table(rows: Sequence[tuple[int, str, MemoryUse]], gpu_gib: float) -> str:
    """GiB a GPU, in Markdown."""
    names = ("weights", "gradients", "optimiser", "buffers", "activations", "logits", "total")
    lines = [f"| GPUs | runtime | {' | '.join(names)} | host a rank | fits {gpu_gib:g} GiB |"]
    lines.append("|---:|---|" + "---:|" * (len(names) + 1) + "---|")
    for world, runtime, use in rows:
        numbers = " | ".join(f"{getattr(use, name) / GIB:.1f}" for name in names)
        fits = "yes" if use.total <= USABLE_SHARE * gpu_gib * GIB else "no"
        lines.append(f"| {world:,} | {runtime} | {numbers} | {use.host / GIB:.1f} | {fits} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    rows = list(uses(options))
    print(table(rows, options.gpu_gib))
    if options.json is not None:
        found = [{"world": world, "runtime": name, **asdict(use), "total": use.total} for world, name, use in rows]
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
