"""The three stages for real on one CUDA device: what they learn is what the CPU learns, up to rounding."""

from __future__ import annotations

import pytest
import torch

from tests.ports import free_port
from tests.recipes.test_distributed import STEPS, Stages

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CUDA = "runtime.device=auto"
LORA = ("adapter=lora",)
# Workers of xdist take a stage each, so that its CPU run is made once.
EACH_STAGE = pytest.mark.parametrize(
    ("stage", "adapter"),
    [
        pytest.param("pretrain", (), marks=pytest.mark.xdist_group("pretrain")),
        pytest.param("sft", (), marks=pytest.mark.xdist_group("sft")),
        pytest.param("dpo", (), marks=pytest.mark.xdist_group("dpo")),
        pytest.param("dpo", LORA, marks=pytest.mark.xdist_group("dpo-lora")),
    ],
)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return Stages(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(autouse=True)
def _own_port(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", str(free_port()))


def on_cpu(stages, stage, adapter):
    losses = stages.losses(stage, "single-cpu" + "-lora" * bool(adapter), *adapter)
    assert len(losses) == STEPS
    return losses


def on_cuda(stages, stage, adapter, name, *overrides):
    return stages.losses(stage, f"single-{name}" + "-lora" * bool(adapter), CUDA, *adapter, *overrides)


@EACH_STAGE
def test_float32_equals_the_cpu(stages, stage, adapter):
    # torch's default lets the encoder's two convolutions round to TF32.
    got = on_cuda(stages, stage, adapter, "float32")
    assert got == pytest.approx(on_cpu(stages, stage, adapter), rel=1e-3)


@EACH_STAGE
def test_autocast_follows_the_cpu(stages, stage, adapter):
    got = on_cuda(stages, stage, adapter, "autocast", "runtime.autocast_bfloat16=true")
    assert got == pytest.approx(on_cpu(stages, stage, adapter), rel=2e-2)


@EACH_STAGE
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_sharded_bfloat16_follows_the_cpu(stages, stage, adapter, strategy):
    overrides = [f"runtime={strategy}", "model.precision=bfloat16"]
    got = on_cuda(stages, stage, adapter, strategy, *overrides)
    assert got == pytest.approx(on_cpu(stages, stage, adapter), rel=3e-2)
