"""Draws the small pictures of docs/speed.md, from the product's own collator and masks.

python benchmarks/speed_pictures.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap

from qwen_audio_train.config.model import AttentionKernel
from qwen_audio_train.model.flops import ModelShape, Part, forward_flops
from qwen_audio_train.model.span_attention import PackedRow
from qwen_audio_train.pipeline.collate import Collator, silent_clip
from qwen_audio_train.samples import BatchSizes, ClipFeatures, Rendered, RenderedPair

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "speed"
AUDIO = 9
USED, WASTED, INK = "#2f6f9f", "#e3e3e3", "#444444"
CLIP_SECONDS = (3, 5, 2, 8)


def rendered(num_text: int, num_audio: int, num_answer: int) -> Rendered:
    ids = [1] * num_text + [AUDIO] * num_audio + [2] * num_answer
    return Rendered(np.array(ids, np.int32), np.arange(len(ids)) >= num_text + num_audio, (num_audio,))


def clip(num_tokens: int) -> ClipFeatures:
    return ClipFeatures(np.zeros((4, 4 * num_tokens + 2), np.float32), 4 * num_tokens)


def mask_of(rows: dict[str, Any]) -> np.ndarray:
    row = PackedRow(rows["spans"], AttentionKernel.mask, torch.device("cpu"))
    return row.dense_mask.tril().numpy()


def bars(axes: Any, pieces: list[list[tuple[float, str]]], labels: list[str]) -> None:
    """A horizontal stack a line: (length, colour) one after another."""
    for line, parts in enumerate(pieces):
        start = 0.0
        for length, colour in parts:
            axes.barh(line, length, left=start, color=colour, edgecolor="white", height=0.7)
            start += length
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def draw_encoder() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 1.5), gridspec_kw={"width_ratios": [30, 18]})
    bars(left, [[(n, USED), (30 - n, WASTED)] for n in CLIP_SECONDS], [f"{n} s" for n in CLIP_SECONDS])
    left.set_title("padded to 30 s: 120 s of work", fontsize=9)
    bars(right, [[(n, USED) for n in CLIP_SECONDS]], ["row"])
    right.set_title("end to end: 18 s", fontsize=9)
    right.set_ylim(2.2, -1.2)
    save(figure, "encoder")


def draw_mask(axes: Any, mask: np.ndarray, title: str) -> None:
    axes.imshow(mask, cmap=ListedColormap(["#f4f4f4", USED]), vmin=0, vmax=1)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel("key", fontsize=8)
    axes.set_ylabel("query", fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_rows() -> None:
    renders = [rendered(2, n, m) for n, m in ((4, 2), (7, 3), (3, 2), (10, 4))]
    clips = [[clip(r.clip_tokens[0])] for r in renders]
    rows = Collator(0, AUDIO, silent_clip(4), "packed").rows(renders, clips)[0]["rows"]
    padded = Collator(0, AUDIO, silent_clip(4), "padded").rows(renders, clips)[0]["rows"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 2.4), gridspec_kw={"width_ratios": [1.3, 1]})
    longest = padded["input_ids"].shape[1]
    lengths = padded["attention_mask"].sum(1).tolist()
    packed = [[(n, USED) for n in rows["spans"].lengths]]
    bars(left, [[(n, USED), (longest - n, WASTED)] for n in lengths] + packed, ["1", "2", "3", "4", "packed"])
    left.set_title("four samples, padded and packed", fontsize=9)
    draw_mask(right, mask_of(rows), "who sees whom in the packed row")
    save(figure, "rows")


def draw_labels() -> None:
    figure, axes = plt.subplots(figsize=(5.2, 1.6))
    grid = np.zeros((12, 60))
    grid[:, 48:58] = 1
    axes.imshow(grid, cmap=ListedColormap([WASTED, USED]), aspect="auto")
    axes.set_xlabel("positions of a row", fontsize=8)
    axes.set_ylabel("vocabulary", fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title("logits that a loss asks for", fontsize=9)
    save(figure, "labels")


def draw_pairs() -> None:
    def answer(number: int) -> np.ndarray:
        return np.full(number, 3, np.int32)

    pairs = [
        RenderedPair(rendered(2, 8, 0), answer(4), answer(3)),
        RenderedPair(rendered(2, 4, 0), answer(2), answer(4)),
    ]
    clips = [[clip(8)], [clip(4)]]
    rows = Collator(0, AUDIO, silent_clip(4), "packed").pairs(pairs, clips)[0]["rows"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.8, 2.6), gridspec_kw={"width_ratios": [1.35, 1]})
    mask = mask_of(rows)
    draw_mask(right, mask, "two pairs in one row")
    for edge in np.cumsum(rows["spans"].lengths)[:-1]:
        for line in (right.axhline, right.axvline):
            line(edge - 0.5, color=INK, linewidth=0.5)
    prompt, chosen, rejected = USED, "#4f9f6f", "#c7694f"
    lines = [[(10, prompt), (4, chosen)], [(10, prompt), (3, rejected)], [(10, prompt), (4, chosen), (3, rejected)]]
    bars(left, lines, ["chosen", "rejected", "one row"])
    left.set_title("a prompt (blue) once, both answers behind it", fontsize=9)
    save(figure, "pairs")


def tflop(parts: tuple[Part, ...], sizes: BatchSizes) -> float:
    """Forward, at the released model's dimensions."""
    shape = ModelShape(
        mel_bins=128, encoder_width=1280, encoder_layers=32, encoder_ffn=5120, llm_width=4096, llm_layers=32,
        llm_query_width=4096, llm_key_width=4096, llm_ffn=11_008, vocab=156_032,
    )  # fmt: skip
    return sum(forward_flops(shape, sizes)[part].total for part in parts) / 1e12


def draw_passes() -> None:
    """A pair of a 5 s clip: a prompt of 195 tokens, 125 of them audio, and answers of 30."""
    encoder, llm = (Part.conv1, Part.conv2, Part.encoder, Part.projector), (Part.llm, Part.head)
    prompt, answer = 195, 30

    def clip(num_frames: int) -> float:
        return tflop(encoder, BatchSizes(encoder_frames=num_frames, encoder_attended=num_frames**2, audio_tokens=125))

    def text(num_tokens: int, num_scored: int) -> float:
        attended = num_tokens * (num_tokens + 1) // 2
        return tflop(llm, BatchSizes(llm_tokens=num_tokens, llm_attended=attended, supervised_tokens=num_scored))

    yellow = "#c7a14f"
    elsewhere = [(clip(1500), yellow), (text(prompt + answer, prompt + answer), USED)] * 4
    ours = [(clip(250), yellow), (text(prompt + 2 * answer, 2 * answer), USED)]
    labels = ["elsewhere", "everything trains", "encoder frozen,\nreference stored"]
    figure, axes = plt.subplots(figsize=(6.4, 1.7))
    bars(axes, [elsewhere, ours * 2, ours], labels)
    axes.set_xlabel("TFLOP forward of a pair, encoder (yellow) and language model (blue)", fontsize=8)
    totals = [sum(length for length, _ in line) for line in (elsewhere, ours * 2, ours)]
    print("TFLOP forward of a pair:", dict(zip(labels, (round(total, 1) for total in totals), strict=True)))
    save(figure, "passes")


def save(figure: Any, name: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for axes in figure.axes:
        axes.tick_params(labelsize=8)
    figure.savefig(FOLDER / f"{name}.png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    plt.switch_backend("Agg")
    for draw in (draw_encoder, draw_rows, draw_labels, draw_pairs, draw_passes):
        draw()


if __name__ == "__main__":
    main()
