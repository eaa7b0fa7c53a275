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
    if raw.count(b"&") >= _MOST:
        raise Problem(400, f"at most {_MOST} parameters are taken")
    try:
        # No byte of a longer character is an ampersand or an equals sign.
        for pair in raw.decode().replace("+", " ").split("&"):
            if not pair:
                continue
            name, _, value = pair.partition("=")
            if "%" in pair:
                name, value = unquote_to_bytes(name).decode(), unquote_to_bytes(value).decode()
            if name in found:
                raise Problem(400, "a parameter is given twice", errors={name: "is given twice"})
            found[name] = value
    except UnicodeDecodeError:
        raise Problem(400, "the parameters are not UTF-8") from None
    return found


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
