"""A real web application in a process of its own, driven over HTTP: the report equals the requests made."""

import http.client
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path

from per_agent import Agent

APPLICATION = Path(__file__).with_name("wsgi_app.py")
THREADS, EACH, CUSTOMERS, USERS = 8, 125, 5, 40


def test_the_report_and_the_stats_equal_the_requests_made(tmp_path):
    with Agent(tmp_path) as agent:
        meter = agent.meters.create(name="Calls", event_name="api.calls", unit="calls")
    expected_users: dict[str, set[str]] = {}
    requests = [(f"customer-{i % CUSTOMERS}", f"user-{i % USERS}") for i in range(THREADS * EACH)]
    for customer, user in requests:
        expected_users.setdefault(customer, set()).add(user)

    with subprocess.Popen(
        [sys.executable, str(APPLICATION), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        answers: list[bytes] = []

        def drive(mine: list[tuple[str, str]]) -> None:
            for customer, user in mine:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request("GET", f"/page?customer={customer}&user={user}")
                answers.append(connection.getresponse().read())
                connection.close()

        drivers = [threading.Thread(target=drive, args=(requests[n::THREADS],)) for n in range(THREADS)]
        for driver in drivers:
            driver.start()
        for driver in drivers:
            driver.join()
        # The server simply ends: it never closes its agent.
        server.communicate(timeout=60)
        assert server.returncode == 0
    assert len(answers) == len(requests)

    with Agent(tmp_path) as agent:
        assert agent.flush(30)
        report = agent.get_report("2020-01-01T00:00:00Z")["result"]["activityTypes"]
        stats = agent.meter_events.stats(meter_id=meter["id"], start=0, end=4_000_000_000, granularity="day")
        books = agent.books()["ledger"]
    assert report["page-view"]["billingIds"] == {
        customer: {"unique": len(users)} for customer, users in expected_users.items()
    }
    assert sum(day["event_count"] for day in stats["list"]) == len(requests)
    assert sum(Decimal(day["total_value"]) for day in stats["list"]) == Decimal("1.5") * len(requests)
    assert books.balanced
    assert books.delivered == 2 * len(requests)
