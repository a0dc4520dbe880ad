"""The calculator against what training really holds."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace

import pytest
import torch

from qwen_audio_train.config.adapter import AdapterConfig, AdapterKind
from qwen_audio_train.config.load import CONFIG_DIR
from qwen_audio_train.config.model import Precision
from qwen_audio_train.config.trainable import TrainableConfig
from qwen_audio_train.model.memory import (
    FROM_PARTS_7B,
    GIB,
    RELEASED_7B,
    MicroBatch,
    ModelShape,
    Sharding,
    activation_bytes,
    memory_use,
    state_bytes,
)
from qwen_audio_train.model.trainable import choose_trainable, lora_config, with_adapter
from tests.ports import free_port
from tests.recipes.test_distributed import TORCHRUN
from tests.unit.model.measured_memory import CLIP_FRAMES, saved_bytes, small_batch, small_model, stored

ROOT = CONFIG_DIR.parent
EVERYTHING = TrainableConfig(encoder=True, projector=True, llm=True)
NO_ADAPTER = AdapterConfig()
LORA = AdapterConfig(kind=AdapterKind.lora, rank=4)
STATES_TOLERANCE = 0.01
ACTIVATIONS_TOLERANCE = 0.10


@pytest.mark.parametrize("wide", [False, True])
def test_parameters_are_counted_exactly(wide):
    model = small_model(wide=wide)
    shape = ModelShape.of(model.config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    for trainable in (EVERYTHING, TrainableConfig(encoder=True), TrainableConfig(llm=True, projector=True)):
        choose_trainable(model, trainable)
        assert shape.trained(trainable, NO_ADAPTER) == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("trainable", [EVERYTHING, TrainableConfig(llm=True, encoder=False, projector=False)])
def test_adapters_are_counted_exactly(trainable):
    model = small_model()
    shape = ModelShape.of(model.config)
    choose_trainable(model, trainable)
    model = with_adapter(model, lora_config(LORA, trainable))
    assert shape.trained(trainable, LORA) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = shape.parameters + shape.trained(trainable, LORA)
    assert total == sum(p.numel() for p in model.parameters())


def test_the_7b_has_the_size_that_is_known():
    assert RELEASED_7B.parameters == pytest.approx(8.4e9, rel=0.01)
    assert FROM_PARTS_7B.llm_parameters == pytest.approx(7.616e9, rel=0.001)  # Qwen2.5-7B's own count


@pytest.mark.parametrize("adapter", [NO_ADAPTER, LORA], ids=["all", "lora"])
def test_states_of_one_process(adapter):
    model = small_model()
    shape = ModelShape.of(model.config)
    choose_trainable(model, EVERYTHING)
    model = with_adapter(model, lora_config(adapter, EVERYTHING))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    (-model(**small_batch(1, 220, 1, 20, torch.float32)).log_probs.sum()).backward()
    optimiser.step()
    trained = shape.trained(EVERYTHING, adapter)
    added = trained if adapter.kind is AdapterKind.lora else 0
    weights, gradients, moments, buffers = state_bytes(shape.parameters + added, trained, 4, Sharding())
    assert weights == stored(model.parameters())
    assert gradients == stored(p.grad for p in model.parameters())
    held = stored(v for state in optimiser.state.values() for name, v in state.items() if name.startswith("exp"))
    assert (moments, buffers) == (held, 0)


@pytest.mark.distributed
@pytest.mark.xdist_group("memory")
@pytest.mark.parametrize(("stage", "dtype"), [(1, "float32"), (2, "bfloat16"), (3, "bfloat16")])
def test_states_of_two_ranks_under_deepspeed(stage, dtype):
    command = [*TORCHRUN, str(free_port()), "tests/unit/model/measured_memory.py", str(stage), dtype]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads(line.partition("STATES ")[2]) for line in done.stdout.splitlines() if "STATES " in line]
    assert len(ranks) == 2, done.stdout
    shape, element = ModelShape.of(small_model().config), getattr(torch, dtype).itemsize
    expected = state_bytes(
        shape.parameters, shape.trained(EVERYTHING, NO_ADAPTER), element, Sharding(stage=stage, world=2)
    )
    for rank in ranks:
        assert rank["weights"] == pytest.approx(expected[0], rel=STATES_TOLERANCE)
        assert rank["optimiser"] == pytest.approx(expected[2], rel=STATES_TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("trains_encoder", [False, True])
@pytest.mark.parametrize(("rows", "row_tokens", "clips"), [(2, 300, 2), (6, 120, 3)])
def test_activations(dtype, wide, trains_encoder, rows, row_tokens, clips):
    scored = 8
    model = small_model(dtype, wide=wide)
    shape = ModelShape.of(model.config)
    choose_trainable(model, replace(EVERYTHING, encoder=trains_encoder))
    measured = saved_bytes(model, small_batch(rows, row_tokens, clips, scored, dtype))
    batch = MicroBatch(rows * row_tokens, clips * CLIP_FRAMES // 2, scored)
    element = dtype.itemsize
    computed = activation_bytes(shape, batch, element, trains_encoder=trains_encoder, checkpointing=False)
    computed += scored * (
        4 * shape.vocab + element * shape.llm_width
    )  # before the backward pass there are logits alone
    assert computed == pytest.approx(measured, rel=ACTIVATIONS_TOLERANCE)


def test_checkpointed_layers_keep_their_inputs():
    model = small_model(checkpointing=True)
    shape = ModelShape.of(model.config)
    measured = saved_bytes(model, small_batch(2, 300, 2, 8, torch.float32))
    batch = MicroBatch(600, 2 * CLIP_FRAMES // 2, 8)
    at_the_peak = activation_bytes(shape, batch, 4, trains_encoder=True, checkpointing=True)
    one_layer = replace(shape, llm_layers=1, encoder_layers=1)
    no_layer = replace(shape, llm_layers=0, encoder_layers=0)
    run_again = activation_bytes(one_layer, batch, 4, trains_encoder=True, checkpointing=False)
    run_again -= activation_bytes(no_layer, batch, 4, trains_encoder=True, checkpointing=False)
    kept = at_the_peak - run_again + 8 * (4 * shape.vocab + 4 * shape.llm_width)
    assert kept == pytest.approx(measured, rel=ACTIVATIONS_TOLERANCE)


def use(**changes):
    settings = {
        "trained": RELEASED_7B.trained(EVERYTHING, NO_ADAPTER),
        "trains_encoder": True,
        "precision": Precision.bfloat16,
        "sharding": Sharding(stage=3, world=8),
        "checkpointing": True,
    }
    return memory_use(RELEASED_7B, MicroBatch(4096, 12_000, 1024), **{**settings, **changes})


def test_more_ranks_and_higher_stages_hold_less():
    totals = [use(sharding=Sharding(stage=stage, world=64)).total for stage in (1, 2, 3)]
    assert totals == sorted(totals, reverse=True)
    assert use(sharding=Sharding(stage=3, world=64)).total < use().total
    assert use(checkpointing=False).activations > 3 * use().activations


def test_offload_moves_states_to_the_host():
    offloaded = use(sharding=Sharding(stage=3, world=8, offloads=True))
    assert offloaded.optimiser == offloaded.weights == 0
    assert offloaded.host == use().optimiser + use().weights


def test_a_weight_group_holds_its_own_copy():
    plain, grouped = (use(sharding=Sharding(stage=3, world=64, weight_group=group)) for group in (None, 8))
    assert grouped.weights - plain.weights == pytest.approx(2 * RELEASED_7B.parameters / 8)
    assert plain.total < 80 * GIB
