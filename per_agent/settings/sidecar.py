"""`SidecarSettings`: where the sidecar listens, whom it lets in, and what it bounds."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from per_agent.errors import ConfigError
from per_agent.settings.address import check_socket, is_host, is_loopback, split_listen
from per_agent.settings.kinds import Listen, Mode, Size, parse_mode
from per_agent.settings.secret import Secret
from per_agent.settings.section import Section


class SidecarSettings(Section, frozen=True, kw_only=True):
    """The agent as a daemon that other processes hand events to.

    Attributes:
        unix_socket: its Unix socket; `socket_path` gives the default in the place of None.
        unix_mode: the mode of that socket's file, as octal text: who can write to it can use the sidecar.
        unix_group: the group of that file, by name; None leaves it as it is made.
        listen: `HOST:PORT` for TCP; port 0 is any that is free; empty means no TCP.
        allow_remote: whether *listen* may name what other machines can reach.
        hosts: names under which clients on TCP may call it, beside those of the loopback and of *listen*.
        token: what clients on TCP prove themselves by; None: one is made at first start and kept.
        max_body: the longest body of a request, in bytes.
        max_connections: connections that may be open at once by the Unix socket, and as many by TCP.
        request_timeout: seconds that a client may take to send one request.
        idle_timeout: seconds that a connection may wait for its next request.
        answer_when: what an answer waits for where the request does not say: that the event is in the agent's
            hands, or that it is on the disk.
        stored_timeout: seconds that a request which asks for it waits until its events are stored.
        shutdown_timeout: seconds that it goes on delivering after it was told to stop.
        log_format: for a person or for a machine; auto chooses by whether somebody watches.
        log_level: the least that is logged.
    """

    unix_socket: Path | None = None
    unix_mode: Mode = "0660"
    unix_group: str | None = None
    listen: Listen = "127.0.0.1:4737"
    allow_remote: bool = False
    hosts: tuple[str, ...] = ()
    token: Secret | None = None
    max_body: Size = 8 * 2**20
    max_connections: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1000
    request_timeout: Annotated[float, msgspec.Meta(gt=0, le=600)] = 30.0
    idle_timeout: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 75.0
    answer_when: Literal["accepted", "stored"] = "accepted"
    stored_timeout: Annotated[float, msgspec.Meta(gt=0, le=600)] = 30.0
    shutdown_timeout: Annotated[float, msgspec.Meta(ge=0, le=600)] = 5.0
    log_format: Literal["auto", "console", "json"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of *listen*, an IPv6 host without its brackets; None for no TCP."""
        return split_listen(self.listen)

    @property
    def mode(self) -> int:
        """The permission bits of *unix_mode*."""
        return parse_mode(self.unix_mode)

    def clashes(self) -> list[str]:
        problems = []
        if self.unix_socket is not None:
            try:
                check_socket(self.unix_socket)
            except ConfigError as error:
                problems.append(f"unix_socket: {error}")
        if self.unix_group == "":
            problems.append("unix_group: expected the name of a group, found an empty string")
        if self.address is not None and not is_loopback(self.address[0]) and not self.allow_remote:
            problems.append(
                "listen: other machines may reach this host, and what they send crosses the network"
                " unencrypted: listen on 127.0.0.1 or [::1], or set allow_remote = true"
            )
        problems += (
            f"hosts: item {at} is no host: expected a name or an address, without http:// and without a port"
            for at, host in enumerate(self.hosts, start=1)
            if not is_host(host)
        )
        return problems
