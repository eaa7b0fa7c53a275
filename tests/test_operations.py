"""The operators' endpoints of a running sidecar: health, status, books, dead letters."""

import base64
import gzip
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sidecar_process import SidecarProcess
from upstream import UpstreamServer
from waiting import until

# Nobody is to look for abandoned spools while a test makes one.
KIT = '[spool]\nadopt_interval = 60\n[destinations.kit]\ntype = "payment_kit"\naccess_key = "key-1"\nurl = "{0}"\n'
REFUSED = {"error": "too large by far"}


@pytest.fixture
def sidecar(tmp_path: Path, upstream: UpstreamServer) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path, KIT.format(upstream.url)) as running:
        refuse(upstream)
        yield running


@pytest.fixture
def client(sidecar: SidecarProcess) -> Iterator[httpx.Client]:
    with sidecar.client() as client:
        yield client


def refuse(upstream: UpstreamServer) -> None:
    upstream.rule(path="*/meter-events", method="POST", status=413, body=REFUSED)


def bury(client: httpx.Client, *identifiers: str, meter: str = "m") -> None:
    """Have these events refused for good, in their order."""
    before = total(client)
    for identifier in identifiers:
        event = {"event_name": meter, "customer_id": "c", "value": "0.10", "identifier": identifier}
        assert client.post("/v1/events?wait=stored", json=event).status_code == 202
    until(lambda: total(client) == before + len(identifiers))


def total(client: httpx.Client) -> int:
    return int(client.get("/v1/dead-letters", params={"limit": 1}).json()["total"])


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [letter["id"] for letter in answer.json()["dead_letters"]]


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == status
    return document


def test_it_says_that_it_is_alive_and_ready_and_how_it_is_doing(
    sidecar: SidecarProcess, client: httpx.Client
) -> None:
    alive, ready = client.get("/healthz"), client.get("/readyz")
    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    status, books = client.get("/v1/status").json(), client.get("/v1/books").json()
    assert sidecar.process is not None
    assert status["sidecar"]["pid"] == sidecar.process.pid
    assert status["sidecar"]["listeners"] == [f"unix:{sidecar.socket}", sidecar.url]
    assert (status["sidecar"]["ready"], status["sidecar"]["trouble"]) == (True, None)
    assert status["destinations"]["kit"]["configured"] is True
    assert status["destinations"]["kit"]["books"] == books["destinations"]["kit"]
    assert books["balanced"] is True
    with sidecar.tcp(None) as stranger:
        assert stranger.get("/healthz").status_code == stranger.get("/readyz").status_code == 200
        assert problem(stranger.get("/v1/status"), 401)["title"] == "Unauthorized"


def test_books_that_do_not_balance_are_told_as_such_and_a_spool_that_cannot_be_read_is_503(
    sidecar: SidecarProcess, client: httpx.Client
) -> None:
    bury(client, "a")
    (spool,) = (sidecar.data_dir / "spools").iterdir()
    with sqlite3.connect(spool / "cache.db") as database:
        assert database.execute("DELETE FROM Cache WHERE key LIKE 'l/kit/x/%'").rowcount == 1
    database.close()
    books = client.get("/v1/books")
    assert (books.status_code, books.json()["balanced"]) == (200, False)
    assert "1 are dead by the books" in books.json()["problems"][0]
    assert client.get("/v1/status").json()["problems"] == books.json()["problems"]

    broken = sidecar.data_dir / "spools" / "zz-broken"
    broken.mkdir()
    os.mkfifo(broken / "cache.db")  # which might be anybody's: no agent takes it for a damaged spool
    for path in ("/v1/status", "/v1/books", "/v1/dead-letters"):
        answer = client.get(path)
        assert str(broken) in problem(answer, 503)["detail"]
        assert int(answer.headers["retry-after"]) > 0


def test_letters_are_chosen_by_all_that_is_given(client: httpx.Client) -> None:
    bury(client, "a", "b")
    bury(client, "c", meter="other")
    asked: dict[str, list[str]] = {
        "": ["a", "b", "c"],
        "id=a&id=c&id=none": ["a", "c"],
        "meter=other": ["c"],
        "destination=kit&reason=TOO%20LARGE": ["a", "b", "c"],
        "destination=kit&meter=m&id=a": ["a"],
        "reason=too+small": [],
        "destination=per": [],
        "older_than=3600": [],
        "older_than=0": ["a", "b", "c"],
    }
    for query, expected in asked.items():
        answer = client.get(f"/v1/dead-letters?{query}")
        assert sorted(ids(answer)) == expected, query
        assert answer.json()["total"] == len(expected)
        assert answer.json()["next"] is None
    shown = client.get("/v1/dead-letters/a").json()["dead_letters"]
    assert [(letter["id"], letter["destination"], letter["attempts"]) for letter in shown] == [
        ("a", "kit", 1)
    ]
    assert shown[0]["event"]["value"] == "0.10"
    assert "too large by far" in shown[0]["words"]
    assert problem(client.get("/v1/dead-letters/none"), 404)
    # Words that are paths below, too.
    assert problem(client.get("/v1/dead-letters/requeue"), 404)


def test_an_identifier_may_hold_any_character(client: httpx.Client) -> None:
    odd = "a/b?c=d&e#f%41 ü.."
    bury(client, odd)
    assert ids(client.get("/v1/dead-letters/a%2Fb%3Fc%3Dd%26e%23f%2541%20%C3%BC..")) == [odd]
    assert ids(client.get("/v1/dead-letters", params={"id": odd})) == [odd]
    assert client.post("/v1/dead-letters/purge", json={"ids": [odd]}).json() == {"purged": 1}


