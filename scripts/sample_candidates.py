#!/usr/bin/env python
"""Answers that a model itself gives to the questions of a chat set, for preference pairs from its own mistakes.

    python scripts/sample_candidates.py --model runs/sft/final --set data/my_chat_train --output candidates.jsonl
    python -m data_prep.preference_pairs --input data/my_pretrain_train --candidates candidates.jsonl --output data

The second command ranks the candidates by character error rate against the reference and keeps the worst as y_l.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from qwen_audio_train.evaluation.generate import Generator, Prompt
from qwen_audio_train.model.load import load_model, load_processor
from qwen_audio_train.pipeline.stage import Front
from qwen_audio_train.prompts.render import Renderer
from qwen_audio_train.samples import ChatRecord
from qwen_audio_train.shards.reader import ShardSet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id, usually of the SFT stage")
    parser.add_argument("--set", type=Path, required=True, help="chat set whose last answers are asked for again")
    parser.add_argument("--output", type=Path, required=True, help="JSONL: key and candidates")
    parser.add_argument("--candidates", type=int, default=4, help="answers a question")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--limit", type=int, help="only the first so many conversations")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.candidates < 1 or args.temperature <= 0:
        parser.error("--candidates must be at least 1 and --temperature above 0")

    shards = ShardSet.open(args.set)
    front = Front.of(load_processor(args.model))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(args.model).eval().to(device)
    generator = Generator(
        model, front.tokenizer, front.collator(), args.max_new_tokens, 16_384, temperature=args.temperature
    )
    renderer, prompts = Renderer(front.tokenizer), []
    for i in range(min(len(shards), args.limit or len(shards))):
        record = shards.record(i)
        if isinstance(record, ChatRecord):
            lengths = [clip.num_samples for clip in record.clips]
            prompts.append(Prompt(renderer.render_chat_prompt(record.messages[:-1], lengths, record.origin), record))
    torch.manual_seed(args.seed)
    rounds = [
        generator.answer(prompts, front.clips(shards), title=f"round {k + 1} of {args.candidates}")
        for k in range(args.candidates)
    ]
    with args.output.open("w", encoding="utf-8") as file:
        for index, prompt in enumerate(prompts):
            answers = list(dict.fromkeys(one[index].text.strip() for one in rounds))
            file.write(json.dumps({"key": prompt.record.origin.key, "candidates": answers}, ensure_ascii=False) + "\n")
    print(f"{args.output}: {len(prompts)} questions, {args.candidates} answers each")


if __name__ == "__main__":
    main()
