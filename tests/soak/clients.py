"""Clients of a sidecar: threads that post planned events until they are answered, always under the same names."""

import random
import threading
from typing import Any

import httpx
from sidecar_process import SidecarProcess

from soak import plan


class Client(threading.Thread):
    """One client, over the Unix socket or TCP.

    Attributes:
        answered: names of events that were answered for with 2xx.
        asked: names of all that was ever sent.
        once: names of those that could not be named to the sidecar, and so were sent only once.
        resent: how many events were sent again because an answer was unclear.
        strange: answers that should not come.
    """

    def __init__(self, seed: int, prefix: str, sidecar: SidecarProcess, rate: float, *, unix: bool) -> None:
        super().__init__(name=f"client {prefix}", daemon=True)
        self._seed, self._prefix, self._sidecar, self._rate, self._unix = seed, prefix, sidecar, rate, unix
        self._draw = random.Random(f"{seed}/{prefix}")
        self._number = 0
        self.over, self.broken = threading.Event(), threading.Event()
        self.answered: list[str] = []
        self.asked: list[str] = []
        self.resent = 0
        self.strange: list[str] = []

    def run(self) -> None:
        made = self._sidecar.client(timeout=3) if self._unix else self._sidecar.tcp(timeout=3)
        with made as http:
            while not self.over.wait(self._draw.expovariate(self._rate)):
                form = self._draw.random()
                if form < 0.15:
                    self._post_as_per(http)
                elif form < 0.35:
                    self._post_as_payment_kit(http)
                else:
                    self._post_batch(http, self._draw.randint(1, 6))

    def post(self, http: httpx.Client, count: int = 1) -> None:
        """Post *count* events, until they are answered."""
        self._post_batch(http, count)

    def _next(self, kind: str | None = None) -> plan.Planned:
        while True:
            name = f"{self._prefix}.0.{self._number}"
            self._number += 1
            planned = plan.event(self._seed, name)
            if kind in (None, planned.kind):
                self.asked.append(name)
                return planned

    def _post_batch(self, http: httpx.Client, count: int) -> None:
        events = [self._next() for _ in range(count)]
        wait = {"wait": "stored"} if self._draw.random() < 0.3 else {}
        body = [plan.record(each) for each in events]
        options: dict[str, Any] = {"json": body if count > 1 else body[0], "params": wait}
        if self._until_answered(http, "POST", "/v1/events", count, options):
            self.answered += [each.name for each in events]

    def _post_as_payment_kit(self, http: httpx.Client) -> None:
        planned = self._next("meter")
        fields = planned.fields
        payload = {"customer_id": fields["customer"], "value": fields["value"]}
        if fields["subscription"] is not None:
            payload["subscription_id"] = fields["subscription"]
        body = {"event_name": fields["event_name"], "identifier": planned.identifier, "payload": payload}
        body |= {"metadata": fields["metadata"]}
        if planned.at is not None:
            body["timestamp"] = planned.at
        if fields["source_data"] is not None:
            body["source_data"] = fields["source_data"]
        options = {"json": body, "params": {"livemode": "true" if fields["livemode"] else "false"}}
        if self._until_answered(http, "POST", "/api/meter-events", 1, options):
            self.answered.append(planned.name)

    def _post_as_per(self, http: httpx.Client) -> None:
        """Per's form names neither identifier nor time: what is unclear stays so, as with Per itself."""
        planned = self._next("activity")
        while planned.at is not None:
            self.asked.pop()
            planned = self._next("activity")
        fields = planned.fields
        query = {"billingId": fields["billing"], "userId": planned.name, "activityTypeId": fields["type"]}
        if self._status(http, "GET", "/activities.add", {"params": query}) == 200:
            self.answered.append(planned.name)

    def _until_answered(self, http: httpx.Client, method: str, path: str, count: int, options: Any) -> bool:
        while not self.broken.is_set():
            status = self._status(http, method, path, options)
            if status in (200, 202):
                return True
            if status not in (None, 503, 504):
                return False
            self.resent += count
            self.broken.wait(self._draw.uniform(0.05, 0.3))
        return False

    def _status(self, http: httpx.Client, method: str, path: str, options: Any) -> int | None:
        try:
            answer = http.request(method, path, **options)
        except httpx.TransportError:
            return None
        if answer.status_code not in (200, 202, 503, 504):
            self.strange.append(f"{path} answered {answer.status_code}: {answer.text[:200]}")
        return answer.status_code
