"""The error tree: the drawn one is the real one, and errors travel between processes."""

import copy
import inspect
import pickle

import pytest

from per_agent import errors
from per_agent.errors import (
    AgentClosed,
    BufferFull,
    ConfigError,
    InvalidEvent,
    PerAgentError,
    RateLimited,
    Refused,
    SpoolCorrupt,
    SpoolError,
    SpoolFull,
    Unauthorized,
    Unavailable,
    UpstreamError,
)

UPSTREAM_ERRORS = (UpstreamError, Unauthorized, Refused, RateLimited, Unavailable)


def drawn() -> dict[str, str]:
    """Each error of the drawing, with the error that it hangs from."""
    parents: dict[str, str] = {}
    path: list[str] = []
    assert errors.__doc__ is not None
    for line in errors.__doc__.split("::\n", 1)[1].splitlines():
        text = line.lstrip(" │├└─").split(" ")[0]
        if not text:
            continue
        if not line.startswith("    "):
            break  # below the drawing
        depth = (line.index(text) - 4) // 4
        path[depth:] = [text]
        parents[text] = path[depth - 1] if depth else "Exception"
    return parents


def test_the_drawn_tree_is_the_tree_of_the_classes():
    real = {
        name: kind.__bases__[0].__name__
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, BaseException) and kind.__module__ == errors.__name__
    }
    assert drawn() == real
    assert len(real) == 13


def test_the_root_catches_everything_that_is_ours():
    for name in drawn():
        assert issubclass(getattr(errors, name), PerAgentError)


@pytest.mark.parametrize("kind", UPSTREAM_ERRORS)
def test_an_upstream_error_says_who_was_asked_what_and_what_it_answered(kind):
    error = kind("per", "GET /reports.get", "invalid_auth", status=401)
    assert str(error) == "per: GET /reports.get: HTTP 401: invalid_auth"
    assert (
        str(kind("per", "GET /reports.get", "connection refused"))
        == "per: GET /reports.get: no answer: connection refused"
    )


@pytest.mark.parametrize("kind", UPSTREAM_ERRORS)
@pytest.mark.parametrize("status", [None, 429])
@pytest.mark.parametrize("retry_after", [None, 0.0, 2.5])
def test_an_upstream_error_comes_through_pickle_and_copy_unchanged(kind, status, retry_after):
    error = kind("kit", "POST /api/meter-events", "slow down", status=status, retry_after=retry_after)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert vars(again) == vars(error)
        assert (again.status, again.retry_after) == (status, retry_after)


@pytest.mark.parametrize("kind", UPSTREAM_ERRORS)
def test_the_text_of_an_upstream_error_comes_through_pickle_unchanged(kind):
    error = kind("kit", "POST /api/meter-events", "slow down", status=429)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_configuration_error_names_every_problem():
    assert ConfigError("one").problems == ("one",)
    several = ConfigError(["one", "two"])
    assert several.problems == ("one", "two")
    assert str(several) == "one; two"


def test_an_invalid_event_names_every_field():
    error = InvalidEvent({"value": "is missing", "at": "is odd"})
    assert str(error) == "value: is missing; at: is odd"
    assert error.problems == {"value": "is missing", "at": "is odd"}


@pytest.mark.parametrize(
    "error",
    [
        ConfigError(["one", "two"]),
        InvalidEvent({"value": "is missing"}),
        BufferFull("full"),
        AgentClosed("closed"),
        SpoolError("s"),
        SpoolFull("f"),
        SpoolCorrupt("c"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_all_other_errors_come_through_pickle_with_what_they_say(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
