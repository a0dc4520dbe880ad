"""The probe finds the largest budget that real steps fit into, and says where the memory went."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_audio_train.training.memory_trial import Request, worst_bin
from scripts.probe_memory import BYTES_PER_GB, LEAST_TOKENS, attempt, largest_that_fits, main

ROOT = Path(__file__).resolve().parents[3]


def settings(workshop, stage, *more):
    own = [
        "runtime=cpu",
        "model.precision=float32",
        f"data.train={workshop.folder / stage}",
        f"model.start_from={workshop.folder / 'model'}",
    ]
    return [*own, *more]


@pytest.mark.parametrize("capacity", [814, 815, 1700, 5000, 9999, 200_000])
def test_the_search_ends_just_below_what_does_not_fit(capacity):
    tried = []

    def fits(tokens):
        tried.append(tokens)
        return tokens <= capacity

    found = largest_that_fits(fits, LEAST_TOKENS, 100_000, 0.05)
    assert found in tried
    assert found <= capacity
    assert found >= min(100_000, capacity - max(128, 0.06 * capacity))
    assert len(tried) == len(set(tried)) < 16


def test_nothing_fits():
    assert largest_that_fits(lambda _: False, LEAST_TOKENS, 100_000, 0.05) is None


@pytest.mark.parametrize(
    ("budgets", "expected"), [((814, 2384), (1, 814)), ((4096, 12_000), (5, 819)), ((4096, 1500), (1, 4096))]
)
def test_the_costliest_bin_is_full_of_both_budgets(budgets, expected):
    assert worst_bin(*budgets) == expected


@pytest.mark.parametrize("stage", ["pretrain", "dpo"])
def test_parts_of_a_trial(workshop, stage):
    trainable = "trainable=all"
    adamw = attempt(Request(stage, settings(workshop, stage, trainable), 814, 2384, None, False), 1)
    count = adamw.gradients // 4
    assert adamw.fits
    assert adamw.gradients < adamw.parameters
    assert adamw.optimiser == pytest.approx(2 * 4 * count, rel=0.01), "two fp32 moments a trained parameter"
    copies = 2 if stage == "dpo" else 1
    positions = 1500 * 32
    assert adamw.parameters == copies * 4 * (count + positions), "the sinusoid table does not train"
    assert adamw.activations > 0
    parts = (adamw.process, adamw.parameters, adamw.gradients, adamw.optimiser, adamw.activations)
    assert sum(parts) == adamw.peak


def test_the_command_finds_a_budget_below_the_limit(workshop):
    given = settings(workshop, "sft")
    least = attempt(Request("sft", given, LEAST_TOKENS, 2384, None, False), 1)
    limit_gb = (least.peak + 150 * 10**6) / BYTES_PER_GB
    command = [sys.executable, "scripts/probe_memory.py", "sft", *given, "--limit-gb", str(limit_gb), "--within", "0.6"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tokens = int(
        re.search(r"^batching.llm_tokens_per_bin=(\d+) batching.encoder_frames_per_bin=\d+$", done.stdout, re.M)[1]
    )
    assert LEAST_TOKENS <= tokens < 65_536
    peak = float(re.search(r"^peak +([\d.]+)$", done.stdout, re.M)[1])
    assert 0 < peak <= limit_gb + 0.001
    for part in ("parameters", "gradients", "optimiser states", "activations and buffers"):
        assert re.search(rf"^{part} +[\d.]+$", done.stdout, re.M)
    assert "Probing" in done.stderr


def test_what_cannot_be_probed_is_one_sentence(workshop, capsys):
    assert main(["sft", *settings(workshop, "sft")]) == 2
    assert "give --limit-gb" in capsys.readouterr().err
    assert main(["sft", *settings(workshop, "sft"), "--limit-gb", "0.05"]) == 2
    assert "not even one 30 s clip" in capsys.readouterr().err
    quantised = settings(workshop, "sft", "model.quantization=nf4", "adapter=lora")
    assert main(["sft", *quantised, "--limit-gb", "1", "--random-weights"]) == 2
    assert "drop one" in capsys.readouterr().err


def test_a_trial_that_fails_otherwise_is_told(workshop, capsys):
    given = [*settings(workshop, "sft")[:3], "model.start_from=owner/nowhere"]
    assert main(["sft", *given, "--limit-gb", "8"]) == 1
    assert "not for memory" in capsys.readouterr().err
