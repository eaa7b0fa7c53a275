"""Blocks: what was packed comes back, or it is said that it does not."""

import os
import struct
import tracemalloc
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from per_agent.errors import ConfigError, SpoolCorrupt
from per_agent.settings import IntakeSettings
from per_agent.spool import block as blocks
from per_agent.spool.block import Block, BlockId, head, pack, unpack

PACKED = pack([b"first event", b"", b"third event"], 1_700_000_000.5)
EVENTS = [b"an event of acme-inc by user-%03d" % n for n in range(40)]
COMPRESSED = pack(EVENTS, 1_700_000_000.5)
MIB = 2**20
ids = st.builds(BlockId, st.integers(0, 2**48 - 1), st.integers(0, 2**48 - 1))


@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=50),
    st.integers(0, 10**13).map(lambda ms: ms / 1000),
)
def test_a_block_comes_back_as_it_was_packed(events, made_at):
    packed = pack(events, made_at)
    found, when = unpack(packed)
    assert found == events
    assert when == pytest.approx(made_at, abs=0.002)
    assert head(packed) == (len(events), when)


def test_a_block_of_as_many_events_as_the_settings_allow_comes_back():
    most = IntakeSettings(block_events=blocks.MAX_EVENTS).block_events
    events = [b"%d" % i for i in range(most)]
    assert unpack(pack(events, 0))[0] == events
    with pytest.raises(ConfigError):
        IntakeSettings(block_events=most + 1)


def plain(events: list[bytes]) -> bytes:
    """A block as all were before they could be compressed."""
    body = msgspec.msgpack.encode(events)
    summed = struct.pack(">HQ", len(events), 1000) + body
    return b"PA\x01" + zlib.crc32(summed).to_bytes(4, "big") + summed


def planted(count: int, length: int, compressed: bytes) -> bytes:
    """A compressed block as somebody could make it who may write to the folder: its checksum is right."""
    summed = struct.pack(">HQI", count, 1000, length) + compressed
    return b"PA\x02" + zlib.crc32(summed).to_bytes(4, "big") + summed


def test_events_that_resemble_each_other_take_little_room():
    assert len(COMPRESSED) < len(plain(EVENTS)) / 4
    assert unpack(COMPRESSED) == (EVENTS, 1_700_000_000.5)


def test_a_block_that_was_written_before_there_was_compression_is_read():
    assert unpack(plain(EVENTS)) == (EVENTS, 1.0)
    assert head(plain(EVENTS)) == (40, 1.0)


@pytest.mark.parametrize(
    "events", [[os.urandom(2000)], [b"short"], [b"x" * 65_000] * 70], ids=["random", "short", "long"]
)
def test_what_compression_gains_nothing_of_or_must_not_touch_lies_there_as_it_is(events):
    assert len(pack(events, 1.0)) == len(plain(events))
    assert unpack(pack(events, 1.0)) == (events, 1.0)


@pytest.mark.parametrize("said", [MIB, 4 * MIB, 64 * MIB, 2**32 - 1])
def test_a_planted_block_cannot_fill_the_memory_of_its_reader(said):
    bomb = zlib.compress(msgspec.msgpack.encode([bytes(64 * MIB)]))
    tracemalloc.start()
    try:
        with pytest.raises(SpoolCorrupt, match="expand"):
            unpack(planted(1, said, bomb))
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "compressed",
    [
        zlib.compress(msgspec.msgpack.encode([b"one"])) + b"more",
        zlib.compress(msgspec.msgpack.encode([b"one"]))[:-1],
        zlib.compress(msgspec.msgpack.encode([b"one"]) + b"more"),
        zlib.compress(b"\xc1\xc1\xc1\xc1\xc1\xc1"),
        b"no stream",
        b"",
    ],
)
def test_what_was_not_compressed_by_us_is_corrupt_and_nothing_else(compressed):
    with pytest.raises(SpoolCorrupt):
        unpack(planted(1, 6, compressed))
    with pytest.raises(SpoolCorrupt):
        unpack(planted(1, 6, compressed)[: blocks.HEAD_BYTES])


@pytest.mark.parametrize("at", range(len(COMPRESSED)))
def test_a_flip_of_any_byte_of_a_compressed_block_is_noticed(at):
    for flip in (1, 2, 3, 4, 16, 128, 255):
        damaged = bytearray(COMPRESSED)
        damaged[at] ^= flip
        with pytest.raises(SpoolCorrupt):
            unpack(bytes(damaged))


@pytest.mark.parametrize("at", range(len(PACKED)))
def test_a_flip_of_any_byte_is_noticed(at):
    for flip in range(1, 256):
        damaged = bytearray(PACKED)
        damaged[at] ^= flip
        with pytest.raises(SpoolCorrupt):
            unpack(bytes(damaged))


@pytest.mark.parametrize("length", range(len(PACKED)))
def test_a_block_that_was_cut_short_is_noticed(length):
    with pytest.raises(SpoolCorrupt):
        unpack(PACKED[:length])


def test_bytes_after_a_block_are_noticed():
    with pytest.raises(SpoolCorrupt):
        unpack(PACKED + b"\0")


def test_a_block_of_another_is_not_taken_for_this_one():
    with pytest.raises(SpoolCorrupt):
        unpack(b"XX" + PACKED[2:])


def test_a_block_in_a_format_from_the_future_is_refused_and_says_so():
    future = bytearray(PACKED)
    future[2] = 3
    future[3:7] = zlib.crc32(bytes(future[7:])).to_bytes(4, "big")
    with pytest.raises(SpoolCorrupt, match="format 3, and this version knows 1 and 2"):
        unpack(bytes(future))
    with pytest.raises(SpoolCorrupt, match="format 3"):
        head(bytes(future))


def test_a_block_that_counts_wrongly_is_noticed():
    body = msgspec.msgpack.encode([b"one"])
    summed = struct.pack(">HQ", 2, 0) + body
    forged = b"PA\x01" + zlib.crc32(summed).to_bytes(4, "big") + summed
    with pytest.raises(SpoolCorrupt, match="says 2 events and holds 1"):
        unpack(forged)


def test_a_head_is_read_from_the_first_bytes_alone():
    assert head(PACKED[: blocks.HEAD_BYTES]) == (3, 1_700_000_000.5)
    with pytest.raises(SpoolCorrupt):
        head(PACKED[: blocks.HEAD_BYTES - 1])


@given(ids, ids)
def test_block_ids_sort_as_text_as_they_do_as_numbers(one, other):
    assert (str(one) < str(other)) == (one < other)
    assert BlockId.parse(str(one)) == one


@given(st.integers(min_value=0, max_value=2**600))
def test_a_mask_comes_back_from_its_bytes(mask):
    assert blocks.mask_of(blocks.mask_bytes(mask)) == mask


@given(st.lists(st.integers(0, 600), max_size=40) | st.integers(0, 600).map(lambda n: list(range(n, n + 40))))
def test_a_mask_has_the_bits_at_the_positions_and_no_others(positions):
    assert blocks.mask_at(positions) == sum(1 << at for at in set(positions))


@given(st.sets(st.integers(0, 499)))
def test_pending_are_those_that_are_not_settled(settled):
    block = Block("lane", BlockId(1), [b"event"] * 500, 0, sum(1 << at for at in settled))
    assert set(block.pending()) == set(range(500)) - settled
