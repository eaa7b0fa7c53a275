"""The parameters of a query string or of a form, each given once."""

from typing import Final
from urllib.parse import unquote_to_bytes

from per_agent.sidecar.problems import Problem

_MOST: Final = 64  # parameters; the richest call takes nine


def parameters(raw: bytes) -> dict[str, str]:
    """Names and values of *raw* (`a=1&b=x%20y`). Raises `Problem` 400 for repeats and for what is not UTF-8."""
    found: dict[str, str] = {}
    if not raw:
        return found
    pairs = raw.split(b"&", _MOST)
    if len(pairs) > _MOST:
        raise Problem(400, f"at most {_MOST} parameters are taken")
    for pair in pairs:
        if not pair:
            continue
        name, _, value = pair.partition(b"=")
        key = _text(name)
        if key in found:
            raise Problem(400, "a parameter is given twice", errors={key: "is given twice"})
        found[key] = _text(value)
    return found


def _text(escaped: bytes) -> str:
    if b"+" in escaped:
        escaped = escaped.replace(b"+", b" ")
    try:
        return (unquote_to_bytes(escaped) if b"%" in escaped else escaped).decode()
    except UnicodeDecodeError:
        raise Problem(400, "the parameters are not UTF-8") from None


def switch(name: str, given: dict[str, str]) -> bool | None:
    """The parameter *name* as true or false; None where it is not given. Raises `Problem` 400."""
    value = given.get(name)
    if value is None:
        return None
    if value not in ("true", "false"):
        raise Problem(
            400, "a parameter is wrong", errors={name: f"must be true or false, not {value[:40]!r}"}
        )
    return value == "true"
