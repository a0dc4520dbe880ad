"""Each rule fires with its own sentence, and all of them at once."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_audio_train.config.adapter import AdapterKind
from qwen_audio_train.config.augment import AugmentConfig
from qwen_audio_train.config.load import typed
from qwen_audio_train.config.model import Precision, Quantization
from qwen_audio_train.config.optim import OptimName
from qwen_audio_train.config.preference import Reference
from qwen_audio_train.config.stages import DpoConfig, EvaluateConfig, ExportRecipeConfig, PretrainConfig, SftConfig
from qwen_audio_train.config.validate import problems_of
from qwen_audio_train.errors import ConfigError

LORA, BFLOAT16, STORED = AdapterKind.lora, Precision.bfloat16, Reference.stored
NF4, ADAMW_8BIT = Quantization.nf4, OptimName.adamw_8bit
ZERO2 = "{here}/zero2.json"
QLORA = {"adapter.kind": LORA, "model.quantization": NF4}
FROZEN = {"trainable.encoder": False, "trainable.projector": False, "trainable.llm": False}
# recipe, what is set, how the one problem begins, and a word of its remedy
RULES: list[tuple[str, dict[str, Any], str, str]] = [
    ("pretrain", {"run.dir": ""}, "run.dir is empty", "run.dir=runs/my_run"),
    ("pretrain", {"run.max_steps": None}, "run.max_steps=None and run.epochs=None", "exactly one"),
    ("pretrain", {"run.epochs": 1.0}, "run.max_steps=3 and run.epochs=1.0", "exactly one"),
    ("pretrain", {"run.max_steps": 0}, "run.max_steps=0", "above 0"),
    ("pretrain", {"run.max_steps": None, "run.epochs": -1.0}, "run.epochs=-1.0", "above 0"),
    ("pretrain", {"data.train": ""}, "data.train is empty", "data_prep/README.md"),
    ("pretrain", {"data.train": "/nowhere"}, "data.train=/nowhere is not a shard set", "data_prep/README.md"),
    ("pretrain", {"data.num_workers": -1}, "data.num_workers=-1", "0 or more"),
    ("pretrain", {"data.num_wordings": 0}, "data.num_wordings=0", "at least 1"),
    ("pretrain", {"data.encoded_cache_gb": 0.0}, "data.encoded_cache_gb=0.0", "above 0"),
    ("evaluate", {"evaluation.encoded_cache_gb": 0.0}, "evaluation.encoded_cache_gb=0.0", "above 0"),
    (
        "dpo",
        {"preference.reference": STORED, "data.augment": AugmentConfig(gain_db_max=3.0)},
        "data.augment changes clips in every epoch",
        "preference.reference=live",
    ),
    (
        "dpo",
        {
            "preference.reference": STORED,
            "data.encode_once": True,
            "trainable.encoder": False,
            "data.mask_audio_spans": 2,
        },
        "data.mask_audio_spans=2 changes clips in every epoch",
        "preference.reference=live",
    ),
    ("pretrain", {"data.mask_audio_spans": 2}, "data.mask_audio_spans=2", "data.encode_once=true"),
    ("pretrain", FROZEN, "trainable: nothing trains", "turn on at least one"),
    (
        "pretrain",
        {"adapter.kind": LORA, "trainable.encoder": False, "trainable.llm": False},
        "adapter.kind=lora has no place",
        "adapter=none",
    ),
    ("pretrain", {"adapter.kind": LORA, "adapter.rank": 0}, "adapter.rank=0", "at least 1"),
    ("pretrain", {"data.encode_once": True}, "data.encode_once=true needs a frozen encoder", "trainable.encoder=false"),
    ("pretrain", {"model.precision": BFLOAT16}, "model.precision=bfloat16", "runtime=zero2"),
    ("pretrain", {"optim.name": ADAMW_8BIT, "runtime.deepspeed": ZERO2}, "optim.name=adamw_8bit", "optim.name=adamw"),
    (
        "pretrain",
        {"runtime.compile": True, "runtime.deepspeed": ZERO2},
        "runtime.compile=true",
        "runtime.compile=false",
    ),
    ("pretrain", {"model.quantization": NF4}, "model.quantization=nf4 freezes", "adapter=lora"),
    ("pretrain", {**QLORA, "trainable.llm": False}, "model.quantization=nf4 freezes", "trainable.llm=true"),
    (
        "pretrain",
        {**QLORA, "runtime.deepspeed": ZERO2},
        "model.quantization=nf4 cannot go with runtime.d",
        "runtime=auto",
    ),
    ("pretrain", {**QLORA, "runtime.compile": True}, "model.quantization=nf4 cannot go", "runtime.compile=false"),
    ("pretrain", {**QLORA, "model.start_from": "{here}/adapter"}, "model.quantization=nf4 with", "merged/"),
    ("pretrain", {"model.start_from": "/nowhere"}, "model.start_from=/nowhere does not exist", "run the stage before"),
    ("pretrain", {"model.start_from": "runs/final"}, "model.start_from=runs/final does not exist", "mend the path"),
    ("pretrain", {"model.start_from": "{here}"}, "model.start_from={here} holds neither", "finished?"),
    ("sft", {"model.start_from": None}, "model.start_from is not set", "runs/pretrain/final"),
    ("dpo", {"model.start_from": None}, "model.start_from is not set", "runs/pretrain/final"),
    ("pretrain", {"batching.bins_per_step": 0}, "batching.bins_per_step=0", "at least 1"),
    ("pretrain", {"batching.encoder_frames_per_bin": 1499}, "batching.encoder_frames_per_bin=1499", "raise it"),
    ("pretrain", {"batching.llm_tokens_per_bin": 0}, "batching.llm_tokens_per_bin=0", "at least 1"),
    ("pretrain", {"batching.window_samples": 0}, "batching.window_samples=0", "at least 1"),
    ("pretrain", {"batching.window_samples": 3}, "batching.window_samples=3 cannot fill", "raise it"),
    ("pretrain", {"checkpoint.every_steps": 0}, "checkpoint.every_steps=0", "at least 1"),
    ("pretrain", {"checkpoint.keep_last": 0}, "checkpoint.keep_last=0", "at least 1"),
    ("pretrain", {"checkpoint.keep_every_steps": 750}, "checkpoint.keep_every_steps=750", "a multiple of"),
    ("pretrain", {"tracking.log_every_steps": 0}, "tracking.log_every_steps=0", "at least 1"),
    ("sft", {"tracking.peak_tflops": 0.0}, "tracking.peak_tflops=0.0 must be above 0", "null to look the GPU up"),
    ("pretrain", {"optim.learning_rate": 0.0}, "optim.learning_rate=0.0", "above 0"),
    ("pretrain", {"optim.final_learning_rate_ratio": 1.5}, "optim.final_learning_rate_ratio=1.5", "[0, 1]"),
    ("pretrain", {"optim.beta1": 1.0}, "optim.beta1=1.0", "[0, 1)"),
    ("pretrain", {"optim.beta2": -0.1}, "optim.beta2=-0.1", "[0, 1)"),
    ("pretrain", {"optim.warmup_steps": -1}, "optim.warmup_steps=-1", "0 or more"),
    ("dpo", {"preference.beta": 0.0}, "preference.beta=0.0", "above 0"),
    ("dpo", {"preference.loss_types": []}, "preference.loss_types is empty", "[sigmoid]"),
    ("dpo", {"preference.loss_types": ["sigmoidal"]}, "preference.loss_types has unknown sigmoidal", "known: sigmoid"),
    ("dpo", {"preference.loss_weights": [1.0, 2.0]}, "preference.loss_weights has 2 entries for 1", "one each"),
    ("pretrain", {"optim.max_skipped_consecutive": 0}, "optim.max_skipped_consecutive=0", "at least 1"),
    ("pretrain", {"optim.max_skipped_share": 1.5}, "optim.max_skipped_share=1.5", "[0, 1]"),
    ("pretrain", {"optim.spike_factor": 0.5}, "optim.spike_factor=0.5", "above 1, or 0"),
    ("pretrain", {"optim.spike_window_steps": 0}, "optim.spike_window_steps=0", "at least 1"),
    ("pretrain", {"runtime.hang_seconds": -1.0, "runtime.hang_exit_seconds": 0.0}, "runtime.hang_seconds=-1.0", "0 to"),
    ("pretrain", {"runtime.hang_exit_seconds": 900.0}, "runtime.hang_exit_seconds=900.0", "comes first"),
    ("pretrain", {"runtime.hang_seconds": 0.0}, "runtime.hang_exit_seconds=1800.0", "comes first; or 0"),
    ("pretrain", {"runtime.deepspeed": "{here}/zero0.json"}, "runtime.deepspeed={here}/zero0.json: zero_", "1, 2 or 3"),
    (
        "pretrain",
        {"runtime.deepspeed": "{here}/unchecked.json"},
        "runtime.deepspeed={here}/unchecked.json turns bf16.check_grad_overflow off",
        "would be applied",
    ),
    ("pretrain", {"runtime.deepspeed": "/nowhere.json"}, "runtime.deepspeed=/nowhere.json does not exist", "configs/"),
    ("pretrain", {"runtime.deepspeed": "{here}/bad.json"}, "runtime.deepspeed={here}/bad.json is not JSON", "JSON"),
    ("pretrain", {"runtime.deepspeed": "{here}/empty.json"}, "runtime.deepspeed={here}/empty.json has no", "zero_opt"),
    ("evaluate", {"model.start_from": None}, "model.start_from is not set", "which model folder"),
    ("evaluate", {"model.start_from": "/nowhere"}, "model.start_from=/nowhere does not exist", "mend the path"),
    ("evaluate", {"evaluation.output": ""}, "evaluation.output is empty", "where scores"),
    ("evaluate", {"evaluation.pretrain_set": ""}, "evaluation.pretrain_set is empty", "README"),
    (
        "evaluate",
        {"evaluation.preference_set": "{here}/set"},
        "evaluation.preference_set needs",
        "evaluation.reference",
    ),
    ("evaluate", {"evaluation.reference": "/nowhere"}, "evaluation.reference=/nowhere does not exist", "mend the path"),
    (
        "evaluate",
        {"evaluation.preference_set": "/no", "evaluation.reference": "a/b"},
        "evaluation.preference_set=",
        "REA",
    ),
    ("evaluate", {"evaluation.limit": 0}, "evaluation.limit=0", "null for all"),
    ("evaluate", {"evaluation.max_new_tokens": 0}, "evaluation.max_new_tokens=0", "at least 1"),
    ("evaluate", {"evaluation.llm_tokens_per_batch": 0}, "evaluation.llm_tokens_per_batch=0", "at least 1"),
    ("export", {"export.stage": ""}, "export.stage is empty", "runs/dpo/final"),
    ("export", {"export.stage": "/nowhere"}, "export.stage=/nowhere does not exist", "mend the path"),
    ("export", {"export.output": ""}, "export.output is empty", "where the export goes"),
    ("export", {"export.verify_set": ""}, "export.verify_set is empty", "README"),
]


def change(config: Any, path: str, value: Any) -> Any:
    group, name = path.split(".")
    return replace(config, **{group: replace(getattr(config, group), **{name: value})})


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder with a described set and DeepSpeed files."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "set").mkdir()
    (folder / "set" / "dataset.json").write_text("{}")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "bad.json").write_text("{")
    (folder / "empty.json").write_text("{}")
    (folder / "zero2.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    (folder / "zero0.json").write_text(json.dumps({"zero_optimization": {"stage": 0}}))
    unchecked = {"zero_optimization": {"stage": 2}, "bf16": {"check_grad_overflow": False}}
    (folder / "unchecked.json").write_text(json.dumps(unchecked))
    return folder


@pytest.fixture(scope="module")
def good(here) -> dict[str, Any]:
    """A configuration of each recipe that can run."""
    every: dict[str, Any] = {
        "pretrain": PretrainConfig(),
        "sft": SftConfig(),
        "dpo": DpoConfig(),
        "evaluate": EvaluateConfig(),
        "export": ExportRecipeConfig(),
    }
    for name in ("pretrain", "sft", "dpo"):
        for path, value in {"run.dir": "runs/x", "run.max_steps": 3, "data.train": str(here / "set")}.items():
            every[name] = change(every[name], path, value)
    for name in ("sft", "dpo", "evaluate"):
        every[name] = change(every[name], "model.start_from", "owner/name")
    every["evaluate"] = change(every["evaluate"], "evaluation.output", "out")
    every["evaluate"] = change(every["evaluate"], "evaluation.pretrain_set", str(here / "set"))
    for path, value in {"stage": "owner/name", "output": "out", "verify_set": str(here / "set")}.items():
        every["export"] = change(every["export"], f"export.{path}", value)
    return every


@pytest.mark.parametrize("recipe", ["pretrain", "sft", "dpo", "evaluate", "export"])
def test_what_can_run_has_no_problem(good, recipe):
    assert problems_of(good[recipe]) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"run.max_steps": None, "run.epochs": 0.1},
        {"model.start_from": "Qwen/Qwen2-Audio-7B"},
        {"model.precision": BFLOAT16, "adapter.kind": LORA},
        {"model.precision": BFLOAT16, "runtime.deepspeed": "{here}/zero2.json"},
        {"data.encode_once": True, "trainable.encoder": False, "data.mask_audio_spans": 2},
    ],
)
def test_what_rules_allow(good, here, changes):
    assert problems_of(changed(good["pretrain"], changes, here)) == []


def changed(config: Any, changes: dict[str, Any], here: Path) -> Any:
    for path, value in changes.items():
        config = change(config, path, value.replace("{here}", str(here)) if isinstance(value, str) else value)
    return config


@pytest.mark.parametrize(("recipe", "changes", "begins", "remedy"), RULES, ids=[rule[2] for rule in RULES])
def test_rule(good, here, recipe, changes, begins, remedy):
    problems = problems_of(changed(good[recipe], changes, here))
    assert len(problems) == 1, problems
    assert problems[0].startswith(begins.replace("{here}", str(here)))
    assert remedy in problems[0]


def test_all_problems_at_once_in_one_error(good):
    config = good["dpo"]
    for path, value in {"run.dir": "", "optim.learning_rate": -1.0, "preference.beta": 0.0, "data.train": ""}.items():
        config = change(config, path, value)
    problems = problems_of(config)
    assert [problem.split()[0].split("=")[0] for problem in problems] == [
        "run.dir", "data.train", "optim.learning_rate", "preference.beta",
    ]  # fmt: skip
    text = str(ConfigError(problems))
    assert text.count("\n- ") == 3, "one line each"


def test_typed_refuses_with_every_problem():
    from omegaconf import OmegaConf

    raw = OmegaConf.structured(PretrainConfig)
    with pytest.raises(ConfigError) as error:
        typed(raw, PretrainConfig)
    assert list(error.value.problems) == problems_of(PretrainConfig())[1:], "a run that names no folder is given one"
    assert len(error.value.problems) == 2


def test_unknown_configuration_is_a_programming_error():
    with pytest.raises(TypeError, match="no rules for"):
        problems_of(object())


def test_known_loss_types_are_those_that_trl_names():
    from trl import DPOConfig

    from qwen_audio_train.config.preference import LOSS_TYPES

    documented = DPOConfig.__doc__.split("loss_type (")[1].split("If multiple")[0]
    assert set(LOSS_TYPES) == set(__import__("re").findall(r"`'(\w+)'`", documented))


def test_every_setting_has_a_place_in_the_golden_files():
    """A field that no recipe shows would be a setting that nobody finds."""
    golden = Path(__file__).parents[2] / "golden"
    shown = yaml.safe_load((golden / "config_dpo.yaml").read_text())
    for field in fields(DpoConfig):
        assert set(shown[field.name]) == {inner.name for inner in fields(getattr(DpoConfig(), field.name))}
