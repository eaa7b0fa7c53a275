"""`Answer`: what a request is answered with, for those who send it as ASGI messages and for those who send bytes."""

from collections.abc import Callable, MutableMapping
from typing import Any, Final

import msgspec

JSON: Final = b"application/json"

Headers = tuple[tuple[bytes, bytes], ...]


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A whole answer.

    Attributes:
        headers: those beside the type and the length of the *content*.
    """

    status: int
    content: bytes
    media_type: bytes = JSON
    headers: Headers = ()

    def messages(self) -> tuple[MutableMapping[str, Any], MutableMapping[str, Any]]:
        """As ASGI has it."""
        told = [
            (b"content-type", self.media_type),
            (b"content-length", b"%d" % len(self.content)),
            *self.headers,
        ]
        return (
            {"type": "http.response.start", "status": self.status, "headers": told},
            {"type": "http.response.body", "body": self.content},
        )

    def rendered(self, begin: Callable[[int], bytes]) -> bytes:
        """As it goes over the wire; *begin* gives the lines that all answers of a status begin with."""
        content = self.content
        further = b"".join([b"%b: %b\r\n" % each for each in self.headers]) if self.headers else b""
        return b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b" % (
            begin(self.status), self.media_type, len(content), further, content,
        )  # fmt: skip
