"""What tests share: `upstream`, a real HTTP server in a process of its own that keeps score."""

from collections.abc import Iterator

import pytest
from upstream import UpstreamServer


@pytest.fixture(scope="session")
def _upstream_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpstreamServer]:
    with UpstreamServer(tmp_path_factory.mktemp("upstream")) as server:
        yield server


@pytest.fixture
def upstream(_upstream_process: UpstreamServer) -> UpstreamServer:
    """Per and Payment Kit on one port, running, with an empty score and no rules.

    One process serves all tests of a session, so that a test costs one reset. A test may stop or kill it.
    """
    _upstream_process.start()
    _upstream_process.reset()
    return _upstream_process
