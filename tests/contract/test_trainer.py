"""What we assume of transformers' Trainer and of how its models are saved: when it fails, read what changed first."""

from __future__ import annotations

import copy
import inspect
import json
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import Qwen2AudioForConditionalGeneration, Trainer, TrainingArguments

from qwen_audio_train.model.efficient import EfficientQwen2Audio
from qwen_audio_train.model.load import load_model
from tests import builders


def test_signatures_of_what_we_override():
    def parameters(name: str) -> list[str]:
        return list(inspect.signature(getattr(Trainer, name)).parameters)

    assert parameters("get_batch_samples") == ["self", "epoch_iterator", "num_batches", "device"]
    assert parameters("_save_checkpoint") == ["self", "model", "trial"]
    assert parameters("_get_output_dir") == ["self", "trial"]
    assert parameters("_load_from_checkpoint") == ["self", "resume_from_checkpoint", "model"]
    assert parameters("log") == ["self", "logs", "start_time"]
    assert parameters("compute_loss") == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]
    assert parameters("floating_point_ops") == ["self", "inputs"]
    assert parameters("_get_grad_norm") == ["self", "model", "grad_norm"]


def test_the_norm_is_asked_for_before_the_optimiser_and_the_schedule_waits_for_the_optimiser():
    source = inspect.getsource(Trainer._run_epoch)
    order = [
        "self._tr_loss += tr_loss_step",
        "grad_norm = self._get_grad_norm(model, grad_norm=grad_norm)",
        "self.optimizer.step()",
        "if not self.accelerator.optimizer_step_was_skipped:",
        "self.lr_scheduler.step()",
    ]
    places = [source.index(line) for line in order]
    assert places == sorted(places)
    assert "self.accelerator.backward(loss, **kwargs)" in inspect.getsource(Trainer.training_step)
    assert "return self._is_overflow" in inspect.getsource(AcceleratedOptimizer.step_was_skipped.fget)
    assert "if self.control.should_log and self.state.global_step > self._globalstep_last_logged" in inspect.getsource(
        Trainer._maybe_log_save_evaluate
    )


def test_adamw_leaves_a_parameter_without_a_gradient_and_its_state_alone():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    weight.grad = torch.ones(3)
    optimizer.step()
    before = (weight.detach().clone(), *(tensor.clone() for tensor in optimizer.state[weight].values()))
    weight.grad = None
    optimizer.step()
    after = (weight.detach(), *optimizer.state[weight].values())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_checkpoint_goes_where_get_output_dir_says():
    source = inspect.getsource(Trainer._save_checkpoint)
    assert "run_dir = self._get_output_dir(trial=trial)" in source
    assert "output_dir = os.path.join(run_dir, checkpoint_folder)" in source


def test_a_loop_draws_its_batches_from_get_batch_samples_and_hands_the_count_on():
    source = inspect.getsource(Trainer._run_epoch)
    assert "batch_samples, num_items_in_batch = self.get_batch_samples(" in source
    assert "self.training_step(model, inputs, num_items_in_batch)" in source


class ConstantLoss(Trainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return model.weight.sum() * 0 + 6.0


class ScaledLoss(ConstantLoss):
    loss_is_scaled_for_ga = True


@pytest.mark.parametrize(("kind", "reported"), [(ConstantLoss, 2.0), (ScaledLoss, 6.0)])
def test_loss_is_scaled_for_ga_keeps_our_loss_undivided(tmp_path, kind, reported):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    trainer = kind(model=torch.nn.Linear(2, 2), args=arguments)
    trainer.current_gradient_accumulation_steps = 3
    trainer.create_optimizer()
    assert float(trainer.training_step(trainer.model, {"x": torch.zeros(1)}, num_items_in_batch=5)) == reported


class Rows(Dataset):
    """Text-only rows of different lengths."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.rows = [torch.randint(0, 200, (4 + 2 * n,)) for n in range(4)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        ids = self.rows[number]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def test_stock_trainer_logs_one_micro_batchs_mean_times_the_accumulation(tmp_path):
    """Why the loss is ours. Stock Qwen2-Audio ignores ``num_items_in_batch`` although its forward takes keywords, so
    Trainer believes the loss is scaled and sums means: the logged loss grows with the accumulation, and short rows
    weigh more than long ones. When this fails, the library has been mended; our own mean stays right."""
    model = builders.stock_model(max_clip_seconds=1)
    rows = Rows()
    with torch.no_grad():
        outputs = [model(**{name: tensor[None] for name, tensor in row.items()}) for row in rows]
    means = [float(output.loss) for output in outputs]
    counts = [len(row) - 1 for row in rows.rows]
    token_mean = sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], max_steps=1, per_device_train_batch_size=1,
        gradient_accumulation_steps=4, logging_steps=1, save_strategy="no", disable_tqdm=True, learning_rate=1e-9,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    logged = trainer.state.log_history[0]["loss"]
    assert logged == pytest.approx(sum(means), rel=1e-4)
    assert logged > 3 * token_mean


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    stock = builders.stock_model(max_clip_seconds=1)
    efficient = EfficientQwen2Audio(copy.deepcopy(stock.config))
    efficient.load_state_dict(stock.state_dict())
    return stock, efficient


def test_our_class_saves_the_released_names_and_stock_config(pair, tmp_path):
    stock, efficient = pair
    efficient.save_pretrained(tmp_path / "ours")
    stock.save_pretrained(tmp_path / "stock")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "stock"))
    assert ours.keys() == theirs.keys()
    assert {name.partition(".")[0] for name in ours} == {"audio_tower", "multi_modal_projector", "language_model"}
    assert {name for name in ours if "lm_head" in name} == {"language_model.lm_head.weight"}
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2AudioForConditionalGeneration"]


def test_names_in_files_are_not_names_in_memory(pair, tmp_path):
    """Why a checkpoint is resumed through ``from_pretrained``, not by ``load_state_dict`` as Trainer would."""
    pair[1].save_pretrained(tmp_path)
    assert not load_file(tmp_path / "model.safetensors").keys() & pair[1].state_dict().keys()


@pytest.mark.parametrize("layout", ["released", "in memory"])
def test_both_layouts_load_without_missing_keys(pair, tmp_path, layout):
    from safetensors.torch import save_file

    pair[1].save_pretrained(tmp_path)
    if layout == "in memory":
        state = {name: tensor.contiguous() for name, tensor in pair[1].state_dict().items()}
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(str(tmp_path))  # raises where a key is missing or left over
    stock = Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path)
    for name, tensor in pair[1].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert torch.equal(stock.state_dict()[name], tensor)


def test_without_our_answer_to_is_custom_code_the_names_would_differ(pair, tmp_path, monkeypatch):
    """The hook that tells transformers to treat the subclass as its own."""
    assert Qwen2AudioForConditionalGeneration.is_custom_code() is False
    monkeypatch.setattr(EfficientQwen2Audio, "is_custom_code", classmethod(lambda cls: True))
    pair[1].save_pretrained(tmp_path)
    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")
