"""The sidecar as a process: it starts, listens, minds signals, drains and stops.

Order of starting: the sockets, the token, the spool; only then is the service manager told that all is ready.
Order of stopping: no connection is accepted any more (those who come wait in the socket where systemd holds
it, and are refused at once where it was made here); connections are answered and closed; what can be delivered
in time is; the rest is stored.
"""

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from functools import partial
from typing import Any, Final

import msgspec
import uvloop
from uvicorn.config import Config
from uvicorn.server import ServerState

from per_agent.agent import Agent
from per_agent.errors import ConfigError
from per_agent.log import Log
from per_agent.settings import Settings
from per_agent.sidecar import listeners, log
from per_agent.sidecar.access import Access
from per_agent.sidecar.app import App
from per_agent.sidecar.bounds import Bounds
from per_agent.sidecar.greeting import greeting
from per_agent.sidecar.loop import refuse_loop
from per_agent.sidecar.protocol import DRAIN, Protocol
from per_agent.sidecar.service import Service
from per_agent.sidecar.systemd import Notifier, inherited, watchdog_interval
from per_agent.sidecar.token import token_of

Reload = Callable[[], Settings]

_TICK: Final = 1.0  # seconds
_SWITCH: Final = (
    0.0005  # seconds that a busy thread keeps the interpreter from the event loop; Python's 5 ms are many
)
_LOOK: Final = 0.02  # seconds between looks, while stopping
_ANSWER: Final = 2 * DRAIN  # seconds that connections have at least to be answered and closed, while stopping
_STORE: Final = 15.0  # seconds that storing may take at the end, as the service manager is told
_DISK: Final = 9.0  # of them, seconds until the last try
_FIXED: Final = ("unix_socket", "unix_mode", "unix_group", "listen", "allow_remote")
"""Settings of the sidecar that are looked at once, at the start."""


def run(settings: Settings, environ: Mapping[str, str], reload: Reload | None = None) -> int:
    """Serve as *settings* say until SIGTERM or SIGINT. Returns the exit code: 1 where the disk did not take all.

    *reload* gives the settings anew at SIGHUP; it may raise `ConfigError`, and the old ones stay in force.
    Raises `ConfigError` and `SpoolError` where it cannot start.
    """
    log.configure(settings, sys.stderr, environ)
    fitting = _for_requests(settings)
    return serve(Agent.from_settings(fitting), fitting, environ, reload)


def serve(agent: Agent, settings: Settings, environ: Mapping[str, str], reload: Reload | None = None) -> int:
    """Serve *agent*, which is closed at the end. As `run` otherwise."""
    sockets = inherited(environ) or listeners.opened(settings, environ)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH)
    try:
        token = token_of(settings)
        log.hide(token)
        service = Service(agent, settings, Access(token, settings))
        service.listeners = tuple(map(listeners.name, sockets))
        refuse_loop(settings, service.listeners)
        agent.start(wait=True)
        server = _Server(service, sockets, environ, reload)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            unstored = runner.run(server.run())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # all is over, and how it ended is decided
    finally:
        agent.close(0.0)
        listeners.close(sockets)
        sys.setswitchinterval(switch)
    return 1 if unstored else 0


def _for_requests(settings: Settings) -> Settings:
    """*settings* with the overflow policy that requests need: a full spool is told to the client, with 503."""
    intake = msgspec.structs.replace(settings.intake, overflow="raise")
    return msgspec.structs.replace(settings, intake=intake)