def test_a_cursor_survives_that_letters_come_and_go(client: httpx.Client) -> None:
    names = [f"e-{number:02}" for number in range(25)]
    bury(client, *names)
    first = client.get("/v1/dead-letters?limit=10").json()
    assert (first["total"], len(first["dead_letters"])) == (25, 10)
    bury(client, "later-1")
    gone = [first["dead_letters"][0]["id"], first["dead_letters"][-1]["id"]]
    assert client.post("/v1/dead-letters/purge", json={"ids": gone}).json() == {"purged": 2}
    seen = [letter["id"] for letter in first["dead_letters"]]
    following = first["next"]
    while following is not None:
        page = client.get("/v1/dead-letters", params={"limit": 10, "after": following}).json()
        assert page["total"] == 25
        seen += [letter["id"] for letter in page["dead_letters"]]
        following = page["next"]
    assert sorted(seen) == sorted([*names, "later-1"])


def test_a_list_is_told_what_is_wrong_with_what_it_was_asked(client: httpx.Client) -> None:
    def cursor(*parts: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()

    wrong = {
        "limit=0": "limit",
        "limit=1001": "limit",
        "limit=ten": "limit",
        "older_than=soon": "older_than",
        "older_than=-1": "older_than",
        "older_than=nan": "older_than",
        "reason=": "reason",
        "destinatoin=kit": "destinatoin",
        "meter=a&meter=b": "meter",
        "after=here": "after",
        f"after={cursor('s', 'kit', -1, 0)}": "after",
        f"after={cursor('s', 'kit', 1)}": "after",
        f"after={cursor(1, 'kit', 1, 0)}": "after",
    }
    for query, name in wrong.items():
        assert list(problem(client.get(f"/v1/dead-letters?{query}"), 400)["errors"]) == [name], query
    for place in (("", "", 0, 0), ("\u0000", "\u007f", 2**63, 5), ("zz", "kit", 1, 0)):
        assert client.get("/v1/dead-letters", params={"after": cursor(*place)}).status_code == 200


def test_what_changes_letters_must_be_told_which(client: httpx.Client) -> None:
    bury(client, "a")
    wrong = [
        b"", b"{}", b"[]", b"null", b"nonsense", b"\xff", b'{"all": false}', b'{"all": 1}', b'{"all": true, "ids": ["a"]}',
        b'{"ids": []}', b'{"ids": "a"}', b'{"ids": [1]}', b'{"reason": ""}', b'{"meter": null}', b'{"older_than": "1d"}',
        b'{"older_than": true}', b'{"older_than": ' + b"9" * 400 + b"}", b'{"destinatoin": "kit"}', b'{"id": "a"}',
        b"[" * 5000,
    ]  # fmt: skip
    for path in ("/v1/dead-letters/purge", "/v1/dead-letters/requeue"):
        for body in wrong:
            problem(client.post(path, content=body), 400)
        assert client.get(path.replace("requeue", "x")).status_code == 404
        assert problem(client.put(path, content=b"{}"), 405)
    assert total(client) == 1


def test_letters_are_sent_again_and_deleted(
    sidecar: SidecarProcess, client: httpx.Client, upstream: UpstreamServer
) -> None:
    bury(client, "a", "b", "c")
    bury(client, "d", meter="other")
    upstream.clear_rules()
    requeue, purge = "/v1/dead-letters/requeue", "/v1/dead-letters/purge"
    assert client.post(requeue, json={"ids": ["a", "none"]}).json() == {"requeued": 1}
    assert client.post(requeue, json={"ids": ["b", "d"], "meter": "m"}).json() == {"requeued": 1}
    until(lambda: sorted(upstream.score().identifiers) == ["a", "b"])
    packed = gzip.compress(b'{"meter": "other", "destination": "kit", "older_than": 0}')
    assert client.post(purge, content=packed, headers={"content-encoding": "gzip"}).json() == {"purged": 1}
    assert ids(client.get("/v1/dead-letters")) == ["c"]
    assert client.post(requeue, json={"all": True}).json() == {"requeued": 1}
    assert client.post(requeue, json={"all": True}).json() == {"requeued": 0}
    books = sidecar.drained("kit")
    assert (books["delivered"], books["dead"], books["purged"]) == (3, 1, 1)


def test_a_page_of_long_events_ends_early_and_the_next_goes_on(client: httpx.Client) -> None:
    label = {"label": "x" * 60_000}
    lines = "\n".join(
        json.dumps(
            {"event_name": "m", "customer_id": "c", "value": 1, "identifier": f"e-{n:03}", "metadata": label}
        )
        for n in range(100)
    )
    for _ in range(2):
        answer = client.post(
            "/v1/events?wait=stored", content=lines, headers={"content-type": "application/x-ndjson"}
        )
        assert answer.status_code == 202
        lines = lines.replace('"e-', '"f-')
    until(lambda: total(client) == 200)
    first = client.get("/v1/dead-letters?limit=1000").json()
    assert 100 < len(first["dead_letters"]) < 200
    second = client.get("/v1/dead-letters", params={"limit": 1000, "after": first["next"]}).json()
    assert len(first["dead_letters"]) + len(second["dead_letters"]) == 200
    assert (second["next"], second["total"]) == (None, 200)
