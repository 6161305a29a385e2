"""Read every passage alone, once; then a question costs its own tokens only.

The keys of the calibrated heads are computed for each passage by itself and can be kept (`PassageStore`). The question
is read by itself too, and its queries meet the keys of all passages in one softmax: scores of passages are comparable,
whatever their number, and nothing is ever as long as all of them together. Layers behind the last calibrated head do
not run.

Rotary embeddings make attention depend on distance, which says nothing here. So the question is read at several places,
`BUCKET` tokens apart, and each key meets the queries that stand at about the same distance from it (docs/LOG.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...errors import InvalidInputError
from ...models.attention import StopForward, observing
from ...models.loading import LoadedModel, input_device
from ...models.tokenization import Encoded
from ..store.key_codec import pack_keys, unpack_keys
from ..store.passage_store import PassageStore
from .attention_scores import check_finite
from .heads import HeadSet
from .prompt import PromptBuilder

# Tokens of one forward pass, padding included: memory stays flat, and longer passes gain nothing on a CPU.
BATCH_TOKENS = 4096
# A longer passage is read in pieces of this many tokens.
PIECE_TOKENS = 512
# Every key meets queries that stand from 1 to this many tokens behind it, and the question's length.
BUCKET = 64


class _Recorder:
    """Observer that keeps the queries and keys of some layers and ends the pass after the last."""

    def __init__(self, layers: set[int], stop: bool):
        self.layers, self.last, self.stop = layers, max(layers), stop
        self.queries: dict[int, Tensor] = {}
        self.keys: dict[int, Tensor] = {}
        self.scaling: dict[int, float] = {}

    def observe(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        if layer in self.layers:
            self.queries[layer], self.keys[layer], self.scaling[layer] = query, key, scaling
        if layer == self.last and self.stop:
            raise StopForward


class PassageReader:
    """Scores the tokens of passages for a question with a draft's calibrated heads.

    Args:
        draft: The model.
        view: Its attention view.
        builder: Makes its prompts.
        heads: Which heads to listen to.
        store: Keeps the passages' keys; None computes them for every question.
    """

    def __init__(
        self,
        draft: LoadedModel,
        view: PreTrainedModel,
        builder: PromptBuilder,
        heads: HeadSet,
        store: PassageStore | None = None,
    ):
        self.heads, self.store = heads, store
        self._draft, self._view, self.builder = draft, view, builder
        config = view.config.get_text_config()
        group = int(config.num_attention_heads) // int(config.num_key_value_heads or config.num_attention_heads)
        # (layer, KV head), each once: several query heads may share the keys of one KV head
        self._pairs = sorted({(layer, head // group) for layer, head in heads.heads})
        self._pair_of = [self._pairs.index((layer, head // group)) for layer, head in heads.heads]
        offloaded = any(parameter.device.type == "meta" for parameter in view.parameters())
        self._stop = not offloaded
        self._prefix = builder.head
        content = repr((heads.fingerprint, self._pairs, self._prefix)).encode()
        self._key = hashlib.blake2b(content, digest_size=16)

    def scores(self, passages: Sequence[Encoded], titles: Sequence[str | None], query: str) -> tuple[list[Tensor], int]:
        """How much the question looks at each token of each passage.

        Args:
            passages: as the draft's tokenizer reads them.
            titles: read in front of their passages; None for none.
            query: the question.

        Returns:
            Per passage float32 [tokens], the mean over heads of the highest probability any token of the question
            gives, each head's summing to 1 over all passages; and how many tokens the draft has read.

        Raises:
            InvalidInputError: the question, or a title, alone fills the draft's window.
            ScoringError: a score is NaN or infinite.
        """
        found, read = self.head_scores(passages, titles, query)
        total = [(rows / len(self._pair_of)).sum(dim=0) for rows in found]
        for row in total:
            check_finite(row)
        return total, read

    def head_scores(
        self, passages: Sequence[Encoded], titles: Sequence[str | None], query: str
    ) -> tuple[list[Tensor], int]:
        """As `scores`, for each head by itself: per passage float32 [heads, tokens]."""
        pieces = self._pieces(passages, titles)
        keys, read = self._keys([(header, ids) for _, header, ids in pieces])
        lengths = [key.shape[1] for key in keys]
        queries, question = self._read_question(query, -(-max(lengths, default=1) // BUCKET))
        sink = self._sink
        places = torch.cat([torch.arange(length) // BUCKET for length in lengths])
        buckets = [(places == bucket).nonzero().flatten() for bucket in range(len(queries))]
        joined = torch.cat(keys, dim=1)
        found = [torch.zeros(len(self._pair_of), len(passage.ids)) for passage in passages]
        for head, pair in enumerate(self._pair_of):  # one by one: [question, all tokens] is large enough
            logits = torch.empty(queries.shape[2], sink.shape[1] + joined.shape[1])
            logits[:, : sink.shape[1]] = queries[0, head] @ sink[pair].T
            for bucket, index in enumerate(buckets):
                logits[:, sink.shape[1] + index] = queries[bucket, head] @ joined[pair, index].float().T
            highest = torch.softmax(logits, dim=-1)[:, sink.shape[1] :].amax(dim=0)
            highest /= highest.sum().clamp(min=1e-30)
            filled = [0] * len(passages)
            for (passage, header, ids), scores in zip(pieces, highest.split(lengths), strict=True):
                start = filled[passage]
                found[passage][head, start : start + len(ids)] = scores[len(header) :]
                filled[passage] += len(ids)
        return found, read + question

    def ingest(self, passages: Sequence[Encoded], titles: Sequence[str | None]) -> int:
        """Put the passages' keys into the store; how many tokens had to be read for that."""
        _, read = self._keys([(header, ids) for _, header, ids in self._pieces(passages, titles)])
        return read

    def _pieces(
        self, passages: Sequence[Encoded], titles: Sequence[str | None]
    ) -> list[tuple[int, list[int], list[int]]]:
        """(passage, ids of its header, ids) of each piece that is read by itself."""
        headers = self.builder.headers(titles, numbered=False)
        pieces = []
        for index, (passage, header) in enumerate(zip(passages, headers, strict=True)):
            room = min(self._draft.context_window - len(self._prefix) - len(header), PIECE_TOKENS)
            if room < 16:
                raise InvalidInputError(
                    f"the title of passage {index} has {len(header)} tokens, which leaves no room for the passage in "
                    f"the {self._draft.context_window} tokens that {self._draft.name} reads. Give a shorter title."
                )
            pieces += [(index, header, passage.ids[a : a + room]) for a in range(0, len(passage.ids), room)]
        return pieces

    def _read_question(self, query: str, places: int) -> tuple[Tensor, int]:
        """The question's queries, float32 [places, heads, question tokens, head_dim], scaled; tokens read.

        It is read with nothing before it; only its position is as if it stood behind a passage.
        """
        question = self.builder.question(query)
        head, window = len(self._prefix), self._draft.context_window
        if head + BUCKET + len(question) > window:
            raise InvalidInputError(
                f"the question takes {len(question)} tokens of the {window} that {self._draft.name} can read. Shorten "
                "it, or use a draft with a longer context window."
            )
        starts = [min(head + place * BUCKET, window - len(question)) for place in range(1, places + 1)]
        positions = torch.tensor([list(range(start, start + len(question))) for start in starts])
        recorder = self._run([question] * places, positions)
        queries = [
            recorder.queries[layer][:, index].float().cpu() * recorder.scaling[layer]
            for layer, index in self.heads.heads
        ]
        return torch.stack(queries, dim=1), places * len(question)

    @cached_property
    def _sink(self) -> Tensor:
        """Keys of the prompt's head, float32 [pairs, tokens, head_dim]: where attention goes that finds nothing."""
        recorder = self._run([self._prefix], None)
        return torch.stack([recorder.keys[layer][0, kv].float().cpu() for layer, kv in self._pairs])

    def _keys(self, pieces: Sequence[tuple[list[int], list[int]]]) -> tuple[list[Tensor], int]:
        """Keys [pairs, header and piece, head_dim] of each piece, from the store or newly read; tokens read."""
        names = [self._name(header, ids) for header, ids in pieces]
        held = self.store.get(names) if self.store is not None else {}
        known = {name: unpack_keys(value, len(self._pairs)) for name, value in held.items()}
        missing = {name: index for index, name in enumerate(names) if name not in known}
        rows = {name: [*self._prefix, *pieces[index][0], *pieces[index][1]] for name, index in missing.items()}
        read = 0
        for batch in _batches(rows):
            longest = max(len(rows[name]) for name in batch)
            # Padded on the right: causal attention never looks there, so no mask is needed.
            recorder = self._run([rows[name] + [0] * (longest - len(rows[name])) for name in batch], None)
            new = {}
            for place, name in enumerate(batch):
                stop = len(rows[name])
                keys = [recorder.keys[layer][place, kv, len(self._prefix) : stop] for layer, kv in self._pairs]
                new[name] = pack_keys(torch.stack(keys).float().cpu())
                known[name] = unpack_keys(new[name], len(self._pairs))
                read += stop
            if self.store is not None:
                self.store.put(new)
        return [known[name] for name in names], read

    def _name(self, header: list[int], ids: list[int]) -> bytes:
        """The key of a piece in the store: what was read by which model."""
        digest = self._key.copy()
        digest.update(torch.tensor([len(header), *header, *ids], dtype=torch.int32).numpy().tobytes())
        return digest.digest()

    @torch.inference_mode()
    def _run(self, rows: list[list[int]], positions: Tensor | None) -> _Recorder:
        recorder = _Recorder({layer for layer, _ in self.heads.heads}, self._stop)
        device = input_device(self._view)
        with self._draft.lock, observing(recorder):
            self._view(
                input_ids=torch.tensor(rows, device=device),
                position_ids=None if positions is None else positions.to(device),
                use_cache=False,
                logits_to_keep=1,
            )
        return recorder


def _batches(rows: dict[bytes, list[int]]) -> Iterator[list[bytes]]:
    """Names of rows that are read together: of about equal length, at most `BATCH_TOKENS` with their padding."""
    batch: list[bytes] = []
    for name in sorted(rows, key=lambda name: len(rows[name])):
        if batch and (len(batch) + 1) * len(rows[name]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(name)
    if batch:
        yield batch
