"""`Answer`: what an upstream answered, as a value that nobody has believed yet."""

import re
from typing import Any, Final

import msgspec

SEND_LIMIT: Final = 64 * 1024
"""Bytes of an answer to a send: it is one small JSON object, or an error page."""
REPORT_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of an answer to a report: Per's has no paging and lists every billing ID."""

_TITLE: Final = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)


class Unanswered(Exception):
    """There is no answer, in words that begin with whether the request may have been received."""


class NotAsked(Exception):
    """The request cannot be made."""


class Answer(msgspec.Struct, frozen=True):
    """What an upstream answered.

    Attributes:
        status: the HTTP status.
        body: at most the bytes that were asked for.
        retry_after: seconds that the upstream asks to wait, or None.
        overrun: the answer was longer than *body*: never a success.
    """

    status: int
    body: bytes
    retry_after: float | None = None
    overrun: bool = False

    @property
    def is_passing(self) -> bool:
        """Whether time alone heals it: 408, 425, 429 and 5xx."""
        return self.status in (408, 425, 429) or self.status >= 500

    def json(self) -> Any:
        """The answer's JSON value. Raises `ValueError` where it is none, or not all of it was read."""
        if self.overrun:
            raise ValueError("the answer was too long to be read")
        try:
            return msgspec.json.decode(self.body)
        except RecursionError as error:
            raise ValueError(str(error)) from None

    def object(self) -> dict[str, Any] | None:
        """The answer's JSON object; None where it is anything else."""
        try:
            value = self.json()
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    @property
    def text(self) -> str:
        """What the answer says, in one line: JSON `error` and `message`, `detail`, a page's title, or the text."""
        fields = self.object()
        if fields is not None:
            said = [_phrase(fields[name]) for name in ("error", "message") if fields.get(name)]
            if not said and fields.get("detail"):  # RFC 9457
                said = [_phrase(fields["detail"])]
            if said:
                return ": ".join(dict.fromkeys(said))
        text = self.body[:SEND_LIMIT].decode("utf-8", "replace")
        if text.lstrip()[:1] == "<":
            title = _TITLE.search(text)
            text = f"a page titled {title[1].strip()!r}" if title else "a page without a title"
        return " ".join(text.split())


def _phrase(value: object) -> str:
    """An error's words, where some services answer `{"error": {"message": …}}` and some a list."""
    if isinstance(value, dict) and isinstance(value.get("message"), str):
        value = value["message"]
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return " ".join(text.split())
