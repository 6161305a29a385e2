"""Which waiting requests start next: calls take turns, similar lengths share a prefill, short ones pass long ones."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from .entries import Entry
from .pipeline import Pipeline
from .requests import Request
from .running import RunningBatch

_MAX_PADDING = 1.5  # largest allowed ratio of a batch's tokens, padding included, to its prompts' tokens
_SHORT_RATIO = 4  # a request is short beside a row that has yet to write this many times its tokens
_MAX_STALL_TOKENS = 4096  # most prompt tokens, padding included, that several requests may put between two steps


def next_group(
    waiting: Sequence[Entry],
    running: Sequence[Entry],
    batch: RunningBatch | None,
    pipeline: Pipeline,
    rows: int,
    max_batch_size: int,
) -> list[Entry]:
    """The entries to start now.

    Args:
        waiting: At least one, in the order of their turns.
        running: Those that have begun.
        batch: The running batch, if there is one.
        pipeline: Says what may share steps.
        rows: Most rows of the running batch.
        max_batch_size: Most requests that run as a whole batch.

    Returns:
        Entries to prefill together, or to run as a whole batch; empty if none can start yet.
    """
    first = waiting[0]
    in_slots = pipeline.decodes_in_slots(first.request)
    room = rows - len(running) + (batch is not None and batch.parked is not None)
    waits_for_all = first.company == "none" or not in_slots or any(entry.company == "none" for entry in running)
    if running and waits_for_all:
        return []
    if room < 1:
        # Calls take turns, but a short request does not wait for long ones: it goes first, whatever its turn.
        first = next((entry for entry in waiting if _may_go_first(entry, batch, pipeline)), first)
        if not _may_go_first(first, batch, pipeline):
            return []
        room = 1
    group = [first]
    if first.company == "all":
        limit = min(room, pipeline.max_prefill_rows or room) if in_slots else max_batch_size
        most_tokens = _MAX_STALL_TOKENS if running else None
        _extend(group, waiting[1:], limit, most_tokens, in_slots, pipeline)
    return group


def _may_go_first(entry: Entry, batch: RunningBatch | None, pipeline: Pipeline) -> bool:
    """Whether a running row should make place: the request is much shorter than what that row has yet to write."""
    request = entry.request
    return (
        batch is not None
        and batch.parked is None
        and entry.company == "all"
        and request.max_new_tokens * _SHORT_RATIO <= batch.most_remaining
        and len(request.prompt_ids) <= _MAX_STALL_TOKENS
        and pipeline.decodes_in_slots(request)
    )


def _extend(
    group: list[Entry],
    others: Sequence[Entry],
    limit: int,
    most_tokens: int | None,
    in_slots: bool,
    pipeline: Pipeline,
) -> None:
    """Add entries that may be prefilled, or run, with the first of `group` without much padding."""

    def key(request: Request) -> Hashable | None:
        return request.fits_budget if in_slots else request.batch_key

    shared = key(group[0].request)
    longest = total = len(group[0].request.prompt_ids)
    for entry in others:
        if len(group) == limit:
            return
        tokens = len(entry.request.prompt_ids)
        padded = (len(group) + 1) * max(longest, tokens)
        if (
            shared is not None
            and entry.company == "all"
            and pipeline.decodes_in_slots(entry.request) == in_slots
            and key(entry.request) == shared
            and padded <= _MAX_PADDING * (total + tokens)
            and (most_tokens is None or padded <= most_tokens)
        ):
            group.append(entry)
            longest, total = max(longest, tokens), total + tokens
