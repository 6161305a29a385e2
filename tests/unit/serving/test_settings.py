"""Limits of the service that cannot be are refused by name."""

from typing import Any

import pytest

from draftapprox_integrations.errors import InvalidInputError
from draftapprox_integrations.serving.settings import ServiceSettings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"port": 65536}, "port must be at most 65535; got 65536"),
        ({"port": -1}, "port must be an integer >= 0"),
        ({"host": ""}, "host must be an address"),
        ({"max_body_bytes": 0}, "max_body_bytes must be an integer >= 1; got 0"),
        ({"workers": True}, "workers must be an integer >= 1"),
        ({"queue": 1.5}, "queue must be an integer >= 0"),
        ({"body_seconds": 0}, "body_seconds must be seconds, more than 0; got 0"),
        ({"graceful_seconds": float("inf")}, "graceful_seconds must be seconds"),
        ({"token": ""}, "the token must be printable ASCII"),
        ({"token": "two words"}, "the token must be printable ASCII"),
        ({"token": "schlüssel"}, "the token must be printable ASCII"),
    ],
)
def test_impossible_limits(wrong: Any, message: Any) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ServiceSettings(**wrong)


def test_the_token_is_not_shown() -> None:
    assert "secret" not in repr(ServiceSettings(token="secret"))
