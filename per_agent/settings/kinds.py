"""The kinds of value that settings hold, and whether a value is of its kind, in words for a person."""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec

from per_agent.errors import ConfigError
from per_agent.event import MAX_EVENT_BYTES
from per_agent.settings.address import LISTEN, SIDECAR, URL, socket_of, split_listen, split_url
from per_agent.settings.secret import Secret

# A spool that cannot hold the longest event would refuse it for ever.
Size = Annotated[int, msgspec.Meta(ge=MAX_EVENT_BYTES, le=2**60, description="bytes")]
Url = Annotated[str, msgspec.Meta(description="url")]
SidecarAddress = Annotated[str, msgspec.Meta(description="a sidecar's address")]
Listen = Annotated[str, msgspec.Meta(description="an address to listen on")]
Mode = Annotated[str, msgspec.Meta(description="a file's mode")]

_UNITS: Final = {
    "B": 1,
    "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_SIZE: Final = re.compile(rf"([0-9]{{1,15}}(?:\.[0-9]{{1,9}})?) ?({'|'.join(_UNITS)})")
_MODE: Final = re.compile(r"0?[0-7]{3}")
_MODE_WORDS: Final = 'octal text such as "0660"'
_MAX_SHOWN: Final = 16  # a longer text is not quoted: it may be a token on the wrong line

_NAMES: Final = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Path: "a path as a string",
    Secret: '{ env = "NAME" }, { file = "/path" } or { credential = "name" }',
}
_PLURALS: Final = {str: "strings"}
_SORTS: Final[dict[type, str]] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a table",
    NoneType: "nothing",
}


def fit(value: object, kind: Any) -> Any:
    """*value* as *kind*, a field's type, wants it: an int becomes a float where a float is wanted.

    Raises `ConfigError` with what was expected and what was found.
    """
    try:
        fitting = msgspec.convert(value, kind)
    except msgspec.ValidationError:
        raise ConfigError(f"expected {expected(kind)}, found {_misfit(value, kind)}") from None
    if kind in _TEXTS:
        _TEXTS[kind][1](fitting)
    return fitting


def expected(kind: Any) -> str:
    """What a field of the type *kind* takes, in words."""
    if kind == Size:
        return f'bytes, as an integer or such as "10 GiB", at least {MAX_EVENT_BYTES}'
    if kind in _TEXTS:
        return _TEXTS[kind][0]
    if get_origin(kind) is tuple:
        return f"a list of {_PLURALS[get_args(kind)[0]]}"
    if get_origin(kind) is Literal:
        *others, last = (f'"{choice}"' for choice in get_args(kind))
        return f"{', '.join(others)} or {last}"
    if get_origin(kind) is Annotated:
        base, meta = get_args(kind)
        return _NAMES[base] + _range(meta)
    return " or ".join(_NAMES[leaf] for leaf in leaves(kind))


def _misfit(value: object, kind: Any) -> str:
    """What was found in the place of a *kind*: in a list, the first item that is wrong."""
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        item = get_args(kind)[0]
        for at, each in enumerate(value, start=1):
            if not isinstance(each, item):
                return f"{found(each)} as item {at}"
    return found(value)


def _range(meta: msgspec.Meta) -> str:
    words = []
    if meta.gt is not None:
        words.append(f"above {meta.gt}")
    if meta.ge is not None:
        words.append(f"at least {meta.ge}")
    if meta.le is not None:
        words.append(f"at most {meta.le}")
    return f" ({' and '.join(words)})" if words else ""


def found(value: object) -> str:
    """*value* in words. What is long is not quoted."""
    if isinstance(value, str) and len(value) <= _MAX_SHOWN:
        return f"the string {value!r}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**_MAX_SHOWN):
        return str(value)
    return sort_of(value)


def sort_of(value: object) -> str:
    """What sort of thing *value* is, for where it may be a token and must not be quoted."""
    return _SORTS.get(type(value), f"a {type(value).__name__}")


def leaves(kind: Any) -> tuple[Any, ...]:
    """The types in a union, None left out; for any other type, the type alone."""
    if not isinstance(kind, UnionType):
        return (kind,)
    return tuple(leaf for leaf in get_args(kind) if leaf is not NoneType)


def parse_size(text: str) -> int:
    """The bytes that "10 GiB" or "1.5 MB" stands for. Raises `ConfigError` for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"expected {expected(Size)}, found {found(text)}; units: {', '.join(_UNITS)}")
    return int(Decimal(match[1]) * _UNITS[match[2]])


def parse_mode(text: str) -> int:
    """The permission bits that "0660" stands for. Raises `ConfigError` for anything else."""
    if _MODE.fullmatch(text) is None:
        raise ConfigError(f"expected {_MODE_WORDS}, found {found(text)}")
    return int(text, 8)


# Text that has a shape: the shape in words, and what raises `ConfigError` where the text has it not.
_TEXTS: Final[Mapping[Any, tuple[str, Callable[[str], object]]]] = {
    Url: (URL, split_url),
    SidecarAddress: (SIDECAR, socket_of),
    Listen: (LISTEN, split_listen),
    Mode: (_MODE_WORDS, parse_mode),
}
