"""What the test upstream knows: Per and Payment Kit in small, the score that it keeps, and the rules that steer it."""

import fnmatch
import os
import time
from collections import Counter, deque
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from upstream_wire import Reply, Request

LAST = 2000  # requests kept in full; the counts go on for ever

SETTINGS: dict[str, Any] = {
    "activity_token": None,  # the one that is good; None: any
    "reporting_token": None,
    "access_key": None,
    "gateway": 404,  # what a wrong access key gets: 404 (hidden, as in production), 401, 403 or 302
    "meters": {},  # event_name -> "active" | "inactive" | "unknown"; other names: see unknown_meters
    "unknown_meters": False,  # True: only meters that were created or named above exist
    "meter_status": 400,  # the status for an event whose meter is inactive or unknown
    "customers": {},  # id -> "known" | "unknown" | "uncreatable"; other ids are known
    "customer_status": 400,
    "duplicate": {"status": 400, "body": {"error": "Meter event with this identifier already exists"}},
    "echo": {},  # fields laid over the answer to a stored meter event
}


class Books:
    """Answers requests. Every counted event is in *file* before its answer leaves, so it survives SIGKILL."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._fd = None if file is None else os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._forget()
        if self._fd is not None:
            for line in os.fdopen(os.dup(self._fd), "rb"):
                self._count(msgspec.json.decode(line), keep=False)

    def _forget(self) -> None:
        self.settings = msgspec.json.decode(msgspec.json.encode(SETTINGS))
        self.rules: list[dict[str, Any]] = []
        self.requests = 0
        self.connections = 0
        self.statuses: Counter[str] = Counter()
        self.offered: Counter[str] = Counter()
        self.duplicates = 0
        self.last: deque[dict[str, Any]] = deque(maxlen=LAST)
        self.activities: list[dict[str, Any]] = []
        self.meter_events: dict[str, dict[str, Any]] = {}
        self.meters: dict[str, dict[str, Any]] = {}
        self.created_customers: set[str] = set()

    # The score and the steering

    def answer(self, request: Request) -> Reply:
        if request.path == "/__score__":
            return _json(200, self.score())
        if request.path == "/__control__":
            return self._control(msgspec.json.decode(request.body))
        reply = self._ruled(request)
        self.requests += 1
        self.statuses["cut" if reply.cut else str(reply.status)] += 1
        self.last.append(
            {
                "at": time.time(),
                "method": request.method,
                "path": request.path,
                "target": request.raw_target,
                "query": request.query,
                "headers": request.headers,
                "body": request.body.decode("utf-8", "replace"),
                "status": None if reply.cut else reply.status,
            }
        )
        return reply

    def score(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "statuses": self.statuses,
            "connections": self.connections,
            "activities": self.activities,
            "meter_events": list(self.meter_events.values()),
            "duplicates": self.duplicates,
            "offered": self.offered,
            "last": list(self.last),
        }

    def _control(self, command: dict[str, Any]) -> Reply:
        if command.get("reset"):
            self._forget()
            if self._fd is not None:
                os.ftruncate(self._fd, 0)
        now = time.monotonic()
        if "rules" in command:
            self.rules = []
        for rule in command.get("rules", []) + ([command["rule"]] if "rule" in command else []):
            self.rules.append({**rule, "set": now, "matched": 0})
        unknown = command.get("settings", {}).keys() - SETTINGS.keys()
        if unknown:
            return _json(400, {"error": f"unknown settings {sorted(unknown)}"})
        self.settings.update(command.get("settings", {}))
        return _json(200, {"ok": True})

    def _ruled(self, request: Request) -> Reply:
        rule = next((rule for rule in self.rules if self._applies(rule, request)), None)
        if rule is None:
            return self._served(request)
        if "capacity" in rule and not _has_room(rule):
            return _json(503, {"error": "too many at once"})
        shape = {
            key: rule[key] for key in ("delay", "truncate", "drip", "drip_headers", "endless") if key in rule
        }
        replaces = rule.keys() & {"status", "body", "html", "ok_false", "redirect"}
        reply = Reply(200)
        if rule.get("cut") != "before" and (not replaces or rule.get("counts")):
            reply = self._served(request)
        if replaces:
            reply = _made_up(rule)
        for key, value in shape.items():
            setattr(reply, key, value)
        reply.cut = "cut" in rule
        return reply

    def _applies(self, rule: dict[str, Any], request: Request) -> bool:
        if "for_seconds" in rule and time.monotonic() - rule["set"] >= rule["for_seconds"]:
            return False
        if "path" in rule and not fnmatch.fnmatchcase(request.path, rule["path"]):
            return False
        if "method" in rule and request.method != rule["method"]:
            return False
        if "users" in rule and request.query.get("userId") not in rule["users"]:
            return False
        if ("events" in rule or "customers" in rule) and not _names(rule, request):
            return False
        rule["matched"] += 1
        if "count" in rule and rule["matched"] > rule["count"]:
            return False
        return bool(rule["matched"] % rule.get("every", 1) == 0)

    def _count(self, record: dict[str, Any], *, keep: bool = True) -> None:
        if keep and self._fd is not None:
            os.write(self._fd, msgspec.json.encode(record) + b"\n")
        if record["kind"] == "activity":
            self.activities.append(record)
        else:
            self.meter_events[record["identifier"]] = record

    # The two upstreams

    def _served(self, request: Request) -> Reply:
        parts = request.parts
        if "api" in parts:  # Payment Kit may be mounted below a path of its own
            return self._payment_kit(request, parts[parts.index("api") + 1 :])
        match parts:
            case [*_, "activities.add"] if request.method == "GET":
                return self._add_activity(request)
            case [*_, "reports.get"] if request.method == "GET":
                return self._report(request)
        return Reply(404, b"<html><title>404 Not Found</title></html>", {"Content-Type": "text/html"})

    def _add_activity(self, request: Request) -> Reply:
        if not self._bearer(request, "activity_token"):
            return _json(401, {"ok": False, "message": "invalid_auth_token"})
        ids = {name: request.query.get(name) for name in ("billingId", "userId", "activityTypeId")}
        if not all(ids.values()):
            return _json(200, {"ok": False, "error": "missing_parameter"})
        self.offered["/".join(map(str, ids.values()))] += 1
        number = len(self.activities) + 1
        self._count({"kind": "activity", **ids, "at": time.time(), "n": number})
        return _json(200, {"ok": True, "result": {"transactionId": f"tx-{number}"}})

    def _report(self, request: Request) -> Reply:
        if not self._bearer(request, "reporting_token"):
            return _json(401, {"ok": False, "message": "invalid_auth_token"})
        users: dict[str, dict[str, set[str]]] = {}
        for one in self.activities:
            billing_ids = users.setdefault(one["activityTypeId"], {})
            billing_ids.setdefault(one["billingId"], set()).add(one["userId"])
        types = {
            kind: {"billingIds": {billing: {"unique": len(ids)} for billing, ids in billings.items()}}
            for kind, billings in users.items()
        }
        span = {"start": request.query.get("start"), "end": request.query.get("end")}
        return _json(200, {"ok": True, "result": {**span, "activityTypes": types}})

    def _bearer(self, request: Request, setting: str) -> bool:
        good = self.settings[setting]
        given = request.headers.get("authorization", "")
        return given == f"Bearer {good}" if good is not None else given.startswith("Bearer ")

    def _payment_kit(self, request: Request, parts: list[str]) -> Reply:
        if not self._bearer(request, "access_key"):
            match self.settings["gateway"]:
                case 404:
                    return _json(404, {"code": 404, "error": "Not Found"})
                case 302:
                    return Reply(302, headers={"Location": "/login"})
                case status:
                    return _json(status, {"code": status, "error": "Not authorized"})
        if request.query.get("livemode") not in ("true", "false"):
            return _json(400, {"error": "this upstream wants livemode in every query"})
        live = request.query["livemode"] == "true"
        body = msgspec.json.decode(request.body) if request.body else {}
        match request.method, parts:
            case "POST", ["meter-events"]:
                return self._add_meter_event(body, live)
            case "GET", ["meter-events"]:
                return _page(request, [e for e in self.meter_events.values() if _matches(e, request, live)])
            case "GET", ["meter-events", "stats"]:
                return _stats([e for e in self.meter_events.values() if e["livemode"] == live], request)
            case "GET", ["meter-events", "pending-amount"]:
                return _json(200, {"pcur_test": "0"})
            case "GET", ["meter-events", id]:
                found = next((e for e in self.meter_events.values() if e["id"] == id), None)
                return _json(404, {"error": "Meter event not found"}) if found is None else _json(200, found)
            case "GET", ["customers", id]:
                return self._customer(request, id)
            case _, ["meters", *rest]:
                return self._meters(request, rest, body, live)
        return Reply(404, b"<html><body>Cannot do that</body></html>", {"Content-Type": "text/html"})

    def _add_meter_event(self, body: dict[str, Any], live: bool) -> Reply:
        # The order of the checks is Payment Kit's: fields, identifier, meter, customer.
        identifier, payload = body.get("identifier"), body.get("payload", {})
        for field, value in (("event_name", body.get("event_name")), ("identifier", identifier)):
            if not isinstance(value, str) or not value:
                return _json(400, {"error": f'"{field}" is required'})
        if not isinstance(payload.get("value"), str) or not isinstance(body.get("timestamp"), int):
            return _json(400, {"error": '"payload.value" must be a string and "timestamp" a number'})
        self.offered[identifier] += 1
        if identifier in self.meter_events:
            self.duplicates += 1
            return _json(self.settings["duplicate"]["status"], self.settings["duplicate"]["body"])
        state = self._meter_state(body["event_name"], live)
        if state != "active":
            what = "Meter is not active" if state == "inactive" else f"Meter not found: {body['event_name']}"
            return _json(self.settings["meter_status"], {"error": what})
        if not self._knows_customer(payload.get("customer_id")):
            return _json(self.settings["customer_status"], {"error": "Customer not found"})
        number = len(self.meter_events) + 1
        record = {
            "kind": "meter_event",
            "id": f"mevt_{number}",
            "object": "meter_event",
            **body,
            "livemode": live,
            "status": "pending",
            "at": time.time(),
            "n": number,
        }
        self._count(record)
        return _json(201, {**record, **self.settings["echo"]})

    def _knows_customer(self, customer: str) -> bool:
        return (
            customer in self.created_customers or self.settings["customers"].get(customer, "known") == "known"
        )

    def _customer(self, request: Request, customer: str) -> Reply:
        if not self._knows_customer(customer):
            if (
                request.query.get("create") != "true"
                or self.settings["customers"].get(customer) == "uncreatable"
            ):
                return _json(404, {"error": "Customer not found"})
            self.created_customers.add(customer)
        return _json(200, {"id": f"cus_{customer}", "did": customer, "object": "customer"})

    def _meter_state(self, name: str, live: bool) -> str:
        named = self.settings["meters"].get(name)
        if named is not None:
            return str(named)
        made = [m for m in self.meters.values() if m["event_name"] == name and m["livemode"] == live]
        if made:
            return str(made[0]["status"])
        return "unknown" if self.settings["unknown_meters"] else "active"

    def _meters(self, request: Request, rest: list[str], body: dict[str, Any], live: bool) -> Reply:
        match request.method, rest:
            case "POST", []:
                missing = [name for name in ("name", "event_name", "unit") if not body.get(name)]
                if missing:
                    return _json(400, {"error": f'"{missing[0]}" is required'})
                meter = {
                    "id": f"mtr_{len(self.meters) + 1}",
                    "object": "meter",
                    "aggregation_method": "sum",
                    **body,
                }
                meter |= {"status": "active", "livemode": live}
                self.meters[meter["id"]] = meter
                return _json(200, meter)
            case "GET", []:
                wanted = request.query.get("event_name")
                found = [m for m in self.meters.values() if m["livemode"] == live]
                return _page(request, [m for m in found if wanted in (None, m["event_name"])])
        meter = next((m for m in self.meters.values() if rest[0] in (m["id"], m["event_name"])), {})
        if not meter:
            state = self._meter_state(rest[0], live)
            if request.method != "GET" or state == "unknown":
                return _json(404, {"error": "Meter not found"})
            meter = {
                "id": "mtr_any",
                "object": "meter",
                "event_name": rest[0],
                "status": state,
                "livemode": live,
            }
        match request.method, rest[1:]:
            case "PUT", ["activate"]:
                meter["status"] = "active"
            case "PUT", ["deactivate"]:
                meter["status"] = "inactive"
            case "PUT", []:
                meter |= body
        return _json(200, meter)


def _has_room(rule: dict[str, Any]) -> bool:
    """Whether fewer than its capacity are under way; if so, one more is."""
    now = time.monotonic()
    under_way = rule.setdefault("under_way", deque())
    while under_way and under_way[0] <= now:
        under_way.popleft()
    if len(under_way) >= rule["capacity"]:
        return False
    under_way.append(now + rule["delay"])
    return True


def _json(status: int, value: Any) -> Reply:
    return Reply(status, msgspec.json.encode(value))


def _made_up(rule: dict[str, Any]) -> Reply:
    body = rule.get("body", {"error": f"made up for a test: {rule.get('status', 200)}"})
    headers = dict(rule.get("headers", {}))
    if "ok_false" in rule:
        body = {"ok": False, "error": rule["ok_false"]}
    if "html" in rule:
        body = "<!DOCTYPE html><html><head><title>Welcome</title></head><body>Log in</body></html>"
        headers = {"Content-Type": "text/html", **headers}
    if "redirect" in rule:
        return Reply(rule.get("status", 302), headers={"Location": rule["redirect"], **headers})
    encoded = body.encode() if isinstance(body, str) else msgspec.json.encode(body)
    return Reply(rule.get("status", 200), encoded, headers)


def _names(rule: dict[str, Any], request: Request) -> bool:
    if request.method != "POST":
        return False
    body = msgspec.json.decode(request.body)
    named = body.get("event_name") in rule.get("events", [body.get("event_name")])
    customer = body.get("payload", {}).get("customer_id")
    return named and customer in rule.get("customers", [customer])


def _matches(event: dict[str, Any], request: Request, live: bool) -> bool:
    query = request.query
    return (
        event["livemode"] == live
        and query.get("event_name") in (None, event["event_name"])
        and query.get("customer_id") in (None, event["payload"].get("customer_id"))
        and int(query.get("start", 0)) <= event["timestamp"] <= int(query.get("end", 1e12))
    )


def _page(request: Request, found: list[dict[str, Any]]) -> Reply:
    page, size = int(request.query.get("page", 1)), int(request.query.get("pageSize", 20))
    paging = {"page": page, "pageSize": size}
    return _json(200, {"count": len(found), "list": found[(page - 1) * size : page * size], "paging": paging})


def _stats(events: list[dict[str, Any]], request: Request) -> Reply:
    total = sum((Decimal(e["payload"]["value"]) for e in events), Decimal())
    row = {"event_count": len(events), "total_value": format(total, "f")}
    return _json(200, {"count": 1, "list": [row], "asked": request.query})
