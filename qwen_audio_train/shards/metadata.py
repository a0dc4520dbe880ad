"""``KEY.json``: parse within caps, say everything that is wrong with it, turn it into a record.

The one place that knows the three payloads; the writer, the index, the reader and the checks all ask here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from qwen_audio_train.samples import TEXT_TASK, ChatRecord, Clip, Origin, PreferenceRecord, PretrainRecord
from qwen_audio_train.shards.contract import ENCODINGS, MAX_CLIPS_PER_SAMPLE, MAX_METADATA_BYTES, MAX_METADATA_DEPTH

AnyRecord = PretrainRecord | ChatRecord | PreferenceRecord

SHARED_FIELDS = ("source", "split", "license")
PRETRAIN_FIELDS = ("task", "audio_language", "text_language", "text")
KNOWN_FIELDS = frozenset({"clips", *SHARED_FIELDS, *PRETRAIN_FIELDS, "prompt", "messages", "chosen", "rejected"})
ROLES = ("system", "user", "assistant")
LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""An escape that may be one half of a pair; what is no pair cannot be tokenised."""
SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")


def parse_metadata(raw: bytes) -> dict[str, Any]:
    """Parse a metadata member.

    Raises:
        ValueError: over the size or depth cap, not UTF-8, not JSON, NaN or infinity, a field twice, text that is no
            Unicode (a lone surrogate), or not an object.
    """
    if len(raw) > MAX_METADATA_BYTES:
        raise ValueError(f"metadata of {len(raw)} bytes; at most {MAX_METADATA_BYTES}")
    try:
        value = json.loads(
            raw.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_each_once,
        )
        if LONE_SURROGATE.search(raw):  # cheap, and rare: only then is the text built again to see
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError(f"metadata nested deeper than {MAX_METADATA_DEPTH} levels") from error
    if not isinstance(value, dict):
        raise ValueError(f"metadata is a {type(value).__name__}; expected a JSON object")
    if _deeper_than(value, MAX_METADATA_DEPTH):
        raise ValueError(f"metadata nested deeper than {MAX_METADATA_DEPTH} levels")
    return value


def metadata_problems(metadata: Mapping[str, Any]) -> list[str]:
    """Everything in which ``metadata`` breaks the contract; empty when sound."""
    problems = [_text_problem(metadata, name) for name in SHARED_FIELDS]
    problems += _clips_problems(metadata.get("clips"))
    if problem := _payload_problem(metadata):
        return [*filter(None, problems), problem]
    num_clips = len(metadata["clips"]) if isinstance(metadata.get("clips"), list) else 0
    if "task" in metadata:
        is_text = metadata["task"] == TEXT_TASK
        required = [name for name in PRETRAIN_FIELDS if name != "audio_language" or not is_text]
        problems += [_text_problem(metadata, name) for name in required]
        problems.append(_text_problem(metadata, "prompt") if metadata.get("prompt") is not None else None)
        wanted = 0 if is_text else 1
        of_task = f"of task '{TEXT_TASK}' has no" if is_text else "has one"
        problems.append(None if num_clips == wanted else f"a pretraining sample {of_task} clip, not {num_clips}")
        return [problem for problem in problems if problem]
    is_preference = "chosen" in metadata
    problems += _messages_problems(metadata["messages"], num_clips, "user" if is_preference else "assistant")
    if is_preference:
        problems += [_text_problem(metadata, name) for name in ("chosen", "rejected")]
        problems.append("chosen equals rejected" if metadata["chosen"] == metadata.get("rejected") else None)
    return [problem for problem in problems if problem]


def build_record(metadata: Mapping[str, Any], origin: Origin, clips: tuple[Clip, ...]) -> AnyRecord:
    """The record of sound metadata (see ``metadata_problems``)."""
    shared: dict[str, Any] = {name: metadata[name] for name in SHARED_FIELDS}
    shared |= {"origin": origin, "clips": clips}
    shared["extra"] = {name: value for name, value in metadata.items() if name not in KNOWN_FIELDS}
    if "task" in metadata:
        payload = {name: metadata.get(name, "") for name in PRETRAIN_FIELDS}
        return PretrainRecord(**shared, **payload, prompt=metadata.get("prompt"))
    messages = tuple(metadata["messages"])
    if "chosen" in metadata:
        return PreferenceRecord(**shared, messages=messages, chosen=metadata["chosen"], rejected=metadata["rejected"])
    return ChatRecord(**shared, messages=messages)


