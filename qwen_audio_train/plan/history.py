"""A run's accepted changes: a new segment that goes on where the one before stops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qwen_audio_train.errors import CheckpointError
from qwen_audio_train.plan.position import PlanPosition, changes
from qwen_audio_train.plan.segments import Segment

_REORDER = ("seed", "version")
_REORDER_BUDGET = ("slice_samples", "shuffle")


def continued(position: PlanPosition, identity: dict[str, Any], *, accept_changes: bool) -> PlanPosition:
    """The position in a plan of ``identity``: unchanged, or with a segment of it appended.

    A new segment begins at the next window's start, so the window that is under way is run to its end as it was
    planned, and nothing is lost or repeated. If its sources are not there any more as they were, its remaining steps
    cannot be made: they are left out, which the segment records, and the segment begins at once.

    A source goes on where it stood. One whose samples or whose order changed begins its next epoch: the rest of its old
    order means nothing in the new one.

    Raises:
        CheckpointError: something changed, and that is not accepted: everything that changed is named.
    """
    changed = changes(position.segments[-1].identity, identity)
    if not changed:
        return position
    if not accept_changes:
        raise CheckpointError(
            f"the checkpoint stands at step {position.step} of another plan; going on would repeat some samples and "
            f"leave others out. Changed: {'; '.join(changed)}. Restore these, accept the change, or start a new run "
            "from the checkpoint's weights"
        )
    segments = [segment for segment in position.segments if segment.first_window <= position.window]
    current = segments[-1]
    boundary = position.window + (1 if position.in_window else 0)
    dropped = ""
    if position.in_window and not _still_there(current.identity, identity):
        dropped = f"window {position.window} from its step {position.in_window} on"
    epoch, within = current.epoch_of(boundary)
    new = Segment(
        first_window=boundary,
        first_epoch=epoch + (1 if within else 0),
        identity=identity,
        bases=_bases(current, boundary, identity),
        changed=tuple(changed),
        dropped=dropped,
    )
    if boundary == current.first_window:
        # Nothing was drawn in the current one: the new one takes its place, its record stays.
        segments.pop()
        new = replace(new, changed=(*current.changed, *changed))
    moved = replace(position, segments=(*segments, new))
    if dropped or not position.in_window:
        moved = replace(moved, window=boundary, in_window=0, epoch=new.first_epoch)
    return moved


def _bases(current: Segment, window: int, identity: dict[str, Any]) -> dict[str, int]:
    reordered = any(current.identity[name] != identity[name] for name in _REORDER) or any(
        current.identity["budget"][name] != identity["budget"][name] for name in _REORDER_BUDGET
    )
    now = {entry["name"]: entry for entry in identity["sources"]}
    # Kept for those that are away, too: a source that comes back goes on.
    bases = dict(current.bases)
    for before, position in zip(current.identity["sources"], current.positions_of(window), strict=True):
        name = before["name"]
        bases[name] = position
        if name in now and (reordered or not _same(before, now[name])):
            bases[name] = -(-position // int(before["samples"])) * int(now[name]["samples"])
    return bases


def _still_there(before: dict[str, Any], now: dict[str, Any]) -> bool:
    entries = {entry["name"]: entry for entry in now["sources"]}
    return all(entry["name"] in entries and _same(entry, entries[entry["name"]]) for entry in before["sources"])


def _same(before: dict[str, Any], now: dict[str, Any]) -> bool:
    return all(before[field] == now[field] for field in ("index", "samples", "lengths"))
