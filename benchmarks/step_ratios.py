"""The same samples as one step of either side: what each runs, how long it takes, what it holds, what is predicted."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.both_sides import BothSides, Models
from benchmarks.our_steps import our_bins, our_loss, our_pair_loss, our_pair_scores
from benchmarks.peak_memory import peak_tensor_bytes, weight_bytes
from benchmarks.random_model import Dimensions
from benchmarks.speech_mixes import Sample
from benchmarks.step_costs import Training, kept_values, run_by_stock, run_by_us, total_flops
from benchmarks.stock_steps import Batch, stock_batches, stock_loss, stock_pair_loss, stock_pair_scores
from qwen_audio_train.model.flops import StepFlops
from qwen_audio_train.samples import BatchSizes

LOSS_TOLERANCE = 1e-4
"""Largest difference of losses in fp32."""
SCORE_TOLERANCE = 1e-5
"""Of an answer's summed log-probability, relative to it."""


@dataclass(frozen=True)
class Kind:
    """What is trained, and how."""

    pairs: bool
    trains_encoder: bool
    stores_reference: bool
    """Ours only: nobody else can store a reference's log-probabilities for audio."""

    def training(self, *, lora: bool, ours: bool) -> Training:
        """As counting sees it."""
        reference = self.pairs and not (ours and self.stores_reference)
        return Training(self.trains_encoder, llm_by_adapter=lora, reference=reference)


KINDS = {
    "sft": Kind(pairs=False, trains_encoder=True, stores_reference=False),
    "dpo": Kind(pairs=True, trains_encoder=True, stores_reference=False),
    "dpo_frozen": Kind(pairs=True, trains_encoder=False, stores_reference=True),
}


@dataclass(frozen=True)
class AtOnce:
    """Of a kind: what each side runs at once."""

    stock_samples: int
    """Rows, or pairs (of two rows)."""
    our_tokens: int


class Step:
    """Some samples, made into batches of both sides. One at a time: it sets what of the models trains."""

    def __init__(self, both: BothSides, kind: Kind, samples: Sequence[Sample], sizes: AtOnce) -> None:
        self.both, self.kind, self.num_samples = both, kind, len(samples)
        self.audio_seconds = sum(sample.seconds for sample in samples)
        self.stock_batches = stock_batches(
            samples, sizes.stock_samples, pairs=kind.pairs, device=both.device, dtype=both.dtype
        )
        self.our_bins = our_bins(samples, sizes.our_tokens, pairs=kind.pairs, device=both.device, vocab=both.dims.vocab)
        self.num_labels = sum(bin_.sizes.supervised_tokens for bin_ in self.our_bins)
        for models in (both.stock, both.ours):
            models.set_encoder_trains(kind.trains_encoder)
        self._references: list[torch.Tensor] = []
        if kind.pairs and kind.stores_reference:
            with torch.no_grad():
                self._references = [our_pair_scores(both.ours.reference, bin_) for bin_ in self.our_bins]

    def run_stock(self) -> float:
        """Forward and backward of all batches; returns the mean of their losses."""
        return _run(self.both.stock, [partial(self._stock_loss, batch) for batch in self.stock_batches]) / len(
            self.stock_batches
        )

    def run_ours(self) -> float:
        """Forward and backward of all bins; returns the step's loss."""
        return _run(self.both.ours, [partial(self._our_loss, number) for number in range(len(self.our_bins))])

    def _stock_loss(self, batch: Batch) -> torch.Tensor:
        stock = self.both.stock
        return (
            stock_pair_loss(stock.policy, stock.reference, batch)
            if self.kind.pairs
            else stock_loss(stock.policy, batch)
        )

    def _our_loss(self, number: int) -> torch.Tensor:
        ours, bin_ = self.both.ours, self.our_bins[number]
        if not self.kind.pairs:
            return our_loss(ours.policy, bin_, self.num_labels)
        reference = self._references[number] if self._references else ours.reference
        return our_pair_loss(ours.policy, reference, bin_, self.num_samples)

    def runs(self) -> tuple[list[BatchSizes], list[BatchSizes]]:
        """What one forward pass runs, by batch: (stock, ours)."""
        stock = [run_by_stock(*batch["input_ids"].shape) for batch in self.stock_batches]
        return stock, [run_by_us(bin_.sizes) for bin_ in self.our_bins]

    def model_flops(self) -> float:
        """What the mathematics asks for, as training's own numbers count it; after ``set_encoder_trains``."""
        live = self.kind.pairs and not self.kind.stores_reference
        priced = StepFlops.of(self.both.ours.policy, reference_passes=int(live))
        return sum(priced.step(bin_.sizes) for bin_ in self.our_bins)

    def flops(self, dims: Dimensions, *, lora: bool) -> tuple[float, float]:
        """Counted, with these lengths: (stock, ours)."""
        stock, ours = self.runs()
        return (
            total_flops(dims, stock, self.kind.training(lora=lora, ours=False)),
            total_flops(dims, ours, self.kind.training(lora=lora, ours=True)),
        )

    def seconds(self, *, stock_first: bool) -> dict[str, float]:
        """One run of each side."""
        runs = {"stock": self.run_stock, "ours": self.run_ours}
        return {side: timed(runs[side], self.both.device) for side in sorted(runs, reverse=stock_first)}

    def peak_bytes(self) -> dict[str, int]:
        """Of each side: its weights, its batches, and the most that its step holds beyond them."""
        held, device = self.weight_bytes(), self.both.device
        return {
            "stock": held["stock"] + _bytes(self.stock_batches) + peak_tensor_bytes(self.run_stock, device),
            "ours": held["ours"] + _bytes([b.batch for b in self.our_bins]) + peak_tensor_bytes(self.run_ours, device),
        }

    def predicted_bytes(self) -> dict[str, float]:
        """The same by counting, for steps of one batch."""
        held, element = self.weight_bytes(), torch.finfo(self.both.dtype).bits / 8
        training = self.kind.training(lora=self.both.has_lora, ours=True)
        return {
            side: held[side] + element * max(kept_values(self.both.dims, run, training) for run in runs)
            for side, runs in zip(("stock", "ours"), self.runs(), strict=True)
        }

    def weight_bytes(self) -> dict[str, int]:
        """Of each side's policy, and of its reference where it needs one."""
        both, pairs = self.both, self.kind.pairs
        needs = {"stock": pairs, "ours": pairs and not self.kind.stores_reference}
        return {
            side: weight_bytes(models.policy, *([models.reference] if needs[side] else []))
            for side, models in (("stock", both.stock), ("ours", both.ours))
        }


