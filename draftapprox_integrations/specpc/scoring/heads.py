"""Calibrated heads of a draft: those whose attention finds the evidence for a query. Calibrated once, saved as a file.

The file is keyed by the model's fingerprint, so a fine-tune, another size or a renamed folder never gets the heads that
you calibrated on another model. Heads of some models come with the package; `draftapprox calibrate` adds yours to the
cache folder.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ...errors import InvalidInputError
from ...models.embedded import cache_folder
from ...models.fingerprint import fingerprint, same_model
from ...models.loading import LoadedModel

_PACKAGED = Path(__file__).parent / "calibrated"
_FORMAT = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadSet:
    """Heads whose attention finds evidence.

    Attributes:
        model: Name of the calibrated model.
        fingerprint: Its `fingerprint`.
        heads: (layer, query head), best first; all have the same weight.
        measured: Figures of the calibration, for people who open the file.
        relevance: Relevance models that were fitted with these heads (`RelevanceModels.content`); None: those of the
            package serve.
    """

    model: str
    fingerprint: str
    heads: tuple[tuple[int, int], ...]
    measured: Mapping[str, Any] = field(default_factory=dict)
    relevance: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple((int(layer), int(head)) for layer, head in self.heads))
        if not self.heads:
            raise ValueError("heads must name at least one (layer, head)")

    @property
    def last_layer(self) -> int:
        """Index of the last layer with a calibrated head."""
        return max(layer for layer, _ in self.heads)

    def save(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write the heads to a file; without `path`, to the cache folder, where `find_heads` finds them.

        Raises:
            InvalidInputError: `path` is a folder or a special file.
        """
        path = saved_heads() / f"{self.fingerprint}.json" if path is None else check_output(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"format": _FORMAT, **asdict(self)}
        scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        scratch.replace(path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HeadSet:
        """Read heads from a file.

        Raises:
            InvalidInputError: the file holds no heads.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content.pop("format") != _FORMAT:
                raise ValueError("written by another version")
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(
                f"{path} holds no calibrated heads ({error}). Make it again with draftapprox calibrate."
            ) from error


def check_output(path: str | os.PathLike[str]) -> Path:
    """`path`, checked to be writable as a file.

    Raises:
        InvalidInputError: it is a folder or a special file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise InvalidInputError(f"{path} is not a file; name one for the heads, such as heads.json")
    return path


def check_heads(heads: HeadSet, model: PreTrainedModel) -> HeadSet:
    """`heads`, checked to belong to this model.

    Raises:
        InvalidInputError: they were calibrated on another one.
    """
    key, config = fingerprint(model), model.config.get_text_config()
    layers, count = int(config.num_hidden_layers), int(config.num_attention_heads)
    inside = all(0 <= layer < layers and 0 <= head < count for layer, head in heads.heads)
    of_model = key is None or same_model(key, heads.fingerprint) or heads == find_heads(model)
    if not inside or not of_model:
        raise InvalidInputError(
            f"these heads were calibrated on {heads.model} (fingerprint {heads.fingerprint}), the draft is another "
            f"model (fingerprint {key}). Calibrate it: draftapprox calibrate --model NAME"
        )
    return heads


def saved_heads() -> Path:
    """Folder of the heads that were calibrated on this machine."""
    return cache_folder() / "heads"


def find_heads(model: PreTrainedModel) -> HeadSet | None:
    """Calibrated heads of a model: this machine's, else the package's; None if it was never calibrated."""
    key = fingerprint(model)
    if key is None:
        return None
    vectors, _, matrices = key.partition("-")
    for folder in (saved_heads(), _PACKAGED):
        paths = [folder / f"{key}.json"]
        # A quantized model gets the heads of the one that it was made from, if there is only one; and the package's
        # were calibrated on a 4-bit file, and serve the same model in any other format.
        if not matrices or folder == _PACKAGED:
            kin = list(folder.glob(f"{vectors}-*.json"))
            paths += kin if len(kin) == 1 else []
        for path in filter(Path.is_file, paths):
            try:
                heads = HeadSet.load(path)
            except InvalidInputError as error:
                logger.warning("%s", error)
                continue
            if heads.fingerprint == path.stem:
                return heads
    return None


def require_heads(draft: LoadedModel) -> HeadSet:
    """Calibrated heads of a draft.

    Raises:
        InvalidInputError: it was never calibrated.
    """
    found = find_heads(draft.model)
    if found is None:
        raise InvalidInputError(
            f"{draft.name} was never calibrated. Run: draftapprox calibrate --model {draft.name}, or use "
            'scorer="fused", which works without, or "joint".'
        )
    return found
