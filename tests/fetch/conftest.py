"""A web server on this machine for each test."""

from collections.abc import Iterator

import pytest
from reference.web_server import Site, serving


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        yield running
