"""Observe a model's attention without changing the model.

transformers looks up the attention function of a model by a name in its config. The function registered here calls the
observer that is active in the current context, and then computes attention: with the kernel that the user's model has
(`backends`), or SDPA. The observed model is a *view*: new modules around the same tensors with a config of their own,
so the user's model keeps its config.

    view = attention_view(model)
    with observing(observer):
        view(input_ids)           # observer.observe(...) is called once per attention layer
    model(input_ids)              # does not call it; nor does `view` in another thread
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from itertools import chain
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .backends import Backend, backend_of
from .compatibility import check_call, check_model
from .locks import ForkSafeLock

IMPLEMENTATION = "draftapprox_sdpa"
_BACKEND = "_draftapprox_backend"  # attribute of a view's attention layers

# attend(query, key, value) -> [batch, new tokens, heads, head_dim]; arguments as in `Observer.observe`
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Observer(Protocol):
    """Receives the queries and keys of each attention layer while the model runs."""

    def observe(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Attend | None:
        """Observe an attention layer before it runs.

        Args:
            layer: Index of the layer.
            query: [batch, heads, new tokens, head_dim], after rotary embedding.
            key: [batch, kv_heads, all tokens so far, head_dim], after rotary embedding, not repeated for GQA.
            mask: None (causal, nothing padded), or broadcastable to [batch, heads, new tokens, all tokens]:
                bool (True: may attend) or float (added to the logits).
            scaling: Factor of query @ key in this layer.

        Returns:
            None for the view's own attention, or a function that computes the layer's attention in this pass instead.

        Raises:
            StopForward: ends the forward pass here.
        """


class SelfAttending(Protocol):
    """Stands in for the keys and values of a cache layer that are not dense tensors, and computes attention to them."""

    def attend(self, query: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """Compute attention as [batch, new tokens, heads, head_dim].

        Args:
            query: [batch, heads, new tokens, head_dim].
            scaling: As for `Observer.observe`.
            mask: Of the size that the layer's `get_mask_sizes` returns.
        """


class StopForward(Exception):  # noqa: N818 - a signal, not an error
    """Raised by an observer to end the forward pass; later layers are not computed."""


_observer: ContextVar[Observer | None] = ContextVar("draftapprox_observer", default=None)


def observing(observer: Observer) -> AbstractContextManager[None]:
    """Call `observer` for every attention layer that this thread or task runs inside the block."""
    return _Observing(observer)


class _Observing(AbstractContextManager[None]):
    # No generator with @contextmanager: from Python 3.12 on, one that swallows an exception leaves a reference cycle
    # (contextlib's frame holds the exception, whose traceback holds the generator's frame, which holds contextlib's).
    # The frames of the stopped pass, with the last layer's tensors, would then stay alive until the garbage collector
    # runs, and that may be during the next prefill.

    def __init__(self, observer: Observer):
        self._observer = observer

    def __enter__(self) -> None:
        self._token: Token[Observer | None] = _observer.set(self._observer)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        _observer.reset(self._token)
        return isinstance(error, StopForward)


def _observed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor | SelfAttending,
    value: Any,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    check_call(module, query, attention_mask, kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if not isinstance(key, Tensor):
        return key.attend(query, attention_mask, scale), None
    observer = _observer.get()
    if observer is not None:
        attend = observer.observe(int(module.layer_idx), query, key, attention_mask, scale)  # type: ignore[arg-type]
        if attend is not None:
            return attend(query, key, value), None
    backend: Backend | None = getattr(module, _BACKEND, None)
    if backend is not None and not dropout:
        out = backend(module, query, key, value, attention_mask, kwargs.get("sliding_window"), scale)
        if out is not None:
            return out, None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)


AttentionInterface.register(IMPLEMENTATION, _observed_attention)
# Without a mask function of the same name, padded batches would silently attend to their padding.
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)

_views: WeakKeyDictionary[PreTrainedModel, PreTrainedModel] = WeakKeyDictionary()
_views_lock = ForkSafeLock()


def attention_view(model: PreTrainedModel) -> PreTrainedModel:
    """Return a view of `model`, with the same parameter and buffer tensors, whose attention can be observed.

    `model`, its config and its methods are not changed. The view is made once per model and lives as long as it. It
    computes attention with the FlashAttention or flex_attention kernel that `model` has when the view is made; calls
    that the kernel does not take (see `backends`), and models with another implementation, get SDPA.

    Raises:
        UnsupportedModelError: see `check_model`.
    """
    with _views_lock:
        view = _views.get(model)
        if view is None:
            view = _views[model] = _make_view(model)
        return view


def _make_view(model: PreTrainedModel) -> PreTrainedModel:
    check_model(model)
    view = share_weights(model)
    backend = backend_of(model.config.get_text_config()._attn_implementation)
    for module in view.modules():
        if hasattr(module, "layer_idx"):
            setattr(module, _BACKEND, backend)
    view.config._attn_implementation = IMPLEMENTATION
    view.eval()
    return view


def share_weights(model: PreTrainedModel) -> PreTrainedModel:
    """Return new modules and a new config around the same tensors; changes to them do not affect `model`."""
    # deepcopy takes tensors in its memo as already copied, so it shares them
    memo: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, memo)
