"""Parts that a framework rebuilds from their fields: no object they were made with is lost silently."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps, loads
from langchain_core.runnables import ConfigurableField
from llama_index.core.schema import NodeWithScore, TextNode

from draftapprox_integrations import PassageStore, SpecPC
from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.langchain import SpecPCCompressor, SpecPCMiddleware
from draftapprox_integrations.llama_index import SpecPCPostprocessor
from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.models.fingerprint import fingerprint
from draftapprox_integrations.specpc.scoring.heads import HeadSet

pytestmark = pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
QUESTION = "In which year was the bridge opened?"
TEXTS = ["The old mill was built in 1821. It closes in winter.", "The bridge was opened in 1932. It is painted red."]


class Embeddings:
    """An embedder that cannot be saved by name."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[1.0, float(len(text))] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [1.0, float(len(text))]


class Longest:
    """A scorer of one's own."""

    def score(self, query: Any, passages: Any, sentences: Any) -> Any:
        raise AssertionError("a rebuilt part has no scorer")


def heads_of_ones_own(smol: SpecPC) -> SpecPC:
    model = smol.draft.model
    assert attention_view(model)
    return SpecPC(smol.draft, heads=HeadSet(smol.draft.name, fingerprint(model) or "", ((1, 1),)))


OBJECTS: dict[str, Callable[[SpecPC, Path], dict[str, Any]]] = {
    "embedder": lambda smol, folder: {"embedder": Embeddings()},
    "scorer": lambda smol, folder: {"scorer": Longest()},
    "tokenizer": lambda smol, folder: {"tokenizer": str.split},
    "draft": lambda smol, folder: {"draft": heads_of_ones_own(smol)},
    "store": lambda smol, folder: {"store": PassageStore(folder / "a.db", max_bytes=1 << 20)},
}


def compress(part: Any) -> Any:
    if isinstance(part, SpecPCPostprocessor):
        return part.postprocess_nodes([NodeWithScore(node=TextNode(text=t, id_=t)) for t in TEXTS], query_str=QUESTION)
    return part.invoke({"documents": [Document(text) for text in TEXTS], "query": QUESTION})


def rebuilt(part: Any) -> dict[str, Any]:
    if isinstance(part, SpecPCPostprocessor):
        return {
            "dict": SpecPCPostprocessor.from_dict(part.to_dict()),
            "json": SpecPCPostprocessor.from_json(part.to_json()),
            "pickle": pickle.loads(pickle.dumps(part)),
        }
    field = ConfigurableField(id="tokens")
    return {
        "dumps": loads(dumps(part), allowed_objects=[SpecPCCompressor], valid_namespaces=["draftapprox_integrations"]),
        "configurable": part.configurable_fields(max_tokens=field).with_config(configurable={"tokens": 9}),
        "pickle": pickle.loads(pickle.dumps(part)),
    }


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("kind", [SpecPCCompressor, SpecPCPostprocessor])
def test_an_object_is_kept_or_missed_aloud(kind: Any, name: str, smol: SpecPC, tmp_path: Path) -> None:
    part = kind(**{"draft": "default", "max_tokens": 12} | OBJECTS[name](smol, tmp_path))
    for way, copied in rebuilt(part).items():
        if (kind, name, way) == (SpecPCCompressor, "store", "pickle"):  # LlamaIndex pickles fields only
            assert copied.load().store.max_bytes == 1 << 20
            continue
        with pytest.raises(InvalidInputError, match=f"rebuilt without its {name}, which was an object"):
            compress(copied)


@pytest.mark.parametrize("kind", [SpecPCCompressor, SpecPCPostprocessor])
def test_what_a_name_or_the_defaults_can_make_again_is_kept(kind: Any, smol: SpecPC, tmp_path: Path) -> None:
    path = tmp_path / "passages.db"
    for store in (path, PassageStore(path), None):
        part = kind("default", max_tokens=12, store=store)
        expected = compress(part)
        for copied in rebuilt(part).values():
            compress(copied)
        copied = pickle.loads(pickle.dumps(part))
        assert copied.model_dump() == part.model_dump()
        assert compress(copied) == expected


def test_the_middleware_too(smol: SpecPC, tmp_path: Path) -> None:
    for name, make in OBJECTS.items():
        if name not in ("tokenizer", "store"):
            copied = pickle.loads(pickle.dumps(SpecPCMiddleware(**{"draft": "default"} | make(smol, tmp_path))))
            with pytest.raises(InvalidInputError, match=f"rebuilt without its {name}"):
                copied.load()
