"""The memory calculator beside what a small model really holds, on the CPU: the table of docs/launching.md.

python -m benchmarks.memory        # a minute: two of the rows start two processes under DeepSpeed
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from qwen_audio_train.config.adapter import AdapterConfig, AdapterKind
from qwen_audio_train.config.trainable import TrainableConfig
from qwen_audio_train.model.memory import MicroBatch, ModelShape, Sharding, activation_bytes, state_bytes
from qwen_audio_train.model.trainable import choose_trainable, lora_config, with_adapter
from tests.ports import free_port
from tests.unit.model.measured_memory import CLIP_FRAMES, saved_bytes, small_batch, small_model, stored

ROOT = Path(__file__).resolve().parents[1]
EVERYTHING = TrainableConfig(encoder=True, projector=True, llm=True)
LORA = AdapterConfig(kind=AdapterKind.lora, rank=4)
ROWS, ROW_TOKENS, CLIPS, SCORED = 6, 220, 6, 40


def one_process(name: str, dtype: torch.dtype, adapter: AdapterConfig) -> Iterator[tuple[str, str, float, float]]:
    """(configuration, part, computed, measured) of a step of plain training."""
    model = small_model(dtype)
    shape, element = ModelShape.of(model.config), dtype.itemsize
    choose_trainable(model, EVERYTHING)
    model = with_adapter(model, lora_config(adapter, EVERYTHING))
    trained = shape.trained(EVERYTHING, adapter)
    added = trained if adapter.kind is AdapterKind.lora else 0
    batch = small_batch(ROWS, ROW_TOKENS, CLIPS, SCORED, dtype)
    kept = saved_bytes(model, batch)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    (-model(**batch).log_probs.sum()).backward()
    optimiser.step()
    moments = [v for state in optimiser.state.values() for key, v in state.items() if key.startswith("exp")]
    weights, gradients, states, _ = state_bytes(shape.parameters + added, trained, element, Sharding())
    yield name, "weights", weights, stored(model.parameters())
    yield name, "gradients", gradients, stored(p.grad for p in model.parameters())
    yield name, "optimiser", states, stored(moments)
    planned = MicroBatch(ROWS * ROW_TOKENS, CLIPS * CLIP_FRAMES // 2, SCORED)
    computed = activation_bytes(shape, planned, element, trains_encoder=True, checkpointing=False)
    yield name, "activations", computed + SCORED * (4 * shape.vocab + element * shape.llm_width), kept


def two_ranks(name: str, stage: int) -> Iterator[tuple[str, str, float, float]]:
    """The same of a rank of two under DeepSpeed, in bf16."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    command += ["tests/unit/model/measured_memory.py", str(stage), "bfloat16"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(next(line for line in done.stdout.splitlines() if "STATES " in line).partition("STATES ")[2])
    shape = ModelShape.of(small_model().config)
    trained = shape.trained(EVERYTHING, AdapterConfig())
    weights, _, states, _ = state_bytes(shape.parameters, trained, 2, Sharding(stage=stage, world=2))
    yield name, "weights", weights, found["weights"]
    yield name, "optimiser", states, found["optimiser"]


def main() -> None:
    print("| configuration | part | computed, bytes | measured, bytes | off by |\n|---|---|---:|---:|---:|")
    for rows in (
        one_process("fp32, everything", torch.float32, AdapterConfig()),
        one_process("bf16, everything", torch.bfloat16, AdapterConfig()),
        one_process("fp32, LoRA", torch.float32, LORA),
        two_ranks("bf16, ZeRO-2, 2 ranks", 2),
        two_ranks("bf16, ZeRO-3, 2 ranks", 3),
    ):
        for name, part, computed, measured in rows:
            print(f"| {name} | {part} | {computed:,.0f} | {measured:,.0f} | {computed / measured - 1:+.2%} |")


if __name__ == "__main__":
    main()
