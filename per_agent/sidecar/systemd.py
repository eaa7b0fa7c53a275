"""The service manager's side: what systemd is told, what it asks for, and the sockets that it hands over.

Its three protocols are a datagram, two variables and a range of descriptors, all promised to stay as they are
(sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3)), so no library stands between. Where another manager
speaks the same protocols, or none does, nothing here minds.
"""

import os
import socket
import time
from collections.abc import Mapping
from typing import Final

from per_agent.errors import ConfigError

_FIRST: Final = 3  # SD_LISTEN_FDS_START: the descriptors after stderr
_MOST_SOCKETS: Final = 64  # what a unit may pass, so that a wrong number is not counted out
_FAMILIES: Final = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
# Seconds that a message may wait for room in the manager's queue, which holds ten. All are sent from the event
# loop: only what is said once waits at all, and what is said every second is said again a second later.
_PATIENCE: Final = 1.0
# A message of more than 4,096 bytes is dropped as a whole, and with it the READY=1 that it holds.
_MOST_STATUS: Final = 1000  # bytes


class Notifier:
    """Tells the service manager how it goes. Where there is no manager, every method does nothing.

    Never raises, and waits at most a second; `status` and `watchdog` do not wait. Each method returns whether the
    manager has the message. One object may be used from any thread.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))

    def __bool__(self) -> bool:
        """Whether there is a manager to tell."""
        return bool(self._address)

    def ready(self, status: str = "") -> bool:
        """Up, or up again after `reloading`: what is ordered after this service may start."""
        return self._send("READY=1", _status(status))

    def reloading(self) -> bool:
        """The configuration is being read again; `ready` must follow, whether it was any good or not."""
        # The manager tells by the time whether this belongs to the reload that it asked for last.
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> bool:
        """On the way out."""
        return self._send("STOPPING=1", _status(status))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`. Never a token, never a person's identifier."""
        return self._send(_status(text), patience=0.0)

    def extend(self, seconds: float) -> bool:
        """Starting or stopping takes a while: at least *seconds* from now before anybody is killed for it."""
        return self._send(f"EXTEND_TIMEOUT_USEC={max(1, round(seconds * 1_000_000))}")

    def watchdog(self) -> bool:
        """A sign of life: due once in every `watchdog_interval`."""
        return self._send("WATCHDOG=1", patience=0.0)

    def _send(self, *assignments: str, patience: float = _PATIENCE) -> bool:
        if not self._address:
            return False
        message = "\n".join(filter(None, assignments)).encode()
        # A socket for each message: there are few, and none is shared over a fork or with another thread.
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(patience)
                return sender.sendto(message, self._address) == len(message)
        except (OSError, ValueError):  # ValueError: a NUL within a path
            return False


def _address(named: str) -> bytes:
    """The address in the form that the kernel takes; empty where there is none that is a Unix socket."""
    if named.startswith("@"):  # a name outside of the file system
        return b"\0" + os.fsencode(named[1:])
    return os.fsencode(named) if named.startswith("/") else b""


def _status(text: str) -> str:
    """The assignment that shows *text*: one line, so that nothing in it is taken for another assignment."""
    if not text:
        return ""
    line = " ".join(text.split()).encode("utf-8", "replace")
    return "STATUS=" + line[:_MOST_STATUS].decode("utf-8", "ignore")


def watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Seconds within which the manager wants a sign of life, or None where it wants none of this process.

    Give it twice as often: what is late by a little is killed. Raises `ConfigError` for what is no number.
    """
    # Variables reach children and theirs, who must not take for their own what was meant for an ancestor.
    another = environ.get("WATCHDOG_PID", "") not in ("", str(os.getpid()))
    if another or not environ.get("WATCHDOG_USEC"):
        return None
    return _number(environ, "WATCHDOG_USEC", most=2**63) / 1_000_000


def inherited(environ: Mapping[str, str]) -> list[socket.socket]:
    """The listening sockets that the manager opened and passed to this process; none where it passed none.

    They are the caller's from here on, so this is called once. A child process does not get them. They stay
    open in the manager: closing them refuses nobody, while `shutdown`, or removing the file of a Unix socket,
    would end them for the next process, too.

    Raises `ConfigError`, with every descriptor that is no listening stream socket named; nothing stays open then.
    """
    if not environ.get("LISTEN_FDS") or environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    sockets: list[socket.socket] = []
    problems: list[str] = []
    for position in range(_number(environ, "LISTEN_FDS", _MOST_SOCKETS)):
        name = f" ({names[position]})" if position < len(names) and names[position] else ""
        try:
            sockets.append(_listening(_FIRST + position))
        except ConfigError as error:
            problems.append(f"LISTEN_FDS: descriptor {_FIRST + position}{name} {error}")
    if problems:
        for each in sockets:
            each.close()
        raise ConfigError(problems)
    return sockets


def _listening(descriptor: int) -> socket.socket:
    """The socket that is open as *descriptor*. Raises `ConfigError`, which begins with a verb."""
    try:
        os.set_inheritable(descriptor, False)
        found = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(f"is not a socket: {error.strerror}") from None
    problem = _problem(found)
    if problem is not None:
        found.close()
        raise ConfigError(problem)
    return found


def _problem(found: socket.socket) -> str | None:
    """Why nobody can connect to *found*, or None."""
    if found.family not in _FAMILIES:
        return f"is of the family {_named(found.family)}, not a Unix or an internet socket"
    if found.type != socket.SOCK_STREAM:
        return f"is of the type {_named(found.type)}, not a stream: the unit must say ListenStream="
    if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen: the unit must say Accept=no"
    return None


def _named(kind: int) -> str:
    """*kind* as Python names it, or its number where it has no name for it."""
    return kind.name if isinstance(kind, socket.AddressFamily | socket.SocketKind) else str(kind)


def _number(environ: Mapping[str, str], name: str, most: int) -> int:
    text = environ[name]
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(most)) or not 0 < int(text) <= most:
        raise ConfigError(f"{name}: expected a number from 1 to {most}, found {text[:40]!r}")
    return int(text)
