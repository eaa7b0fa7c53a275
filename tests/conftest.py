"""What tests share: `upstream`, a real HTTP server in a process of its own that keeps score, and a `stage` with it."""

import gc
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sidecar_double import SidecarDouble
from stage import Stage
from upstream import UpstreamServer


def pytest_configure() -> None:
    # Where tests are run in a shell's background, Ctrl-C is ignored, and so it would be by what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    gc.freeze()  # thousands of tests that stay until the end: to look through them took a seventh of the time


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


@pytest.fixture
def stage(tmp_path: Path, upstream: UpstreamServer) -> Iterator[Stage]:
    """Per, Payment Kit and a sidecar, each behind a proxy that can misbehave, and a folder for agents."""
    with SidecarDouble(tmp_path) as double, ExitStack() as stack:
        made = Stage(tmp_path, upstream, double)
        for proxy in made.proxies.values():
            stack.enter_context(proxy)
        yield made
