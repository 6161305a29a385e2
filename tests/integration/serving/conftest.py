"""Services with the tiny model, which is exact and fast: SpecPC's and its client, and OpenAI's endpoints."""

from collections.abc import Iterator

import pytest

from draftapprox_integrations import LoadedModel, SpecKV, SpecPC
from tests.helpers.openai_service import serving_completions
from tests.helpers.service import Running, running
from tests.helpers.serving import TIGHT

TEXTS = [
    "The old mill was built in 1821. Today it is a small museum. It closes in winter.",
    "The bridge was opened in 1932. It is painted red. Many cyclists cross it every morning.",
    "",
    "Ein Schloß. \U0001f3f0 Es steht am Fluß. Es wurde 1650 gebaut.",
]
QUERY = "When was the bridge opened?"


@pytest.fixture(scope="package")
def local(tiny: LoadedModel) -> SpecPC:
    return SpecPC(tiny)


@pytest.fixture(scope="package")
def service(local: SpecPC) -> Iterator[Running]:
    with running(local) as started:
        yield started


@pytest.fixture
def remote(service: Running) -> SpecPC:
    return SpecPC(service.url)


@pytest.fixture(scope="module")
def kv(tiny: LoadedModel) -> SpecKV:
    return SpecKV(tiny, "self", TIGHT)


@pytest.fixture(scope="module")
def url(kv: SpecKV) -> Iterator[str]:
    with serving_completions(kv) as address:
        yield address