class _Server:
    """One run: `run` returns when all is over, with how many events are not on the disk."""

    def __init__(
        self,
        service: Service,
        sockets: list[socket.socket],
        environ: Mapping[str, str],
        reload: Reload | None,
    ) -> None:
        self._service = service
        self._sockets = sockets
        self._environ = environ
        self._reload = reload
        self._notifier = Notifier(environ)
        interval = watchdog_interval(environ)
        self._feed_every = None if interval is None else interval / 3
        self._feed_at = 0.0
        self._said = ""
        self._app = App(service)
        bounds = service.settings.sidecar
        self._bounds = Bounds(
            listeners.make_room(bounds.max_connections), bounds.request_timeout, bounds.idle_timeout
        )
        self._config = Config(
            self._app,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=bounds.idle_timeout,  # type: ignore[arg-type]  # it is handed to call_later
        )
        self._config.load()
        self._state = ServerState()
        self._log = Log()

    async def run(self) -> int:
        self._told_to_stop = asyncio.Event()
        self._told_to_hurry = asyncio.Event()
        self._reloading = asyncio.Lock()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        loop.add_signal_handler(signal.SIGHUP, self._hung_up)
        self._tick()
        accepting = [await self._listen(loop, each) for each in self._sockets]
        self._log.info("the sidecar is ready", listeners=list(self._service.listeners))
        self._notifier.ready("ready")
        ticking = asyncio.create_task(self._tick_on())
        try:
            self._greet()
            await self._told_to_stop.wait()
            return await self._stop(accepting)
        finally:
            ticking.cancel()

    async def _listen(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> asyncio.Server:
        state: dict[str, Any] = {"unix": listener.family == socket.AF_UNIX}
        made = partial(Protocol, self._config, self._state, state, self._bounds, self._app.hot)
        # What is listened on belongs to `listeners`; the loop closes what it is given.
        return await loop.create_server(made, sock=listener.dup(), backlog=listeners.BACKLOG)

    def _greet(self) -> None:
        if "JOURNAL_STREAM" not in self._environ:
            sys.stdout.write(greeting(self._service.settings, self._service.listeners))
            sys.stdout.flush()

    # While it runs

    async def _tick_on(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            try:
                self._tick()
            except Exception:  # noqa: BLE001  (outermost)
                self._log.bug("the sidecar met a defect and goes on")

    def _tick(self) -> None:
        date = formatdate(usegmt=True).encode()
        self._state.default_headers = [(b"date", date)]
        self._bounds.renew(date)
        now = asyncio.get_running_loop().time()
        for connection in list(self._state.connections):
            connection.sweep(now)  # type: ignore[union-attr]  # they are all ours
        self._feed_watchdog(now)
        self._tell_status()

    def _feed_watchdog(self, now: float) -> None:
        """Feed it while the spooler and the courier go on: a process whose threads hang is better started again."""
        if self._feed_every is None or now < self._feed_at:
            return
        hanging = self._service.agent.pulse()
        if hanging:
            self._log.error("threads give no sign of life: the watchdog is not fed", threads=hanging)
        if hanging or self._notifier.watchdog():
            self._feed_at = now + self._feed_every

    def _tell_status(self) -> None:
        if not self._notifier:
            return
        said = f"{self._service.agent.unready or 'ready'}; {self._pending()} events pending"
        if said != self._said and self._notifier.status(said):
            self._said = said

    # Signals

    def _signalled(self) -> None:
        (self._told_to_hurry if self._told_to_stop.is_set() else self._told_to_stop).set()

    def _hung_up(self) -> None:
        task = asyncio.ensure_future(self._read_again())
        task.add_done_callback(lambda _: None)

    async def _read_again(self) -> None:
        """Take over tokens and tunables from the configuration, or say what is wrong with it and keep the old ones."""
        async with self._reloading:
            if self._reload is None:
                self._log.warning("there is no configuration to read again")
                return
            self._notifier.reloading()
            try:
                settings = _for_requests(await asyncio.to_thread(self._reload))
                token = await asyncio.to_thread(token_of, settings)
                log.hide(token)
                self._take_over(settings, token)
            except ConfigError as error:
                self._log.error(
                    "the new configuration is not good: the old one stays", problems=error.problems
                )
            except Exception:  # noqa: BLE001  (outermost)
                self._log.bug("the configuration could not be read again: the old one stays")
            self._notifier.ready("ready")

    def _take_over(self, settings: Settings, token: str) -> None:
        before, after = self._service.settings.sidecar, settings.sidecar
        restart = [f"sidecar.{name}" for name in _FIXED if getattr(before, name) != getattr(after, name)]
        restart += self._service.agent.reload(settings)
        self._service.access.renew(token, settings)
        self._service.settings = settings
        self._app.hot.forget()
        self._bounds.connections = listeners.make_room(after.max_connections)
        self._bounds.request_timeout = after.request_timeout
        self._bounds.idle_timeout = after.idle_timeout
        self._config.timeout_keep_alive = after.idle_timeout  # type: ignore[assignment]  # as above
        log.configure(settings, sys.stderr, self._environ)
        self._log.info(
            "the configuration was read again", **({"needs_a_restart": restart} if restart else {})
        )

    # Stopping

    async def _stop(self, accepting: list[asyncio.Server]) -> int:
        patience = self._service.settings.sidecar.shutdown_timeout
        deadline = time.monotonic() + patience
        self._log.info("stopping")
        self._notifier.stopping("storing and delivering")
        self._notifier.extend(max(patience, _ANSWER) + _STORE)
        self._service.draining = self._bounds.draining = True
        for each in accepting:
            each.close()
        listeners.close(listeners.made_here(self._sockets))
        connections = self._state.connections
        for connection in list(connections):
            connection.shutdown()
        # However little time there is for delivering: who was let in is answered.
        await self._until(
            lambda: not (connections or self._state.tasks), max(deadline, time.monotonic() + _ANSWER)
        )
        for connection in list(connections):
            connection.transport.abort()
        await self._app.close()
        await self._until(lambda: self._service.agent.settled, deadline)
        await self._disk()
        await asyncio.to_thread(self._service.agent.close, 0.0)
        unstored = self._in_memory()
        lost = 0 if self._service.agent.statistics().intake.journal else unstored
        found = {
            "kept_on_the_disk": self._pending() - unstored,
            "in_the_journal": unstored - lost,
            "lost": lost,
        }
        log = self._log.error if lost else self._log.warning if unstored else self._log.info
        log(
            "stopped", **{what: count for what, count in found.items() if count or what == "kept_on_the_disk"}
        )
        return lost

    async def _disk(self) -> None:
        """Wait for a disk that is in trouble, also when told to hurry. One that is only full takes the rest."""
        deadline = time.monotonic() + _DISK
        while self._in_memory() and time.monotonic() < deadline:
            spool = self._service.agent.statistics().spool
            if spool is not None and (spool.trouble == "full" or spool.crowded):
                return
            await asyncio.sleep(_LOOK)

    def _pending(self) -> int:
        """Events that are still to be delivered, over all destinations."""
        return sum(each.books.pending for each in self._service.agent.statistics().destinations.values())

    def _in_memory(self) -> int:
        """Those of them that are not on the disk."""
        return sum(each.in_memory for each in self._service.agent.statistics().destinations.values())

    async def _until(self, reached: Callable[[], bool], deadline: float) -> None:
        # What is looked at belongs to threads and to uvicorn, which set no event.
        while not reached() and time.monotonic() < deadline and not self._told_to_hurry.is_set():  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)
