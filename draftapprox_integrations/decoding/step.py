"""One token of every row: `Step`, eager or recorded once as a CUDA graph and replayed; `PlainStep` for any cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from ..models.attention import Observer, observing
from ..models.loading import input_device
from .cache import SlotCache

logger = logging.getLogger(__name__)

# Models whose steps could not be recorded: said once, and not tried again.
_unrecorded: WeakSet[PreTrainedModel] = WeakSet()

# record(work, warm_up) -> Recorded
Record: TypeAlias = "Callable[[Callable[[], None], Callable[[], object]], Recorded]"


class Onlooker(Observer, Protocol):
    """An observer that is told when a pass begins: also those that warm up and record, between two steps."""

    def begin_pass(self) -> None:
        """A forward pass begins."""


class Step:
    """Feeds one token of every row to a model.

        logits = step(ids, positions)      # [rows, 1], [rows, 1] -> [rows, vocabulary]

    On CUDA a step is recorded once per number of rows (powers of two) and size of the buffers, and replayed: the launch
    of a graph in place of a thousand kernels. Where that fails, a warning says why, and steps run eagerly.

    Args:
        view: From `attention_view`.
        cache: Its first slots are the rows.
        onlooker: Sees the queries and keys of the rows; its tensors must stay where they are.
        preserved: The onlooker's tensors that a step changes.
        record: Records steps; None: CUDA graphs on CUDA, nothing elsewhere.
    """

    def __init__(
        self,
        view: PreTrainedModel,
        cache: SlotCache,
        onlooker: Onlooker | None = None,
        preserved: Sequence[Tensor] = (),
        record: Record | None = None,
    ):
        self._view, self.cache, self.device = view, cache, input_device(view)
        self._onlooker = onlooker
        self._observer: Observer = cache if onlooker is None else _Both(cache, onlooker)
        self._preserved = preserved
        self._record = CudaRecorder() if record is None and self.device.type == "cuda" else record
        if view in _unrecorded:
            self._record = None
        self._graphs: dict[int, _Graph] = {}
        self._version = -1

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Feed one token per row.

        Args:
            ids, positions: LongTensor [rows, 1], on the model's device.

        Returns:
            Logits [rows, vocabulary], valid until the next step.
        """
        rows, cache = len(ids), self.cache
        bucket = min(1 << (rows - 1).bit_length(), cache.slots)  # rows of a recorded step
        if self._record is not None and self._is_recorded(self._record, rows, bucket):
            logits = self._graphs[bucket].replay(ids, positions)[:rows]
        else:
            cache.begin(rows)
            logits = self._forward(ids, positions)
        cache.advance(rows)
        return logits

    @property
    def is_recorded(self) -> bool:
        """Whether steps are recorded, so that buffers should stay."""
        return self._record is not None

    def _is_recorded(self, record: Record, rows: int, bucket: int) -> bool:
        """Record a step of `bucket` rows if there is none for the buffers as they are; False where that fails."""
        cache = self.cache
        try:
            cache.prepare_static(rows)
            if self._version != cache.version:
                self._graphs.clear()
                self._version = cache.version
            if bucket not in self._graphs:
                self._graphs[bucket] = _Graph(self, bucket, record, [*self._preserved, *cache.states()])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what cannot be recorded fails in many ways
            logger.warning("steps of %s are not recorded: %s", type(self._view).__name__, error)
            self._record = None
            _unrecorded.add(self._view)
            return False
        return True

    def forward_static(self, ids: Tensor, positions: Tensor) -> Tensor:
        """A step whose shapes and addresses do not depend on the slots' counts. Host counts are not advanced."""
        self.cache.begin_static(len(ids))
        return self._forward(ids, positions)

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        if self._onlooker is not None:
            self._onlooker.begin_pass()
        with observing(self._observer), torch.inference_mode():
            out = self._view(
                input_ids=ids,
                position_ids=positions,
                attention_mask=torch.ones(len(ids), 1, 1, 1, dtype=torch.bool, device=ids.device),  # used as it comes
                past_key_values=self.cache,
                use_cache=True,
            )
        logits: Tensor = out.logits[:, -1]
        return logits


class PlainStep:
    """A step over any cache of transformers, which grows: for models whose states have no slots.

    Args:
        view: From `attention_view`.
        cache: The prefilled cache.
        mask: LongTensor [rows, tokens so far], 0 at padding.
        onlooker: Sees queries and keys.
    """

    def __init__(self, view: PreTrainedModel, cache: Cache, mask: Tensor, onlooker: Onlooker):
        self._view, self._cache, self._mask, self._onlooker = view, cache, mask, onlooker
        self._padded = not bool(mask.all())

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        """As `Step.__call__`."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(ids), 1)], dim=1)
        self._onlooker.begin_pass()
        with observing(self._onlooker), torch.inference_mode():
            out = self._view(
                input_ids=ids,
                position_ids=positions,
                attention_mask=self._mask if self._padded else None,
                past_key_values=self._cache,
                use_cache=True,
            )
        logits: Tensor = out.logits[:, -1]
        return logits


class _Both:
    """Two observers, of which the first computes the attention and the second looks on."""

    def __init__(self, cache: SlotCache, other: Onlooker):
        self._cache, self._other = cache, other

    def observe(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Any:
        attend = self._cache.observe(layer, query, key, mask, scaling)
        step = self._cache.owner(layer, key).step
        self._other.observe(layer, query, key, None if step is None else step.bias, scaling)
        return attend


class Recorded(Protocol):
    """Work that was recorded once, with all of its addresses, and can be run again."""

    def replay(self) -> None:
        """Run it on what its tensors hold now."""


class CudaRecorder:
    """Records work as CUDA graphs that share their memory: only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Callable[[], None], warm_up: Callable[[], object]) -> Recorded:
        """Record `work`, after two runs of `warm_up` on another stream, as CUDA asks for: they compile kernels too.

        Raises:
            RuntimeError: `work` synchronizes, or reads values of tensors.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            warm_up()
            warm_up()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": what other threads do on the GPU meanwhile is none of this graph's business.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        self._pool = graph.pool()
        return graph


class _Graph:
    """A recorded step of a number of rows, with tensors of its own for ids, positions and logits.

    Running a step without counting it changes nothing but the entry that the next step writes, and the states that
    `preserved` names; those are put back after the warm-up.
    """

    def __init__(self, step: Step, rows: int, record: Record, preserved: Sequence[Tensor]):
        self._ids = torch.zeros(rows, 1, dtype=torch.long, device=step.device)
        self._positions, self._logits = torch.zeros_like(self._ids), torch.empty(0)
        saved = [tensor.clone() for tensor in preserved]

        def work() -> None:
            self._logits = step.forward_static(self._ids, self._positions)
            step.cache.advance_static()

        with torch.inference_mode():
            self._recorded = record(work, lambda: step.forward_static(self._ids, self._positions))
            for tensor, before in zip(preserved, saved, strict=True):
                tensor.copy_(before)

    def replay(self, ids: Tensor, positions: Tensor) -> Tensor:
        self._ids[: len(ids)].copy_(ids)
        self._positions[: len(ids)].copy_(positions)
        self._recorded.replay()
        return self._logits
