"""Both sides of the training-speed benchmark: they compute the same, count what they run, and say when they do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import step_ratios
from benchmarks.both_sides import BothSides
from benchmarks.padding import padding
from benchmarks.peak_memory import weight_bytes
from benchmarks.random_model import SIZES, Dimensions
from benchmarks.speech_mixes import MIXES, Sample, draw_samples, mix_samples
from benchmarks.step_costs import Training, run_by_stock, run_flops
from benchmarks.step_ratios import KINDS, AtOnce, Step, require_equal
from benchmarks.stock_steps import stock_batches
from qwen_audio_train.audio import lengths
from qwen_audio_train.samples import AttentionSpans, BatchSizes

CPU = torch.device("cpu")
TINY = Dimensions(
    mel_bins=8,
    encoder_width=16,
    encoder_layers=1,
    encoder_heads=2,
    encoder_ffn=32,
    llm_width=32,
    llm_layers=2,
    llm_heads=4,
    llm_ffn=48,
    vocab=96,
)


@pytest.fixture(scope="module")
def both() -> BothSides:
    return BothSides.build(TINY, CPU, torch.float32, lora=False).enlarge_weights()


@pytest.fixture
def samples() -> list[Sample]:
    return mix_samples(MIXES["3"], 3, mel_bins=TINY.mel_bins, audio_id=TINY.vocab - 1, seed=1)


def test_the_sides_are_two_classes_over_one_set_of_weights(both):
    assert type(both.stock.policy) is not type(both.ours.policy)
    assert weight_bytes(both.stock.policy, both.ours.policy) < 1.01 * weight_bytes(both.ours.policy)
    policy, reference = (dict(m.named_parameters()) for m in (both.ours.policy, both.ours.reference))
    assert not torch.equal(policy["lm_head.weight"], reference["lm_head.weight"])


def test_losses_agree_and_are_no_constants(both, samples):
    differences = require_equal(both, samples)
    assert set(differences) == {"sft", "dpo", "dpo_scores", "dpo_frozen", "dpo_frozen_scores"}
    step = Step(both, KINDS["dpo"], samples, AtOnce(2, 400))
    assert abs(step.run_stock() - np.log(2)) > 1e-3  # policy and reference differ


def test_adapters_agree_too(samples):
    adapted = BothSides.build(TINY, CPU, torch.float32, lora=True)
    assert len(require_equal(adapted, samples)) == 5
    trains = {name for name, parameter in adapted.stock.policy.named_parameters() if parameter.requires_grad}
    assert trains
    assert all("lora" in name for name in trains)  # the encoder was frozen last
    adapted.stock.set_encoder_trains(True)
    assert any("audio_tower" in n for n, p in adapted.stock.policy.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("broken", ["our_loss", "our_pair_loss", "our_pair_scores"])
def test_a_difference_stops_the_benchmark(both, samples, broken, monkeypatch):
    right = getattr(step_ratios, broken)
    monkeypatch.setattr(step_ratios, broken, lambda *args: right(*args) * 1.001)
    with pytest.raises(SystemExit, match="do not compute the same"):
        require_equal(both, samples)


def shifted_clip(rows: dict) -> None:
    rows["mels"] = rows["mels"].roll(1, dims=1)


def leaking_samples(rows: dict) -> None:
    rows["spans"] = AttentionSpans((rows["spans"].num_positions,))


def late_positions(rows: dict) -> None:
    rows["position_ids"] = torch.arange(rows["input_ids"].shape[1])[None]


@pytest.mark.parametrize("mistake", [shifted_clip, leaking_samples, late_positions])
def test_a_batch_that_is_a_little_wrong_stops_the_benchmark(both, samples, mistake, monkeypatch):
    right = step_ratios.our_bins

    def wrong(*args, **kwargs):
        bins = right(*args, **kwargs)
        for bin_ in bins:
            mistake(bin_.batch["rows"])
        return bins

    monkeypatch.setattr(step_ratios, "our_bins", wrong)
    with pytest.raises(SystemExit, match="do not compute the same"):
        require_equal(both, samples)


def test_a_frozen_encoder_gets_no_gradient_on_either_side(both, samples, monkeypatch):
    for name, kind in KINDS.items():
        step = Step(both, kind, samples, AtOnce(2, 400))
        for models, run in ((both.stock, step.run_stock), (both.ours, step.run_ours)):
            with monkeypatch.context() as patch:
                patch.setattr(models.policy, "zero_grad", lambda: None)
                run()
            gradients = {n: p.grad is not None for n, p in models.policy.named_parameters()}
            models.policy.zero_grad()
            assert gradients["model.audio_tower.layers.0.fc1.weight"] == kind.trains_encoder, name
            assert gradients["lm_head.weight"]
            assert gradients["model.multi_modal_projector.linear.weight"]
            assert all(p.grad is None for p in models.reference.parameters())


def test_stock_encodes_a_pair_four_times_padded_to_30_s_and_ours_once_for_each_model(both, samples):
    seen: list[int] = []
    hooks = [
        model.model.audio_tower.conv2.register_forward_hook(lambda _, __, out: seen.append(out.shape[0] * out.shape[2]))
        for models in (both.stock, both.ours)
        for model in (models.policy, models.reference)
    ]
    frames = sum(lengths.encoder_frames(s.clip.mel_frames) for s in samples)
    for name, passes in (("dpo", 2), ("dpo_frozen", 1)):
        step = Step(both, KINDS[name], samples, AtOnce(3, 2000))
        seen.clear()
        step.run_stock()
        assert sum(seen) == 4 * 3 * 1500
        seen.clear()
        step.run_ours()
        assert frames * passes <= sum(seen) <= 1.05 * frames * passes + 10
    for hook in hooks:
        hook.remove()


def test_stock_rows_carry_their_own_prompt_and_clip(samples):
    batches = stock_batches(samples, 2, pairs=True, device=CPU, dtype=torch.float32)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 2]
    first = batches[0]
    assert first["input_features"].shape == (4, TINY.mel_bins, 3000)
    assert torch.equal(first["input_features"][:2], first["input_features"][2:])
    pair = samples[1].pair
    row = first["input_ids"][3, : len(pair.prompt.input_ids) + len(pair.rejected_ids)]
    assert row.tolist() == [*pair.prompt.input_ids, *pair.rejected_ids]
    assert first["labels"][3][first["labels"][3] != -100].tolist() == pair.rejected_ids.tolist()


@pytest.mark.parametrize("name", KINDS)
def test_counted_operations_are_those_that_run(both, samples, name):
    step = Step(both, KINDS[name], samples, AtOnce(2, 400))
    found = {}
    # As plain matrix products, which torch counts; causal or not, all pairs of a span are computed then.
    for side, run in (("stock", step.run_stock), ("ours", step.run_ours)):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        found[side] = counter.get_total_flops()
    for bin_ in step.our_bins:
        spans = bin_.batch["rows"]["spans"]
        pairs = [n * (n + prefix) for n, (_, prefix) in zip(spans.lengths, spans.prefixes, strict=True)]
        assert bin_.sizes.llm_attended < sum(pairs)
        object.__setattr__(bin_, "sizes", replace(bin_.sizes, llm_attended=sum(pairs)))
    stock, ours = step.flops(TINY, lora=False)
    # Counting knows not that the stem's input needs no gradient.
    assert stock == pytest.approx(found["stock"], rel=0.03)
    assert ours == pytest.approx(found["ours"], rel=0.03)


def test_costs_by_hand():
    run = run_by_stock(2, 10)
    assert (run.encoder_frames, run.encoder_attended) == (3000, 2 * 1500**2)
    assert (run.llm_tokens, run.llm_attended, run.supervised_tokens) == (20, 200, 20)
    dims = SIZES["7b"]
    # 6.5 billion weights of the language model, two operations each: 13 GFLOP a token, and the head's 1.3.
    token = BatchSizes(llm_tokens=1, llm_attended=1, supervised_tokens=1)
    one = run_flops(dims, token, Training(encoder=True))
    assert one == pytest.approx(3 * 2 * (6.476e9 + 0.639e9), rel=0.01)
    adapted = run_flops(dims, token, Training(encoder=True, llm_by_adapter=True, reference=True))
    assert adapted == pytest.approx(one)
    clip = BatchSizes(encoder_frames=1500, encoder_attended=1500**2, audio_tokens=750)
    assert run_flops(dims, clip, Training(encoder=False)) == pytest.approx(2.3e12, rel=0.03)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_run_is_hardly_more_than_the_mathematics_asks_for(both, samples, name):
    step = Step(both, KINDS[name], samples, AtOnce(2, 400))
    stock, run = step.flops(TINY, lora=False)
    assert 0.95 < step.model_flops() / run < 1.01
    assert step.model_flops() < stock / 2


def test_more_rows_at_once_hold_more_memory(both, samples):
    one, three = (Step(both, KINDS["sft"], samples, AtOnce(rows, 2000)).peak_bytes()["stock"] for rows in (1, 3))
    assert three > 1.5 * one


def test_only_a_live_reference_takes_memory(both, samples):
    one = weight_bytes(both.ours.policy)
    for name, (stock, ours) in {"sft": (1, 1), "dpo": (2, 2), "dpo_frozen": (2, 1)}.items():
        held = Step(both, KINDS[name], samples, AtOnce(3, 2000)).weight_bytes()
        assert {side: round(size / one, 1) for side, size in held.items()} == {"stock": stock, "ours": ours}


def test_padding_is_counted_by_the_collators():
    found = padding(20)
    assert found["llm_padding"] == 0
    assert 0 < found["encoder_padding"] < 0.03
    assert found["by_mix"]["3"]["encoder_padding"] > found["by_mix"]["12"]["encoder_padding"]
    assert found["by_mix"]["3"]["stock_encoder_padding"] == pytest.approx(0.9, abs=0.01)
    drawn = draw_samples([30.0], mel_bins=1, audio_id=9, seed=0)
    assert drawn[0].clip.mel_MF.shape == (1, 3000)
