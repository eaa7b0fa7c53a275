"""Where an upstream is: its address and credentials checked, and ids made safe to stand in a path."""

import math
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from per_agent import late
from per_agent.errors import ConfigError

# Nothing is wrong with an address like this one; of others httpx is asked, which is heavy to load.
_OCTET: Final = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_LABEL: Final = "(?!xn--)[a-z](?:[a-z0-9-]{0,50}[a-z0-9])?"
_PLAIN: Final = re.compile(
    rf"https?://(?:{_OCTET}(?:\.{_OCTET}){{3}}|{_LABEL}(?:\.{_LABEL}){{0,4}})"
    r"(?::[0-9]{1,5})?(?:/[A-Za-z0-9_-]{1,50}){0,10}/?"
)


def segment(text: str) -> str:
    """*text* as one segment of a path. Raises `ValueError` where it is empty: that names the whole list."""
    if not text:
        raise ValueError("an id must not be empty")
    quoted = quote(text, safe="")
    # "." and ".." are steps in a path, which httpx takes; as escapes they are text.
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")


def check_config(
    name: str, url: object, secrets: Mapping[str, object], timeout: object, concurrency: object
) -> None:
    """Raise `ConfigError` where no destination can be made of these: all problems named, no secret quoted."""
    problems = [f"{name}: url {problem}" for problem in _url_problems(url)]
    for label, secret in secrets.items():
        if not isinstance(secret, str) or not secret:
            problems.append(f"{name}: {label} is missing")
        elif not all("!" <= char <= "~" for char in secret):
            problems.append(f"{name}: {label} holds white space or characters that no HTTP header takes")
    if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        problems.append(f"{name}: timeout must be a finite number of seconds above 0, not {timeout!r}")
    if not isinstance(concurrency, int) or concurrency < 1:
        problems.append(f"{name}: concurrency must be a whole number above 0, not {concurrency!r}")
    if problems:
        raise ConfigError(problems)


def _url_problems(url: object) -> list[str]:
    if isinstance(url, str) and _PLAIN.fullmatch(url):
        return []
    with late.here():
        import httpx  # noqa: PLC0415  (as above)
    try:
        parsed = httpx.URL(url)  # type: ignore[arg-type]  # unchecked input: that is what it checks
        parsed.host.encode("idna")  # a label that is too long would surface in the resolver, as no OSError
    except (httpx.InvalidURL, UnicodeError, TypeError) as error:
        return [f"is not an address: {error}"]
    problems = []
    if any(char.isspace() for char in str(url)):
        problems.append("must hold no white space")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        problems.append("must begin with https:// or http:// and name a host")
    if parsed.userinfo or parsed.query or parsed.fragment or "?" in str(url) or "#" in str(url):
        problems.append("must hold no user, password, query or fragment")
    return problems
