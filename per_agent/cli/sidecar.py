"""The running sidecar, as the command speaks to it; `finding` tells which one."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec

from per_agent.agent.letters import Choice
from per_agent.cli.exits import ExitCode, Stop
from per_agent.destinations.http import REPORT_LIMIT, Answer
from per_agent.destinations.sidecar import Sidecar as Destination
from per_agent.errors import Unavailable
from per_agent.event import RECORDS

REMEDY: Final = (
    "is it running? start it (per-agent run, or systemctl start per-agent), or name another: --sidecar"
)
TOKEN: Final = "PER_AGENT_SIDECAR_TOKEN"  # noqa: S105  (a variable's name)
_TIMEOUT: Final = 40.0  # seconds; storing may take 30, and a backlog on a slow disk is counted block by block
_PAGE: Final = 1000  # dead letters in one answer
_IDS_BYTES: Final = 2000  # of identifiers in one address, escaped


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
                f"{self.name} {wrong}: set {TOKEN} to that of its configuration, or to what stands in the"
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


def _object(answer: Answer) -> dict[str, Any] | None:
    """The JSON object of *answer*, its numbers exact; None where it is anything else."""
    try:
        value = None if answer.overrun else RECORDS.decode(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ArithmeticError):
        return None
    return value if isinstance(value, dict) else None


def _filters(choice: Choice) -> dict[str, str | float]:
    """*choice* without its identifiers, as the sidecar is told it."""
    given: Mapping[str, str | float | None] = {
        "destination": choice.destination,
        "reason": choice.reason,
        "meter": choice.meter,
        "older_than": _age(choice.before),
        "newer_than": _age(choice.since),
    }
    return {name: value for name, value in given.items() if value is not None}


def _age(moment: float | None) -> float | None:
    return None if moment is None else max(0.0, time.time() - moment)


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
