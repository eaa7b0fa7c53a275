"""`Secret`: a token that can be handed around, printed and logged without being shown."""

import html
import json
import re
from base64 import b64encode, urlsafe_b64encode
from typing import Final
from urllib.parse import quote

from per_agent.errors import ConfigError

HIDDEN: Final = "********"
SHORTEST: Final = 4  # what is shorter is no secret, and blotting it out would garble every sentence

_TOKEN: Final = re.compile(r"[!-~]+")  # what an HTTP header takes as it is: printable ASCII, no white space


class Secret:
    """A token. `repr`, `str` and `format` never show it; `reveal` does.

    Raises `ConfigError` for a text that cannot be a token: empty, or with white space, control characters or
    anything beyond ASCII in it, which is what a file with a comment or a badly pasted token looks like. The
    problem never quotes the text.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not text:
            raise ConfigError("is empty")
        if _TOKEN.fullmatch(text) is None:
            raise ConfigError("must be printable ASCII without white space, and is not")
        self._text = text

    def reveal(self) -> str:
        """The token itself, for the one header that carries it."""
        return self._text

    def __repr__(self) -> str:
        return f"Secret({HIDDEN})"

    def __str__(self) -> str:
        return HIDDEN

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)


def forms(token: str) -> frozenset[str]:
    """How *token* looks where somebody wrote it down: as it is, in a URL, in HTML, in base64, and escaped.

    Escaped once, or twice as in a list inside JSON. In base64 what stands before it shifts it, so each of the
    three shifts is there, without the characters that its neighbours have a part in.
    """
    found = {token, quote(token, safe=""), quote(token), html.escape(token), html.escape(token, quote=False)}
    for _ in range(2):
        found |= {escaped for form in found for escaped in (json.dumps(form)[1:-1], repr(form)[1:-1])}
    for shift in range(3):
        padded = b"\0" * shift + token.encode()
        whole = len(padded) // 3 * 4
        begin = (0, 2, 3)[shift]
        found |= {coded(padded).decode()[begin:whole] for coded in (b64encode, urlsafe_b64encode)}
    return frozenset(each for each in found if len(each) >= SHORTEST)
