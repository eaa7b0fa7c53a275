"""`PaymentKit`: one meter event per request, its identifier the same on every attempt.

The rules follow the Payment Kit SDK reference (Meters and Meter Events) and, where it is silent, what
Blocklet Server's gateway was seen to do: `livemode` belongs into every query, an answer is believed only when
it is the stored event, a duplicate is a success, a 404 may be the gateway hiding that the access key lapsed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from per_agent.destinations.http import SEND_LIMIT, Answer, Upstream, check_config, clip, segment
from per_agent.destinations.outcome import Delivered, Halt, Outcome, Parked, Refused, Retry
from per_agent.destinations.payment_kit.body import body_of
from per_agent.destinations.payment_kit.vocabulary import Meaning, is_gateway_404, meaning, without
from per_agent.errors import Refused as NotSendable
from per_agent.errors import Unavailable
from per_agent.event import Event, MeterEvent
from per_agent.log import Log

_REMEMBERED: Final = 10_000  # customers known to exist; when full, all are forgotten and asked for again
_LIST_LIMIT: Final = 4 * 1024 * 1024  # bytes: a page of 100 events with their metadata
_PAGES: Final = 3
_NO_WORDS: Final = frozenset({401, 402, 403, 407, 413})  # statuses that say it all, whatever the words


class PaymentKit:
    """A Payment Kit at *url*, its mount path included. *livemode* is for events that name no mode themselves.

    *timeout* is in seconds, for one request. An event mostly takes one, and at most six: its customer is made
    and it is sent again, or its meter or the stored events are looked at. Raises `ConfigError`, which quotes
    no key.
    """

    takes: frozenset[type[Event]] = frozenset({MeterEvent})
    batch: int = 1  # Payment Kit has no batch call
    counts_on_arrival: bool = False

    def __init__(
        self,
        url: str,
        access_key: str,
        livemode: bool = True,
        *,
        name: str = "payment_kit",
        timeout: float = 10.0,
        concurrency: int = 4,
    ) -> None:
        check_config(name, url, {"access_key": access_key}, timeout, concurrency)
        self.name = name
        self.livemode = livemode
        self.concurrency = concurrency
        self._upstream = Upstream(name, url, access_key, timeout=timeout, concurrency=concurrency)
        self.management = Upstream(name, url, access_key, timeout=timeout, concurrency=concurrency)
        """For meters and lists, with connections of its own: they take none from the senders."""
        self._known_customers: set[str] = set()
        self._said: set[str] = set()
        self._log = Log(destination=name)

    def __repr__(self) -> str:
        return f"PaymentKit(url={self._upstream.url!r}, livemode={self.livemode!r}, name={self.name!r})"

    def authorize(self, access_key: str, *, timeout: float) -> None:
        """Go on with another key and bound; exchanges under way end as they began.

        Raises `ConfigError`, and then nothing has changed.
        """
        check_config(self.name, self._upstream.url, {"access_key": access_key}, timeout, self.concurrency)
        for upstream in (self._upstream, self.management):
            upstream.authorize(access_key, timeout=timeout)

    def open(self, data_dir: Path) -> None:
        """Nothing to get ready: connections are made by the first request of each process."""

    def send(self, events: Sequence[Event]) -> Sequence[Outcome]:
        """Store each of *events*. The time it takes is bounded by six times `timeout` for each."""
        return [self._send(event) for event in events]

    def _send(self, event: Event) -> Outcome:
        if not isinstance(event, MeterEvent):
            raise TypeError(f"{self.name} takes meter events, not {type(event).__name__}")
        try:
            answer = self._post(event)
            if self._means(answer, event) is Meaning.CUSTOMER and self._make_customer(event):
                answer = self._post(event)
            return self._outcome(answer, event)
        except Unavailable as error:
            return Retry(error.words, error.retry_after)
        except NotSendable as error:
            return Refused(error.words)

    def _post(self, event: MeterEvent) -> Answer:
        return self._upstream.ask("POST", "/api/meter-events", self._mode(event), body_of(event))

    def _mode(self, event: MeterEvent) -> tuple[tuple[str, str], ...]:
        return (("livemode", "true" if self._is_live(event) else "false"),)

    def _is_live(self, event: MeterEvent) -> bool:
        return self.livemode if event.livemode is None else event.livemode

    # What the answer means

    def _outcome(self, answer: Answer, event: MeterEvent) -> Outcome:
        if 200 <= answer.status < 300:
            return self._stored(answer, event)
        reason = self._upstream.reason(answer)
        if answer.is_passing:
            return Retry(reason, answer.retry_after)
        if answer.status < 400:
            return Halt(f"redirected: the access key lapsed, or the address is wrong: {reason}")
        if answer.status in (401, 403, 407):
            return Halt(f"the access key is wrong or lacks the role: {reason}")
        return self._refusal(answer, event, reason)

    def _stored(self, answer: Answer, event: MeterEvent) -> Outcome:
        fields = answer.object() or {}
        if not fields.get("id") or fields.get("identifier") not in (None, event.id):
            reason = self._upstream.reason(answer)
            return Halt(f"what answered is not Payment Kit, or not about this event: {reason}")
        if fields.get("livemode") not in (None, self._is_live(event)):
            self._say_once("an event was stored in another mode than asked for: look at livemode and the key")
        return Delivered()

    def _refusal(self, answer: Answer, event: MeterEvent, reason: str) -> Outcome:
        means = self._means(answer, event)
        outcome: Outcome
        if means is Meaning.CREDENTIALS:
            outcome = Halt(reason)
        elif means is Meaning.DUPLICATE:
            outcome = self._duplicate(answer, event, reason)
        elif answer.status == 402:
            outcome = Parked(self._customer_key(event), reason)
        elif answer.status == 413:
            # Payment Kit answers in JSON; a proxy that takes nothing must not bury everything.
            outcome = Refused(reason, certain=answer.object() is not None)
        elif means is Meaning.METER:
            outcome = Parked(self._meter_key(event), reason)
        elif means is Meaning.CUSTOMER:
            outcome = Parked(self._customer_key(event), reason)
        elif answer.status == 404:
            outcome = self._not_found(event, reason)
        elif answer.status not in (400, 409, 422):
            outcome = Refused(reason, certain=False)
        elif means is Meaning.FIELD:
            outcome = Refused(reason)
        else:
            outcome = self._unrecognised(answer, event, reason)
        return outcome

    def _means(self, answer: Answer, event: MeterEvent) -> Meaning:
        is_refusal = 400 <= answer.status < 500 and not answer.is_passing
        if not is_refusal or answer.status in _NO_WORDS:
            return Meaning.UNKNOWN
        return meaning(answer, _own(event))

    def _duplicate(self, answer: Answer, event: MeterEvent, reason: str) -> Outcome:
        if (answer.object() or {}).get("identifier") not in (None, event.id):
            return Halt(f"the answer is about another event: {reason}")
        said = clip(without(self._upstream.hide(answer.text), _own(event)))
        self._say_once(f"taken as a duplicate, and so as delivered: HTTP {answer.status}: {said}")
        return Delivered()

    def _not_found(self, event: MeterEvent, reason: str) -> Outcome:
        """A 404 is the event's own only where its meter can be read: else it may be the gateway's refusal."""
        answer = self._ask_meter(event.event_name, self._mode(event))
        outcome: Outcome = Halt(f"the access key lapsed, lacks the role, or the address is wrong: {reason}")
        if _is_down(answer):
            outcome = Retry(self._upstream.reason(answer), answer.retry_after)
        elif is_meter(answer):
            active = (answer.object() or {}).get("status") == "active"
            outcome = Refused(reason, certain=False) if active else Parked(self._meter_key(event), reason)
        elif answer.status == 500 or (_is_json(answer, 404) and not is_gateway_404(answer)):
            outcome = Parked(self._meter_key(event), self._upstream.reason(answer))
        return outcome

    def _unrecognised(self, refusal: Answer, event: MeterEvent, reason: str) -> Outcome:
        """Words that could mean a duplicate as well as a bad event: see whether the event is stored."""
        for page in range(1, _PAGES + 1):
            answer = self._look(
                "/api/meter-events",
                (
                    ("event_name", event.event_name),
                    ("customer_id", event.customer_id),
                    # Whether the ends belong to the span is not documented.
                    ("start", str(int(event.timestamp) - 1)),
                    ("end", str(int(event.timestamp) + 1)),
                    ("page", str(page)),
                    ("pageSize", "100"),
                    *self._mode(event),
                ),
                limit=_LIST_LIMIT,
            )
            if _is_down(answer):
                return Retry(f"cannot tell yet whether it is stored already: {reason}", answer.retry_after)
            stored = (answer.object() or {}).get("list")
            if not isinstance(stored, list) or not stored:
                break
            if any(isinstance(one, dict) and one.get("identifier") == event.id for one in stored):
                return self._duplicate(refusal, event, reason)
        return Refused(reason, certain=False)

    # What an event waits for

    def _meter_key(self, event: MeterEvent) -> str:
        return f"meter:{'live' if self._is_live(event) else 'test'}:{event.event_name}"

    def _customer_key(self, event: MeterEvent) -> str:
        return f"customer:{'live' if self._is_live(event) else 'test'}:{event.customer_id}"

    def _make_customer(self, event: MeterEvent) -> bool:
        """Let Payment Kit create the customer, once: whether it exists now and sending again is worth it."""
        key = self._customer_key(event)
        if key in self._known_customers:
            return False
        answer = self._ask_customer(event.customer_id, self._mode(event))
        if _is_down(answer):
            reason, after = self._upstream.reason(answer), answer.retry_after
            raise Unavailable(self.name, "GET /api/customers", reason, retry_after=after)
        if not _is_json(answer, 200):
            return False
        if len(self._known_customers) >= _REMEMBERED:
            self._known_customers.clear()
        self._known_customers.add(key)
        return True

    def _ask_customer(self, customer_id: str, mode: Sequence[tuple[str, str]]) -> Answer:
        path = f"/api/customers/{segment(customer_id)}"
        return self._look(path, (("create", "true"), *mode))

    def _ask_meter(self, event_name: str, mode: Sequence[tuple[str, str]]) -> Answer:
        return self._look(f"/api/meters/{segment(event_name)}", mode)

    def _look(self, path: str, query: Sequence[tuple[str, str]], *, limit: int = SEND_LIMIT) -> Answer:
        """Ask what an answer means. Where that is not answered, the event itself was: it is not in doubt."""
        try:
            return self._upstream.ask("GET", path, query, limit=limit)
        except Unavailable as error:
            words = f"answered, and a look-up failed: {error.words}"
            raise Unavailable(self.name, f"GET {path}", words) from error

    def probe(self, key: str) -> bool:
        """Whether the meter is active, or the customer exists; it is created where that works by now.

        A key that this version does not write may go on: the next attempt says more than a guess.
        """
        kind, mode, rest = [*key.split(":", 2), "", ""][:3]
        if not rest:
            return True
        query = (("livemode", "true" if mode == "live" else "false"),)
        try:
            match kind:
                case "meter":
                    answer = self._ask_meter(rest, query)
                    return is_meter(answer) and (answer.object() or {}).get("status") == "active"
                case "customer":
                    return _is_json(self._ask_customer(rest, query), 200)
        except (Unavailable, NotSendable):
            return False
        return True

    def parking_keys(self, event: Event) -> Sequence[str]:
        """The meter and the customer that an event may wait for."""
        return (self._meter_key(event), self._customer_key(event)) if isinstance(event, MeterEvent) else ()

    def close(self) -> None:
        self._upstream.close()
        self.management.close()

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said and len(self._said) < 10:
            self._said.add(sentence)
            self._log.warning(sentence)


def is_meter(answer: Answer) -> bool:
    """Whether *answer* is a meter, and so came from Payment Kit and not from something before it."""
    return _is_json(answer, 200) and bool((answer.object() or {}).get("id"))


def _is_json(answer: Answer, status: int) -> bool:
    wanted = range(200, 300) if status == 200 else (status,)
    return answer.status in wanted and answer.object() is not None


def _is_down(answer: Answer) -> bool:
    """Whether a look-up failed for all. A 500 may be about the one thing looked up, and stops no others."""
    return answer.is_passing and answer.status != 500


def _own(event: MeterEvent) -> tuple[str | None, ...]:
    return (event.id, event.event_name, event.customer_id, event.subscription_id, event.value)