def _bytes(values: object) -> int:
    """Of all tensors in nested batches."""
    if isinstance(values, torch.Tensor):
        return values.nbytes
    if isinstance(values, dict):
        return sum(map(_bytes, values.values()))
    return sum(map(_bytes, values)) if isinstance(values, list) else 0


def _run(models: Models, losses: Sequence[Callable[[], torch.Tensor]]) -> float:
    total = torch.zeros((), device=models.policy.device)
    for loss_of in losses:
        loss = loss_of()
        loss.backward()
        total += loss.detach()
        del loss
    models.policy.zero_grad()
    return float(total)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds, with the device's queue empty before and after."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def require_equal(both: BothSides, samples: Sequence[Sample]) -> dict[str, float]:
    """Differences between the two sides' losses and scores, by kind, in fp32. Raises SystemExit where they disagree."""
    found = {}
    for name, kind in KINDS.items():
        # Two samples a bin or so: what is packed together must not matter.
        step = Step(both, kind, samples, AtOnce(len(samples), 400))
        stock, ours = step.run_stock(), step.run_ours()
        found[name] = abs(stock - ours)
        if kind.pairs:
            found[f"{name}_scores"] = _score_difference(step)
    limits = {name: SCORE_TOLERANCE if name.endswith("_scores") else LOSS_TOLERANCE for name in found}
    wrong = {name: difference for name, difference in found.items() if not difference <= limits[name]}
    if wrong:
        raise SystemExit(f"the two sides do not compute the same: {wrong}, more than {limits} apart")
    return found


def _score_difference(step: Step) -> float:
    """Largest difference of an answer's summed log-probability, relative to it."""
    both = step.both
    with torch.no_grad():
        stock = stock_pair_scores(both.stock.policy, step.stock_batches[0])
        ours = torch.empty_like(stock)
        for bin_ in step.our_bins:
            rows = torch.tensor([*bin_.numbers, *(n + step.num_samples for n in bin_.numbers)], device=stock.device)
            ours[rows] = our_pair_scores(both.ours.policy, bin_)
    return float(((ours - stock) / stock).abs().max())


def fastest_sizes(
    both: BothSides, kind: Kind, samples: Sequence[Sample], stock_samples: Sequence[int], our_tokens: Sequence[int]
) -> tuple[AtOnce, dict[str, dict[str, float]]]:
    """What each side runs fastest at once, and seconds of all that were tried. What does not fit is left out."""
    tried: dict[str, dict[str, float]] = {"stock": {}, "ours": {}}
    for side, choices in (("stock", stock_samples), ("ours", our_tokens)):
        for choice in choices:
            sizes = AtOnce(choice, our_tokens[0]) if side == "stock" else AtOnce(stock_samples[0], choice)
            try:
                step = Step(both, kind, samples, sizes)
                tried[side][str(choice)] = timed(step.run_stock if side == "stock" else step.run_ours, both.device)
            except torch.OutOfMemoryError:
                break
            finally:
                both.zero_grad()
        if not tried[side]:
            raise SystemExit(f"{side}: not even {choices[0]} at once fits this device")
    best = {side: int(min(found, key=found.__getitem__)) for side, found in tried.items()}
    return AtOnce(best["stock"], best["ours"]), tried
