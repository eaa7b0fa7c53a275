"""The hot paths: those that take events in, each of them a function from a whole request to its answer.

Decision. The function is called in two ways. The short one is the callback in which the request arrived: no task,
no ASGI messages, no waiting, and it is the way of nearly all. What it does not do, `App` does: bodies that come in
pieces, are packed or large, batches of events, and answers that wait for the disk. Given up: one way for all; the
task that a server makes for each request costs more than all else that is done for an event.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from per_agent.log import Log
from per_agent.sidecar import events, payment_kit, per, problems
from per_agent.sidecar.answer import Answer
from per_agent.sidecar.answers import Taken
from per_agent.sidecar.asked import Asked
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.service import Service

_HEADS: Final = 512  # that are known
_LONGEST: Final = 2048  # bytes of one
_SMALL: Final = 16 * 1024  # bytes; to read a longer body would take a moment from all others


class Form(NamedTuple):
    """How requests of one wire form are taken.

    Attributes:
        methods: others are for others, or refused.
        limit: of the body in bytes; None: what the settings say.
        take: the answer to a request with this query and body. May give None where there is a `take_all`.
        take_all: the same where it takes its time.
    """

    methods: tuple[str, ...]
    limit: int | None
    take: Callable[[Service, Asked, bytes, bytes], Taken | None]
    take_all: Callable[[Service, Asked, bytes, bytes], Awaitable[Answer]] | None = None


FORMS: Final[Mapping[str, Form]] = {
    "/activities.add": Form(("GET", "POST"), per.LIMIT, per.take),
    "/v1/events": Form(("POST",), None, events.take, events.take_all),
    "/api/meter-events": Form(("POST",), payment_kit.LIMIT, payment_kit.take),
}


class Hot:
    """The short way. Belongs to the event loop's thread.

    Attributes:
        known: heads that came before, each with what it asks for, and with the length of the body that follows.
            A head begins with the way that the request came by, and lacks the query; the same bytes always mean
            the same, until `forget`.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._log = Log()
        self.known: dict[bytes, tuple[Asked, int]] = {}

    def asked(
        self, method: str, path: str, headers: list[tuple[bytes, bytes]], local: str | None, *, unix: bool
    ) -> Asked | None:
        """A request that may go the short way, by its head; None: it may not, or it may not go on at all."""
        form = FORMS.get(path)
        if form is None or method not in form.methods:
            return None
        try:
            asked = self._service.access.admit(method, path, headers, local, unix=unix)
        except Problem:
            return None
        given = asked.given
        if b"content-encoding" in given or b"transfer-encoding" in given:
            return None
        limit = self.limit(form)
        return asked if int(given.get(b"content-length", b"0")) <= min(limit, _SMALL) else None

    def limit(self, form: Form) -> int:
        """How many bytes a body of this form may have."""
        return self._service.settings.sidecar.max_body if form.limit is None else form.limit

    def learn(self, head: bytes, asked: Asked) -> None:
        """*head* is that of a request which asks for this."""
        if len(self.known) >= _HEADS:  # some of them never come again
            self.known.clear()
        if len(head) <= _LONGEST:
            self.known[head] = asked, int(asked.given.get(b"content-length", b"0"))

    def forget(self) -> None:
        """From now on, something else than before may decide who may ask for what."""
        self.known.clear()

    def answer(self, asked: Asked, query: bytes, content: bytes) -> Answer | None:
        """The answer to a whole request. None: it takes the long way, and nothing of it was accepted."""
        service = self._service
        if _may_wait(query) or service.settings.sidecar.answer_when != "accepted":
            return None
        began = time.perf_counter()
        path, request_id = asked.path, asked.request_id
        try:
            taken = FORMS[path].take(service, asked, query, content)
            if taken is None:
                return None
            answer = labelled(taken[0], request_id) if request_id else taken[0]
        except Problem as problem:
            answer = problems.answer(problem, path, request_id or self.new_id())
        except Exception:  # noqa: BLE001  (outermost)
            answer = self.defect(path, request_id or self.new_id())
        service.times.observe(path, answer.status, time.perf_counter() - began)
        return answer

    def defect(self, path: str, request_id: bytes) -> Answer:
        """What is answered where the sidecar is at fault; called while the exception is handled."""
        self._log.bug(
            "the sidecar met a defect in a request", endpoint=endpoint(path), request=request_id.decode()
        )
        return problems.answer(Problem(500, "a defect in the sidecar; see its log"), path, request_id)

    def new_id(self) -> bytes:
        """An id for a request that came without."""
        return self._service.new_id(time.time()).encode()


def _may_wait(query: bytes) -> bool:
    """Whether `wait` may be among the parameters, however it is written; True also where it is in a value."""
    return b"wait" in query or (b"%" in query and b"wait" in unquote_to_bytes(query))


def labelled(answer: Answer, request_id: bytes) -> Answer:
    """*answer* with the id of its request, if that has one."""
    if not request_id:
        return answer
    return msgspec.structs.replace(answer, headers=(*answer.headers, (b"x-request-id", request_id)))


def endpoint(path: str) -> str:
    """The label of *path* in metrics and logs: one of a few, and never an id that stands in it."""
    if path in FORMS or path == "/reports.get":
        return path
    return "/api" if path.startswith("/api/") else "other"
