"""Bodies and queries by themselves: bounded in every direction, and never half of one for a whole."""

import asyncio
import gzip
import zlib

import pytest

from per_agent.sidecar import body
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.query import parameters, switch

LIMIT = 1000


def coming(*pieces, whole=True):
    """A body that comes in *pieces*; a client that is gone after them, where it is not *whole*."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if whole:
        messages[-1]["more_body"] = False
    left = iter([*messages, {"type": "http.disconnect"}])

    async def receive():
        return next(left)

    return receive


def read(*pieces, limit=LIMIT, whole=True, **headers):
    given = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return asyncio.run(body.read(coming(*pieces, whole=whole), given, limit))


def refused(*pieces, **how):
    with pytest.raises(Problem) as problem:
        read(*pieces, **how)
    return problem.value.status


@pytest.mark.parametrize(
    "pieces", [(b"",), (b"abc",), (b"a", b"b", b"", b"c"), (b"x" * LIMIT,), (b"x" * 999, b"x")]
)
def test_a_body_is_put_together_up_to_the_limit(pieces):
    assert read(*pieces) == b"".join(pieces)


@pytest.mark.parametrize("pieces", [(b"x" * 1001,), (b"x" * LIMIT, b"x"), (b"",) * 5 + (b"x" * 1001,)])
def test_one_byte_more_is_too_many(pieces):
    assert refused(*pieces) == 413


def test_a_length_that_is_too_large_is_refused_before_a_byte_of_it_is_read():
    def never():
        raise AssertionError("it was read")

    with pytest.raises(Problem) as problem:
        asyncio.run(body.read(never, {b"content-length": b"1001"}, LIMIT))
    assert problem.value.status == 413


@pytest.mark.parametrize("pieces", [(b"",), (b"half",), (b"a", b"b")])
def test_a_client_that_leaves_in_the_middle_has_sent_nothing(pieces):
    with pytest.raises(body.Disconnected):
        read(*pieces, whole=False)


@pytest.mark.parametrize("encoding", [b"gzip", b"GZIP", b" x-gzip "])
@pytest.mark.parametrize("content", [b"", b"abc", b"x" * LIMIT])
def test_gzip_is_unpacked(encoding, content):
    assert read(gzip.compress(content), content_encoding=encoding) == content


def test_gzip_of_several_members_is_one_body():
    assert (
        read(gzip.compress(b"ab") + gzip.compress(b"") + gzip.compress(b"c"), content_encoding=b"gzip")
        == b"abc"
    )


@pytest.mark.parametrize(
    ("packed", "status"),
    [
        (gzip.compress(b"x" * 1001), 413),
        (gzip.compress(b"x" * 600) + gzip.compress(b"x" * 600), 413),
        (gzip.compress(bytes(10_000_000))[:LIMIT], 413),
        (gzip.compress(b"abc")[:-1], 400),
        (gzip.compress(b"abc")[:5], 400),
        (gzip.compress(b"abc") + b"rest", 400),
        (gzip.compress(b"abc")[:-5] + b"\0\0\0\0\0", 400),
        (zlib.compress(b"abc"), 400),
        (b"abc", 400),
    ],
    ids=["long", "long in two", "bomb", "cut", "cut early", "garbage after", "wrong sum", "zlib", "plain"],
)
def test_what_does_not_unpack_well_is_refused(packed, status):
    assert refused(packed, content_encoding=b"gzip") == status


def test_members_may_be_empty_but_not_too_many():
    packed = gzip.compress(b"") * 199 + gzip.compress(b"abc")
    assert read(packed, content_encoding=b"gzip", limit=10_000) == b"abc"
    assert refused(gzip.compress(b"") * 201, content_encoding=b"gzip", limit=10_000) == 400


@pytest.mark.parametrize("encoding", [b"br", b"deflate", b"gzip, gzip", b"zstd", b"chunked"])
def test_other_encodings_are_named_as_what_they_are(encoding):
    assert refused(b"abc", content_encoding=encoding) == 415


def test_a_body_that_is_passed_on_is_bounded_as_it_comes():
    async def passed_on(*pieces):
        receive = body.bounded(coming(*pieces), LIMIT)
        return [len((await receive())["body"]) for _ in pieces]

    assert asyncio.run(passed_on(b"x" * 600, b"x" * 400)) == [600, 400]
    with pytest.raises(Problem):
        asyncio.run(passed_on(b"x" * 600, b"x" * 401))


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b"", {}),
        (b"a=1&b=x%20y+z", {"a": "1", "b": "x y z"}),
        (b"&&a=&b&", {"a": "", "b": ""}),
        (b"a=b=c&%C3%A9=%2B%26%3D", {"a": "b=c", "é": "+&="}),
        (b"a=%zz%2", {"a": "%zz%2"}),
        ("é=ü".encode(), {"é": "ü"}),
    ],
)
def test_parameters_are_read_as_forms_write_them(raw, found):
    assert parameters(raw) == found


@pytest.mark.parametrize(
    "raw", [b"a=1&a=1", b"a=1&%61=2", b"a=%ff", b"\xff=1", b"&".join(b"a%d=" % n for n in range(65))]
)
def test_parameters_that_can_be_read_in_two_ways_are_refused(raw):
    with pytest.raises(Problem) as problem:
        parameters(raw)
    assert problem.value.status == 400


def test_a_switch_is_on_off_or_not_given():
    assert [switch("s", parameters(raw)) for raw in (b"s=true", b"s=false", b"x=1")] == [True, False, None]
    for raw in (b"s=", b"s=1", b"s=True", b"s=yes"):
        with pytest.raises(Problem):
            switch("s", parameters(raw))