def payload_of(record: AnyRecord) -> dict[str, Any]:
    """The metadata that ``build_record`` made ``record`` of, without its clips: what a writer takes."""
    payload = {**record.extra, **{name: getattr(record, name) for name in SHARED_FIELDS}}
    if isinstance(record, PretrainRecord):
        payload |= {name: getattr(record, name) for name in PRETRAIN_FIELDS}
        return payload | ({"prompt": record.prompt} if record.prompt is not None else {})
    payload["messages"] = list(record.messages)
    if isinstance(record, PreferenceRecord):
        payload |= {"chosen": record.chosen, "rejected": record.rejected}
    return payload


def _refuse_constant(name: str) -> None:
    raise ValueError(f"metadata holds {name}, which is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"metadata holds {text}, which is beyond every float")
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"metadata has field {next(name for name in names if names.count(name) > 1)!r} twice")
    return fields


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        children: list[Any] = []
        for node in level:
            if isinstance(node, (dict, list)):
                children.extend(node.values() if isinstance(node, dict) else node)
        if not children:
            return False
        level = children
    return True


def _text_problem(metadata: Mapping[str, Any], name: str) -> str | None:
    value = metadata.get(name)
    if isinstance(value, str) and value.strip():
        return None
    return f"'{name}' is {value!r}; expected a text that is not empty"


def _payload_problem(metadata: Mapping[str, Any]) -> str | None:
    has_pair = "chosen" in metadata or "rejected" in metadata
    if "task" in metadata and not has_pair and "messages" not in metadata:
        return None
    if "messages" in metadata and "task" not in metadata and (not has_pair or "chosen" in metadata):
        return None
    found = [name for name in ("task", "messages", "chosen", "rejected") if name in metadata]
    return (
        f"payload fields {found}; expected one of: 'task' with 'text' (pretraining), 'messages' (chat), "
        "'messages' with 'chosen' and 'rejected' (preference)"
    )


def _clips_problems(clips: Any) -> list[str | None]:
    if not isinstance(clips, list):
        return ["'clips' is missing; expected a list of {num_samples, sha256, encoding}"]
    if len(clips) > MAX_CLIPS_PER_SAMPLE:
        return [f"{len(clips)} clips; at most {MAX_CLIPS_PER_SAMPLE}"]
    return [_clip_problem(position, clip) for position, clip in enumerate(clips)]


def _clip_problem(position: int, clip: Any) -> str | None:
    if not isinstance(clip, dict):
        return f"clips[{position}] is {clip!r}; expected an object"
    num_samples, sha256 = clip.get("num_samples"), clip.get("sha256")
    if not isinstance(num_samples, int) or isinstance(num_samples, bool) or not 0 <= num_samples < 1 << 32:
        return f"clips[{position}].num_samples is {num_samples!r}; expected a count of 16 kHz samples"
    if not isinstance(sha256, str) or not SHA256_PATTERN.fullmatch(sha256):
        return f"clips[{position}].sha256 is {sha256!r}; expected 64 hex digits"
    if clip.get("encoding") not in ENCODINGS:
        return f"clips[{position}].encoding is {clip.get('encoding')!r}; expected one of {', '.join(ENCODINGS)}"
    return None


def _messages_problems(messages: Any, num_clips: int, last_role: str) -> list[str | None]:
    if not isinstance(messages, list) or not messages:
        return [f"'messages' is {messages!r}; expected a list of turns"]
    problems = [_turn_problem(position, turn) for position, turn in enumerate(messages)]
    if any(problems):
        return problems
    if messages[-1]["role"] != last_role:
        problems.append(f"last turn is of role '{messages[-1]['role']}'; expected '{last_role}'")
    parts = [part for turn in messages if isinstance(turn["content"], list) for part in turn["content"]]
    num_audio = sum(part["type"] == "audio" for part in parts)
    if num_audio != num_clips:
        problems.append(f"{num_audio} audio parts for {num_clips} clips; the k-th part stands for the k-th clip")
    return problems


def _turn_problem(position: int, turn: Any) -> str | None:
    where = f"messages[{position}]"
    if not isinstance(turn, dict) or turn.get("role") not in ROLES:
        return f"{where} is no turn with a role of {', '.join(ROLES)}"
    content = turn.get("content")
    if isinstance(content, str) and content.strip():
        return None
    if not isinstance(content, list) or not content:
        return f"{where}.content is {content!r}; expected a text or a list of parts"
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("audio", "text") or (kind == "text" and not isinstance(part.get("text"), str)):
            return f"{where} has part {part!r}; expected {{'type': 'audio'}} or {{'type': 'text', 'text': ...}}"
        if kind == "audio" and turn["role"] != "user":
            return f"{where} is of role '{turn['role']}' and holds audio; only user turns may"
    return None
