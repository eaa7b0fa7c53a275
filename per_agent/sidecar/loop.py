"""A sidecar that would deliver to itself.

It knows the identifiers that it took, so it would tell itself that it has the events already, and call them
delivered: nobody would ever get them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from per_agent.errors import ConfigError
from per_agent.settings import Settings, SidecarDestinationSettings
from per_agent.settings.address import socket_of

_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")


def refuse_loop(settings: Settings, listeners: Iterable[str]) -> None:
    """Raise `ConfigError` where a destination is the very sidecar that *settings* are for, which has *listeners*.

    Other names of this machine need no look-up: the sidecar does not go by them, and refuses what calls it so.
    """
    own = set(map(_place, listeners))
    ports = {each.rpartition(":")[2] for each in own if each.startswith("http://")}
    hosts = [each.lower() for each in settings.sidecar.hosts]
    own |= {f"http://{host}:{port}" for port in ports for host in (*_LOOPBACK, *hosts)}
    for name, destination in settings.destinations.items():
        if isinstance(destination, SidecarDestinationSettings) and _place(destination.url) in own:
            raise ConfigError(
                f"destinations.{name}.url: is this sidecar itself: its events would go round for ever"
            )


def _place(address: str) -> str:
    """*address* in the one form of all that mean the same socket."""
    socket = None if address.startswith("unix:@") else socket_of(address)
    return address.rstrip("/").lower() if socket is None else f"unix:{Path(socket).resolve()}"
