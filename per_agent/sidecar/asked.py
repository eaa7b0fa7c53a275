"""`Asked`: a request that was let in, without its query and its body."""

from typing import Literal

import msgspec

Proof = Literal["header", "proxy-header", "socket"]
"""What a request was let in for: its `Authorization`, its `Proxy-Authorization`, or the socket that it came by."""


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What a request asks for.

    Attributes:
        given: its headers by name; those that count are given once.
        kind: of its body, as `content-type` has it, without parameters.
        proof: what it was let in for.
        request_id: the one that its client gave it, if any.
    """

    method: str
    path: str
    given: dict[bytes, bytes]
    kind: bytes
    proof: Proof
    request_id: bytes
