"""Read every passage alone, once; then a query costs its own tokens only.

The keys of the calibrated heads are computed for each passage by itself and can be stored (`PassageStore`). The query
is read by itself too, and its attention queries meet the keys of all passages in one softmax. So scores of passages are
comparable, whatever their number, and no sequence is ever as long as all passages together. Layers after the last
calibrated head do not run.

Rotary embeddings make attention depend on distance, which carries no meaning here. So the query is read at several
positions, `BUCKET` tokens apart, and each key meets the queries at about the same distance from it (docs/LOG.md).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...errors import InvalidInputError
from ...models.attention import StopForward, attention_view, observing
from ...models.fingerprint import fingerprint
from ...models.loading import LoadedModel, ModelSpec, input_device, load_model
from ...models.locks import renewed_in_children
from ...results import Span
from ..store.key_codec import Int8KeyCodec, KeyCodec
from ..store.passage_store import PassageStore
from ..text.segmentation import Passage
from .bm25 import BM25Index
from .heads import HeadSet, check_heads, require_heads
from .prompt import PromptBuilder
from .reduction import mean_scores
from .scorer import AttentionScorer, Reduction, TokenScores, check_finite

# Tokens of one forward pass, padding included: memory stays flat, and longer passes gain nothing on a CPU.
BATCH_TOKENS = 4096
# A longer passage is read in pieces of this many tokens.
PIECE_TOKENS = 512
# Of a passage with more pieces than this, such as a book, only the best few by BM25 are read.
MOST_PIECES = 64
BEST_PIECES = 24
# Passages whose keys are in memory at a time while they are put into the store.
INGESTED_TOGETHER = 16
# Every key meets queries that are 1 to this many tokens, plus the query's length, behind it.
BUCKET = 64

Progress = Callable[[int, int], object]  # takes the number of passages done, and of all


@dataclass(frozen=True)
class _Piece:
    """Tokens of a passage that are read by themselves, after its header."""

    passage: int
    start: int  # its first token in the passage
    header: list[int]
    ids: list[int]


class _Recorder:
    """Observer that records queries and keys of some layers; ends the pass after the last one if `stop`."""

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


@renewed_in_children
class CalibratedHeadsScorer(AttentionScorer):
    """Scores by the attention of a draft's calibrated heads, each passage read alone.

    Args:
        draft: What `load_model` takes.
        heads: The heads; None finds those that were saved for this draft.
        store: Keeps the passages' keys between queries; None computes them for every query.
        reduction: From token scores to sentence scores.
        codec: How keys are held.

    Raises:
        InvalidInputError: the draft was never calibrated, or `heads` belong to another model.
        UnsupportedModelError: the draft's attention cannot be observed.
    """

    kind = "heads"

    def __init__(
        self,
        draft: ModelSpec = "default",
        heads: HeadSet | None = None,
        *,
        store: PassageStore | None = None,
        reduction: Reduction = mean_scores,
        codec: KeyCodec | None = None,
    ):
        super().__init__(reduction)
        self.draft: LoadedModel = load_model(draft)
        model = self.draft.model
        self.heads = require_heads(self.draft) if heads is None else check_heads(heads, model)
        self.store = store
        self._codec = codec or Int8KeyCodec()
        self._view = attention_view(model)
        self.prompts = PromptBuilder(self.draft)
        config = self._view.config.get_text_config()
        group = int(config.num_attention_heads) // int(config.num_key_value_heads or config.num_attention_heads)
        # (layer, KV head), each once: several query heads may share the keys of one KV head
        self._pairs = sorted({(layer, head // group) for layer, head in self.heads.heads})
        self._pair_of = [self._pairs.index((layer, head // group)) for layer, head in self.heads.heads]
        # Offloaded weights are moved by hooks that must run to their end, so then the pass is not cut short.
        self._stop = not any(parameter.device.type == "meta" for parameter in self._view.parameters())
        self._prefix = self.prompts.head
        # The heads may be those of the same model in another format, whose keys differ a little.
        content = repr(
            (fingerprint(model) or self.heads.fingerprint, self._pairs, self._prefix, self._codec.name)
        ).encode()
        self._key = hashlib.blake2b(content, digest_size=16)

    def score_tokens(self, query: str, passages: Sequence[Passage]) -> TokenScores:
        """Mean over heads of the highest attention any query token gives; each head's sums to 1 over all passages."""
        per_head, spans, tokens_read = self.score_heads(query, passages)
        scores = [(rows / len(self._pair_of)).sum(dim=0) for rows in per_head]
        for row in scores:
            check_finite(row)
        return TokenScores(scores, spans, tokens_read)

    def score_heads(
        self, query: str, passages: Sequence[Passage]
    ) -> tuple[list[Tensor], list[list[tuple[int, int]]], int]:
        """As `score_tokens`, each head by itself.

        Returns:
            Per passage float32 [heads, tokens]; per passage the character spans of its tokens; tokens read.

        Raises:
            InvalidInputError: the query, or a title, alone fills the draft's context window.
        """
        encoded = self.prompts.encoder.encode([passage.text for passage in passages])
        pieces = self._pieces([tokens.ids for tokens in encoded], [passage.title for passage in passages])
        pieces = _worth_reading(query, [passage.text for passage in passages], [row.spans for row in encoded], pieces)
        keys, tokens_read = self._keys(pieces)
        lengths = [key.shape[1] for key in keys]
        queries, query_tokens = self._read_query(query, -(-max(lengths, default=1) // BUCKET))
        sink = self._sink
        bucket_of = torch.cat([torch.arange(length) // BUCKET for length in lengths])
        buckets = [(bucket_of == bucket).nonzero().flatten() for bucket in range(len(queries))]
        joined = torch.cat(keys, dim=1)
        scores = [torch.zeros(len(self._pair_of), len(tokens.ids)) for tokens in encoded]
        for head, pair in enumerate(self._pair_of):  # one by one: [query tokens, all tokens] is large enough
            logits = torch.empty(queries.shape[2], sink.shape[1] + joined.shape[1])
            logits[:, : sink.shape[1]] = queries[0, head] @ sink[pair].T
            for bucket, index in enumerate(buckets):
                logits[:, sink.shape[1] + index] = queries[bucket, head] @ joined[pair, index].float().T
            highest = torch.softmax(logits, dim=-1)[:, sink.shape[1] :].amax(dim=0)
            highest /= highest.sum().clamp(min=1e-30)
            for piece, attention in zip(pieces, highest.split(lengths), strict=True):
                stop = piece.start + len(piece.ids)
                scores[piece.passage][head, piece.start : stop] = attention[len(piece.header) :]
        return scores, [tokens.spans for tokens in encoded], tokens_read + query_tokens

    def ingest(self, passages: Sequence[Passage], progress: Progress | None = None) -> int:
        """Compute the passages' keys and put them into the store; the number of tokens read for that.

        Args:
            passages: The passages.
            progress: Called as progress(done, passages) after every few passages.
        """
        tokens_read = 0
        for start in range(0, len(passages), INGESTED_TOGETHER):
            some = passages[start : start + INGESTED_TOGETHER]
            encoded = self.prompts.encoder.encode([passage.text for passage in some])
            pieces = self._pieces([tokens.ids for tokens in encoded], [passage.title for passage in some])
            tokens_read += self._keys(pieces)[1]
            if progress is not None:
                progress(start + len(some), len(passages))
        return tokens_read

    def _pieces(self, passages: Sequence[list[int]], titles: Sequence[str | None]) -> list[_Piece]:
        pieces = []
        for index, (ids, header) in enumerate(zip(passages, self.prompts.headers(titles, numbered=False), strict=True)):
            room = min(self.draft.context_window - len(self._prefix) - len(header), PIECE_TOKENS)
            if room < 16:
                raise InvalidInputError(
                    f"the title of passage {index} has {len(header)} tokens, which leaves no room for the passage in "
                    f"the {self.draft.context_window} tokens that {self.draft.name} reads. Give a shorter title."
                )
            pieces += [_Piece(index, start, header, ids[start : start + room]) for start in range(0, len(ids), room)]
        return pieces

    def _read_query(self, query: str, buckets: int) -> tuple[Tensor, int]:
        """Scaled attention queries of the query, float32 [buckets, heads, query tokens, head_dim]; tokens read.

        The query is read with nothing before it; only its positions say that it follows a passage.
        """
        ids = self.prompts.query(query)
        head, window = len(self._prefix), self.draft.context_window
        if head + BUCKET + len(ids) > window:
            raise InvalidInputError(
                f"the query takes {len(ids)} tokens of the {window} that {self.draft.name} can read. Shorten it, or "
                "use a draft with a longer context window."
            )
        starts = [min(head + bucket * BUCKET, window - len(ids)) for bucket in range(1, buckets + 1)]
        positions = torch.tensor([list(range(start, start + len(ids))) for start in starts])
        recorder = self._run([ids] * buckets, positions)
        queries = [
            recorder.queries[layer][:, index].float().cpu() * recorder.scaling[layer]
            for layer, index in self.heads.heads
        ]
        return torch.stack(queries, dim=1), buckets * len(ids)

    @cached_property
    def _sink(self) -> Tensor:
        """Keys of the prompt's head, float32 [pairs, tokens, head_dim]: attention goes there if it finds nothing."""
        recorder = self._run([self._prefix], None)
        return torch.stack([recorder.keys[layer][0, kv].float().cpu() for layer, kv in self._pairs])

    def _keys(self, pieces: Sequence[_Piece]) -> tuple[list[Tensor], int]:
        """Keys [pairs, header and piece, head_dim] of each piece, from the store or computed; tokens read."""
        names = [self._name(piece) for piece in pieces]
        stored = self.store.get(names) if self.store is not None else {}
        known = {name: self._codec.unpack(value, len(self._pairs)) for name, value in stored.items()}
        missing = {name: piece for name, piece in zip(names, pieces, strict=True) if name not in known}
        rows = {name: [*self._prefix, *piece.header, *piece.ids] for name, piece in missing.items()}
        tokens_read = 0
        for batch in _batches(rows):
            longest = max(len(rows[name]) for name in batch)
            # Padded on the right: causal attention never reaches there, so no mask is needed.
            recorder = self._run([rows[name] + [0] * (longest - len(rows[name])) for name in batch], None)
            new = {}
            for row, name in enumerate(batch):
                stop = len(rows[name])
                keys = [recorder.keys[layer][row, kv, len(self._prefix) : stop] for layer, kv in self._pairs]
                new[name] = self._codec.pack(torch.stack(keys).float().cpu())
                known[name] = self._codec.unpack(new[name], len(self._pairs))
                tokens_read += stop
            if self.store is not None:
                self.store.put(new)
        return [known[name] for name in names], tokens_read

    def _name(self, piece: _Piece) -> bytes:
        """The key of a piece in the store: the model, its heads, and the tokens read."""
        digest = self._key.copy()
        content = torch.tensor([len(piece.header), *piece.header, *piece.ids], dtype=torch.int32)
        digest.update(content.numpy().tobytes())
        return digest.digest()

    @torch.inference_mode()
    def _run(self, rows: list[list[int]], positions: Tensor | None) -> _Recorder:
        recorder = _Recorder({layer for layer, _ in self.heads.heads}, self._stop)
        device = input_device(self._view)
        with self.draft.lock, observing(recorder):
            self._view(
                input_ids=torch.tensor(rows, device=device),
                position_ids=None if positions is None else positions.to(device),
                use_cache=False,
                logits_to_keep=1,
            )
        return recorder


def _worth_reading(
    query: str, texts: Sequence[str], spans: Sequence[Sequence[Span]], pieces: Sequence[_Piece]
) -> list[_Piece]:
    """All pieces of most passages; of very long ones those that BM25 ranks highest."""
    count = Counter(piece.passage for piece in pieces)
    kept = [piece for piece in pieces if count[piece.passage] <= MOST_PIECES]
    for passage in (index for index, number in count.items() if number > MOST_PIECES):
        own = [piece for piece in pieces if piece.passage == passage]
        ends = [spans[passage][piece.start + len(piece.ids) - 1][1] for piece in own]
        shown = [texts[passage][spans[passage][piece.start][0] : end] for piece, end in zip(own, ends, strict=True)]
        scores = BM25Index(shown, range(len(shown))).scores(query)
        kept += [own[i] for i in sorted(scores.argsort(descending=True, stable=True)[:BEST_PIECES].tolist())]
    return kept


def _batches(rows: dict[bytes, list[int]]) -> Iterator[list[bytes]]:
    """Names of rows that are read together: about equally long, at most `BATCH_TOKENS` with their padding."""
    batch: list[bytes] = []
    for name in sorted(rows, key=lambda name: len(rows[name])):
        if batch and (len(batch) + 1) * len(rows[name]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(name)
    if batch:
        yield batch
