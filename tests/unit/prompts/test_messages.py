from __future__ import annotations

import pytest

from qwen_audio_train.errors import SampleError
from qwen_audio_train.prompts.messages import AUDIO, SpecialText, Turn, checked_turns, require_answer, require_open
from qwen_audio_train.samples import Origin

ORIGIN = Origin("toy", "000.tar", "a")
SPECIAL = SpecialText(["<|AUDIO|>", "<|im_start|>"])
USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Yes"}
CLIP = {"type": "audio"}


def _check(*messages, num_clips: int = 0):
    return checked_turns(messages, num_clips=num_clips, special=SPECIAL, origin=ORIGIN)


def test_default_system_turn_is_inserted_only_where_none_is() -> None:
    assert _check(USER)[0] == Turn("system", ("You are a helpful assistant.",))
    turns = _check({"role": "system", "content": "Be brief."}, USER)
    assert turns == (Turn("system", ("Be brief.",)), Turn("user", ("Hi",)))


def test_parts_keep_their_order() -> None:
    turns = _check({"role": "user", "content": [{"type": "text", "text": "a"}, CLIP]}, num_clips=1)
    assert turns[1].parts == ("a", AUDIO)


@pytest.mark.parametrize(
    ("messages", "num_clips", "says"),
    [
        ([], 0, "at least one turn"),
        ([{"role": "user"}], 0, "'role' and 'content'"),
        ([{"role": "human", "content": "Hi"}], 0, "role 'human'"),
        ([{"role": "system", "content": "a"}], 0, "no user turn"),
        ([USER, USER], 0, "expected 'assistant'"),
        ([ANSWER], 0, "expected 'user'"),
        ([USER, {"role": "system", "content": "a"}], 0, "expected 'assistant'"),
        ([USER, {"role": "assistant", "content": ""}], 0, "empty answer"),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}, CLIP]}], 1, "audio comes first"),
        ([{"role": "user", "content": []}], 0, "empty user turn"),
        ([{"role": "user", "content": 3}], 0, "got int"),
        ([{"role": "user", "content": [CLIP]}], 0, "1 audio part(s) but the sample has 0 clip(s)"),
        ([USER], 1, "0 audio part(s) but the sample has 1 clip(s)"),
        ([{"role": "user", "content": [{"type": "image"}]}], 0, "must be {'type': 'audio'}"),
        ([{"role": "user", "content": [{"type": "text"}]}], 0, "must be a string"),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "audio": "b"}]}], 0, "two parts"),
        ([{"role": "user", "content": "see <|AUDIO|>"}], 0, "'<|AUDIO|>' at character 4"),
        ([{"role": "system", "content": "<|im_start|>"}, USER], 0, "'<|im_start|>'"),
    ],
)
def test_bad_conversation_is_refused_with_its_origin(messages: list, num_clips: int, says: str) -> None:
    with pytest.raises(SampleError) as caught:
        _check(*messages, num_clips=num_clips)
    assert says in str(caught.value)
    assert "sample 'a'" in str(caught.value)


def test_sft_needs_an_answer_and_a_prompt_a_last_user_turn() -> None:
    with pytest.raises(SampleError, match="no assistant turn"):
        require_answer(_check(USER), ORIGIN)
    with pytest.raises(SampleError, match="must end with a user turn"):
        require_open(_check(USER, ANSWER), ORIGIN)
    require_answer(_check(USER, ANSWER), ORIGIN)
    require_open(_check(USER), ORIGIN)
