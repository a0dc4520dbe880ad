#!/usr/bin/env python
"""Real sounds out of eight Debian packages (games, drum kits, a synthesiser), labelled by rules on their file names.

Makes sounds_pretrain_{train,dev,test} for the task ``sound``. Where a label comes from several packages, the package
with the fewest clips of it is the test of that label, so that no session is on both sides; else the split is by file
name without its number. Rules: data_prep/sound_rules.py.

    python -m data_prep.sounds --output data
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.debian_packages import fetch_and_unpack, package_arguments_help
from data_prep.held_out import Candidate, bucket_split, key_of, separate, write_splits
from data_prep.sound_rules import SOUND_PACKAGES, Rules, SoundPackage
from qwen_audio_train.shards.contract import MAX_MEMBER_BYTES
from qwen_audio_train.shards.prepare import SampleSpec, as_flac, corpus_arguments, read_audio_file, run_corpus

REVISION = 1
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".mp3", ".aif", ".aiff")
READ_AS = {".oga": "ogg"}
NO_LANGUAGE = "zxx"
"""ISO 639: no linguistic content."""


def label_of(name: str, rules: Rules) -> str | None:
    """Label of ``/path/without/suffix`` inside its package, or None."""
    for pattern, label in rules:
        if re.search(pattern, name.lower()):
            return name.rpartition("/")[2].lower().replace("_", " ") if label == "=" else label
    return None


def read_sound(path: str) -> tuple[bytes, str]:
    """As ``read_audio_file``, for .oga too. Raises ValueError for what the contract has no decoder for."""
    encoding = READ_AS.get(Path(path).suffix.lower())
    if encoding is None:
        return read_audio_file(path)
    if Path(path).stat().st_size > MAX_MEMBER_BYTES:
        raise ValueError(f"'{path}' is over {MAX_MEMBER_BYTES} bytes")
    return as_flac(Path(path).read_bytes(), encoding)


def samples_of(unpacked: Path, packages: Iterable[SoundPackage]) -> Iterator[Candidate]:
    """Every sound of every package; those without a rule, and unreadable kinds, are listed as left out."""
    found = [entry for package in packages for entry in _sounds_of(unpacked, package)]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for package, _, _, label in found:
        if label is not None:
            counts[label][package.name] += 1
    for package, path, name, label in found:
        if label is None:
            split, reason = "train", f"no rule for this name: {package.name}"
        else:
            split, reason = _split_of(package, name, label, counts[label]), None
            if path.suffix.lower() in (".aif", ".aiff"):
                reason = "AIFF is no encoding of the contract"
        metadata = {
            "task": "sound",
            "audio_language": NO_LANGUAGE,
            "text_language": "en",
            "text": label,
            "source": package.name,
            "license": package.license,
            "file": name,
        }
        yield Candidate(split, SampleSpec(key_of(package.name, name), metadata, (str(path),), reason))


def _sounds_of(unpacked: Path, package: SoundPackage) -> Iterator[tuple[SoundPackage, Path, str, str | None]]:
    root = unpacked / package.name / package.root
    is_stamps = package.name.startswith("tuxpaint")
    for path in sorted(root.rglob("*")):
        name = f"/{path.relative_to(root).with_suffix('').as_posix()}"
        # Links repeat a file; Tux Paint's symbols and descriptions are speech, which tuxpaint.py takes.
        if path.suffix.lower() not in AUDIO_SUFFIXES or path.is_symlink() or ("/music/" in name and not is_stamps):
            continue
        if is_stamps and ("_desc" in name or name.startswith("/symbols/")):
            continue
        yield package, path, name, label_of(name, package.rules)


def _split_of(package: SoundPackage, name: str, label: str, counts: Counter[str]) -> str:
    if len(counts) > 1:
        held_out = min(counts, key=lambda other: (counts[other], other))
        return "test" if package.name == held_out else "train"
    family = re.sub(r"[-_ 0-9]+$", "", name.rpartition("/")[2])
    return bucket_split(f"{label}/{family or name}")


def prepare(args: argparse.Namespace) -> None:
    """Fetch, unpack, and write the three sets."""
    packages = [package for package in SOUND_PACKAGES if package.name not in args.without]
    unpacked, versions = fetch_and_unpack([package.name for package in packages], "sounds", args)
    recipe = {"revision": REVISION, "packages": versions}
    candidates = separate(samples_of(unpacked, packages), holds_out_texts=False)
    write_splits(candidates, "sounds", args, license="by package, see each sample", recipe=recipe, read_clip=read_sound)


def build_parser() -> argparse.ArgumentParser:
    """The shared arguments and the packages to leave out."""
    parser = corpus_arguments(__doc__.splitlines()[0], package_arguments_help(), input_required=False)
    names = [package.name for package in SOUND_PACKAGES]
    parser.add_argument("--without", nargs="*", default=[], choices=names, help="packages to leave out (they are big)")
    return parser


if __name__ == "__main__":
    run_corpus(prepare, build_parser())
