"""What training/saving.py and checkpoint/universal.py assume of DeepSpeed's and the Trainer's checkpoints."""

from __future__ import annotations

import inspect
import re

import pytest
from transformers import Trainer

engine = pytest.importorskip("deepspeed.runtime.engine")


def test_an_engine_writes_through_one_method_that_can_be_caught():
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

    assert list(inspect.signature(TorchCheckpointEngine.save).parameters) == ["self", "state_dict", "path"]
    named = inspect.signature(engine.DeepSpeedEngine.save_checkpoint).parameters
    assert {"save_dir", "tag", "save_latest", "exclude_frozen_parameters"} <= named.keys()
    # Between its barriers it writes with that method and copies scripts, which we leave out; nothing else.
    for method in ("_save_checkpoint", "_save_zero_checkpoint"):
        source = inspect.getsource(getattr(engine.DeepSpeedEngine, method))
        assert "self.checkpoint_engine.save(" in source
        assert re.findall(r"\b(?:open|copyfile|torch\.save)\(", source) == [], method
    assert "self._copy_recovery_script(" in inspect.getsource(engine.DeepSpeedEngine._save_zero_checkpoint)


def test_the_trainer_saves_no_more_than_we_do_in_its_place():
    source = inspect.getsource(Trainer._save_checkpoint)
    called = sorted(set(re.findall(r"self\.(_?save\w*|state\.save\w*)\(", source)))
    assert called == [
        "_save_optimizer_and_scheduler",
        "_save_rng_state",
        "_save_scaler",
        "save_model",
        "state.save_to_json",
    ]


def test_universal_loading_under_zero3_still_needs_mending():
    """When this fails, see whether ``mend_loaded`` can go."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    source = inspect.getsource(DeepSpeedZeroOptimizer_Stage3.load_hp_checkpoint_state_from_checkpoint_dir_stage3)
    assert "self.optimizer.state[fp32_param]['step'] = state_step" in source
    assert '["param_groups"][0].items()' in source
