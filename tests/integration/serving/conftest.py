"""A service with the tiny model, which is exact and fast, and a client of it."""

from collections.abc import Iterator

import pytest

from draftapprox_integrations import LoadedModel, SpecPC
from tests.helpers.service import Running, running

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
