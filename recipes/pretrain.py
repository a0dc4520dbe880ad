"""Stage 1, pretraining: audio and a natural-language prompt in, text out.

python recipes/pretrain.py experiment=quickstart/pretrain
torchrun --nproc-per-node 8 recipes/pretrain.py run.dir=runs/pretrain run.epochs=1 data.train=data/set runtime=zero2
"""

from __future__ import annotations

from transformers import TrainingArguments

from qwen_audio_train.config.load import recipe
from qwen_audio_train.config.stages import PretrainConfig
from qwen_audio_train.model.knobs import compile_pointwise
from qwen_audio_train.model.load import load_model, load_processor
from qwen_audio_train.model.trainable import choose_trainable, lora_config, with_adapter
from qwen_audio_train.pipeline.stage import Front, stage_batches
from qwen_audio_train.training import run, runtime
from qwen_audio_train.training.arguments import trainer_arguments
from qwen_audio_train.training.initial_model import encoded_clips, initial_model
from qwen_audio_train.training.trainer import LikelihoodTrainer


@recipe("pretrain")
@run.to_its_end
def main(config: PretrainConfig) -> None:
    if run.is_finished(config):
        return
    ranks = runtime.start(config.runtime, seed=config.run.seed)
    runtime.check_world(ranks.world, config.batching.bins_per_step)
    run.open_run(config, ranks)

    source = initial_model(config, ranks)
    processor = load_processor(source)
    front = Front.of(processor, encoded_clips(config, source, ranks))
    batches = stage_batches(config, front, rank=ranks.rank, world=ranks.world)

    # Before the model: under ZeRO-3 it is loaded in pieces.
    arguments = TrainingArguments(**trainer_arguments(config, ranks=ranks, num_steps=batches.num_steps))
    model = load_model(source, config.model)
    compile_pointwise(model, wanted=config.runtime.compile)
    choose_trainable(model, config.trainable)
    model = with_adapter(model, lora_config(config.adapter, config.trainable))
    trainer = LikelihoodTrainer(model=model, args=arguments, batches=batches, checkpoints=config.checkpoint)
    run.train(trainer, config, ranks, title="pretrain")
    run.save_final(trainer, processor, config, ranks)


if __name__ == "__main__":
    main()
