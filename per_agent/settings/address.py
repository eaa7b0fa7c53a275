"""Addresses: a base URL, where a sidecar is, where ours listens; each taken apart, or named wrong in words.

A problem never quotes what it found: that may be a token on the wrong line.
"""

import re
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from per_agent.errors import ConfigError

URL: Final = "a URL such as https://host/path"
SIDECAR: Final = '"unix:/path" or a URL such as http://127.0.0.1:4737'
LISTEN: Final = '"HOST:PORT", "[::1]:PORT", or "" for no TCP'

_URL_CHARS: Final = re.compile(r"[^\s\x00-\x1f\x7f]+")  # urlsplit drops line breaks and tabs without a word
_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?\.?")
_NUMBERS: Final = re.compile(r"[0-9.]+")  # an IPv4 address, or the attempt to write one: never a name
_MAX_SOCKET_BYTES: Final = 107  # what Linux's sockaddr_un takes


def split_url(url: str) -> SplitResult:
    """The parts of a base URL. Raises `ConfigError` where it is not one."""
    return _split_url(url, URL)


def _split_url(url: str, shape: str) -> SplitResult:
    wanted = f"expected {shape}"
    if _URL_CHARS.fullmatch(url) is None:
        raise ConfigError(f"{wanted}, found {'nothing' if not url else 'white space or control characters'}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{wanted}: {str(error).split(':')[0]}") from None
    if parts.scheme not in {"http", "https"}:
        raise ConfigError(f"{wanted}, found no http:// or https:// in front")
    if not parts.hostname or port == 0:
        raise ConfigError(f"{wanted}, found no {'host' if not parts.hostname else 'usable port'}")
    if "@" in parts.netloc:
        raise ConfigError(f"{wanted}, found credentials inside: they have settings of their own")
    if "?" in url or "#" in url:
        raise ConfigError(f"{wanted}, found a query or a fragment, which a base URL has not")
    return parts


def socket_of(address: str) -> Path | None:
    """The Unix socket that a sidecar's *address* names; None where it is a URL. Raises `ConfigError`."""
    if not address.startswith("unix:"):
        _split_url(address, SIDECAR)
        return None
    path = address.removeprefix("unix:")
    if path.startswith("///"):  # unix:///path, as other programs write it
        path = path[2:]
    if not path.startswith("/") or path.startswith("//") or "\0" in path:
        raise ConfigError(f"expected {SIDECAR}, found no absolute path after unix:")
    check_socket(Path(path))
    return Path(path)


def check_socket(path: Path) -> None:
    """Raise `ConfigError` where no Unix socket can have this *path*."""
    length = len(bytes(path))
    if length > _MAX_SOCKET_BYTES:
        raise ConfigError(f"is {length} bytes long, and a Unix socket's path is at most {_MAX_SOCKET_BYTES}")


def split_listen(text: str) -> tuple[str, int] | None:
    """Host and port to listen on, an IPv6 host without its brackets; None for "". Raises `ConfigError`.

    Port 0 lets the system choose one.
    """
    if not text:
        return None
    wanted = f"expected {LISTEN}"
    host, _, port = text.rpartition(":")
    if not host or "]" in port:
        raise ConfigError(f"{wanted}, found no {'host' if text.startswith(':') else 'port'}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ConfigError(f"{wanted}, found colons that no [ ] stands around")
    if not is_host(host):
        raise ConfigError(f"{wanted}, found a host that is neither a name nor an address")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65_535):
        raise ConfigError(f"{wanted}, found no usable port")
    return host.strip("[]"), int(port)


def is_host(text: str) -> bool:
    """Whether *text* is a host as it stands in a URL: a name, an IPv4 address, or an IPv6 one in brackets."""
    if text.startswith("[") and text.endswith("]"):
        return _version(text[1:-1]) == 6
    if _NUMBERS.fullmatch(text) is not None:
        return _version(text) == 4
    return _NAME.fullmatch(text) is not None


def is_loopback(host: str) -> bool:
    """Whether what is sent to *host*, an IPv6 address being without brackets, stays on this machine."""
    host = host.lower().removesuffix(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def in_the_clear(address: str) -> bool:
    """Whether what is sent to *address*, a URL or a sidecar's, crosses a network unencrypted."""
    if socket_of(address) is not None:
        return False
    parts = urlsplit(address)
    return parts.scheme != "https" and not is_loopback(parts.hostname or "")


def _version(text: str) -> int | None:
    try:
        return ip_address(text).version
    except ValueError:
        return None
