"""The running sidecar, as the command speaks to it: where it is found, and what it is asked."""

import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import msgspec

from per_agent.agent.letters import Choice
from per_agent.cli.call import Call
from per_agent.cli.exits import ExitCode, Stop
from per_agent.destinations.http import REPORT_LIMIT, Answer
from per_agent.destinations.sidecar import Sidecar as Destination
from per_agent.errors import ConfigError, Unavailable
from per_agent.event import RECORDS
from per_agent.settings import Settings, socket_path, token_path
from per_agent.settings.address import socket_of
from per_agent.settings.environment import variable

_SERVICE: Final = Path("/run/per-agent/agent.sock")
"""Where the systemd service listens."""
_CONNECT: Final = 2.0  # seconds
_TIMEOUT: Final = 40.0  # seconds; storing may take 30, and a backlog on a slow disk is counted block by block
_PAGE: Final = 1000  # dead letters in one answer
_IDS_BYTES: Final = 2000  # of identifiers in one address, escaped
_TOKEN: Final = "PER_AGENT_SIDECAR_TOKEN"  # noqa: S105  (a variable's name)


class Sidecar:
    """One running sidecar. What is wrong with it, or with what it was asked, ends the command with a line."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address
        self.destination = Destination(address, token, timeout=_TIMEOUT, concurrency=1)
        """Takes events and passthrough calls there."""
        self._upstream = self.destination.management

    def close(self) -> None:
        self.destination.close()

    @property
    def name(self) -> str:
        return f"the sidecar at {self.address}"

    def status(self) -> dict[str, Any]:
        """The document of `status`."""
        return self._value("destinations", "GET", "/v1/status")

    def books(self) -> dict[str, Any]:
        """The document of `books`."""
        return self._value("balanced", "GET", "/v1/books")

    def letters(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """The dead letters that *choice* means, page by page."""
        filters = [(name, str(value)) for name, value in _filters(choice).items()]
        for ids in _batches(sorted(choice.ids)) if choice.ids else ([],):
            asked = [*filters, *(("id", each) for each in ids), ("limit", str(_PAGE))]
            after: str | None = ""
            while after is not None:
                query = [*asked, ("after", after)] if after else asked
                page = self._value("dead_letters", "GET", "/v1/dead-letters", query)
                yield from page["dead_letters"]
                after = page["next"]

    def count(self, choice: Choice) -> int:
        """How many dead letters *choice* means, which names no identifiers."""
        query = [*((name, str(value)) for name, value in _filters(choice).items()), ("limit", "1")]
        total: int = self._value("total", "GET", "/v1/dead-letters", query)["total"]
        return total

    def change(self, what: str, choice: Choice, ids: list[str]) -> int:
        """Have letters changed: *what* is `requeue` or `purge`; those of *ids*, or all of *choice* without any."""
        named: dict[str, Any] = {**_filters(choice), **({"ids": ids} if ids else {})}
        done = f"{what}d"
        answer = self._value(done, "POST", f"/v1/dead-letters/{what}", document=named or {"all": True})
        changed: int = answer[done]
        return changed

    def refusal(self, answer: Answer) -> Stop:
        """How a command ends that got *answer*."""
        fields = answer.object() or {}
        if answer.status == 401:
            wrong = "asks for a token" if self._upstream.token is None else "refuses the token"
            return Stop(
                ExitCode.USAGE,
                f"{self.name} {wrong}: set {_TOKEN} to that of its configuration, or to what stands in the"
                " file sidecar.token of its data folder",
            )
        if "detail" not in fields:
            words = self._upstream.reason(answer)
            return Stop(ExitCode.USAGE, f"what answers at {self.address} is not a per_agent sidecar: {words}")
        words = "; ".join(f"{field}: {problem}" for field, problem in fields.get("errors", {}).items())
        return Stop(ExitCode.NO, f"{self.name}: {words or fields['detail']}")

    def silence(self, error: Unavailable) -> Stop:
        """How a command ends that got no answer."""
        return Stop(ExitCode.UNREACHABLE, f"{self.name} does not answer: {error.words}; {REMEDY}")

    def _value(
        self,
        key: str,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        document: Any = None,
    ) -> dict[str, Any]:
        """The JSON object that is answered; one without *key* is not a sidecar's. Raises `Stop`."""
        body = None if document is None else msgspec.json.encode(document)
        try:
            answer = self._upstream.ask(method, path, query, body, limit=REPORT_LIMIT)
        except Unavailable as error:
            raise self.silence(error) from None
        value = _object(answer)
        if answer.status != 200 or value is None or key not in value:
            raise self.refusal(answer)
        return value


REMEDY: Final = (
    "is it running? start it (per-agent run, or systemctl start per-agent), or name another: --sidecar"
)


