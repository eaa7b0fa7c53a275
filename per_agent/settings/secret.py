"""`Secret`: a token that can be handed around, printed and logged without being shown."""

import re
from typing import Final

from per_agent.errors import ConfigError

HIDDEN: Final = "********"

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