def found(call: Call) -> Sidecar | None:
    """The sidecar that *call* is for: the named one, else the one that runs on the folder; None without one.

    A folder or a configuration that the command line names is never answered for by another's sidecar.
    Raises `Stop` where a named one cannot be reached, and `ConfigError` where its address is none.
    """
    named = named_sidecar(call)
    if named is not None:
        return named
    settings = _settings(call)
    own = _own(call, settings)
    if own is not None or _is_particular(call):
        return own
    try:
        return _over(_SERVICE) if _listens(_SERVICE) else None
    except PermissionError:
        raise Stop(
            ExitCode.USAGE,
            f"the sidecar's socket {_SERVICE} is not for this user: join its group, or name a folder of your"
            " own with --data-dir",
        ) from None


def named_sidecar(call: Call) -> Sidecar | None:
    """The sidecar that the option names, else the environment. Raises as `found` does."""
    option, address = "--sidecar", call.sidecar
    if address is None and call.config is None and call.data_dir is None:
        option, address = "PER_AGENT_SIDECAR", variable(call.environ, "PER_AGENT_SIDECAR")
    if address is None:
        return None
    try:
        path = socket_of(address)
    except ConfigError as error:
        raise ConfigError([f"{option}: {problem}" for problem in error.problems]) from None
    try:
        reached = _listens(path) if path is not None else _accepts(address)
    except OSError as error:
        words = error.strerror or str(error)
    else:
        words = "" if reached else "nobody listens there"
    if words:
        raise Stop(ExitCode.UNREACHABLE, f"the sidecar at {address} cannot be reached: {words}; {REMEDY}")
    return Sidecar(address, _token(call) if path is None else None)


def _own(call: Call, settings: Settings | None) -> Sidecar | None:
    """The sidecar that runs on the folder of *settings*."""
    if settings is None:
        folder = call.named_folder  # then there is nothing else to go by
        path = None if folder is None else folder / "agent.sock"
    else:
        folder, path = settings.agent.data_dir, socket_path(settings, call.environ)
    if folder is None or path is None:
        return None
    try:
        if not _listens(path):
            return None
    except PermissionError:
        return None  # whoever may not open the socket is told of the folder
    sidecar = _over(path)
    if path.parent == folder:
        return sidecar
    # A socket elsewhere may be that of another folder: `--data-dir` goes over what a configuration says.
    if Path(sidecar.status()["data_dir"]).resolve() == folder.resolve():
        return sidecar
    sidecar.close()
    return None


def _over(path: Path) -> Sidecar:
    return Sidecar(f"unix:{path}", None)


def _is_particular(call: Call) -> bool:
    """Whether something says which folder or which configuration is meant."""
    named = ("PER_AGENT_CONFIG", "PER_AGENT_DATA_DIR")
    return call.config is not None or call.data_dir is not None or any(each in call.environ for each in named)


def _settings(call: Call) -> Settings | None:
    try:
        return call.settings()
    except ConfigError:
        return None  # whoever needs them is told


def _token(call: Call) -> str | None:
    """What to show on TCP: the variable, else what the sidecar of this folder asks for. Raises `Stop`."""
    token = variable(call.environ, _TOKEN) or _kept(_settings(call))
    if token is not None and not all("!" <= char <= "~" for char in token):
        raise Stop(ExitCode.USAGE, f"{_TOKEN}: holds white space or characters that no token has")
    return token


def _kept(settings: Settings | None) -> str | None:
    if settings is None:
        return None
    if settings.sidecar.token is not None:
        return settings.sidecar.token.reveal()
    try:
        return token_path(settings).read_text(encoding="ascii", errors="replace").strip() or None
    except OSError:
        return None


def _listens(path: Path) -> bool:
    """Whether somebody listens on the Unix socket *path*. Raises `PermissionError` where one may not ask."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_CONNECT)
        try:
            probe.connect(str(path))
        except PermissionError:
            raise
        except BlockingIOError:
            return True  # so many want to talk to it that this one has to wait
        except OSError:
            return False
    return True


def _accepts(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with socket.create_connection((parts.hostname or "", port), _CONNECT):
        return True


def _object(answer: Answer) -> dict[str, Any] | None:
    """The JSON object of *answer*, its numbers exact; None where it is anything else."""
    try:
        value = None if answer.overrun else RECORDS.decode(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ArithmeticError):
        return None
    return value if isinstance(value, dict) else None


def _filters(choice: Choice) -> dict[str, str | float]:
    """*choice* without its identifiers, as the sidecar is told it."""
    age = None if choice.before is None else max(0.0, time.time() - choice.before)
    given: Mapping[str, str | float | None] = {
        "destination": choice.destination,
        "reason": choice.reason,
        "meter": choice.meter,
        "older_than": age,
    }
    return {name: value for name, value in given.items() if value is not None}


def _batches(ids: Iterable[str]) -> Iterator[list[str]]:
    """*ids* in lists that fit into one address each."""
    batch: list[str] = []
    size = 0
    for each in ids:
        length = len(quote(each, safe="")) + 4
        if batch and size + length > _IDS_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += length
    yield batch
