"""`answer_when = "stored"`: for clients that cannot say `?wait=stored`, and forget what was answered."""

from pathlib import Path

from sidecar_process import SidecarProcess
from waiting import until

# The first event of an idle sidecar is stored at once; the next ones wait so long for company.
CONFIG = "[intake]\nlinger = 60.0\n[destinations.ledger]\ntype = 'ledger'"
EVENT = {"billingId": "acme", "userId": "u", "activityTypeId": "active-users"}
METERED = {"event_name": "calls", "payload": {"customer_id": "c", "value": "1"}}


def test_what_was_answered_survives_kill_9_in_every_wire_form(tmp_path: Path) -> None:
    with SidecarProcess(tmp_path, CONFIG, {"answer_when": '"stored"'}) as sidecar:
        with sidecar.tcp() as client:
            for number in range(3):
                assert client.get("/activities.add", params=EVENT).status_code == 200
                answer = client.post("/api/meter-events", json=METERED | {"identifier": f"m-{number}"})
                assert answer.status_code == 200
                answer = client.post("/v1/events", json={"id": f"e-{number}", "billing_id": "acme", "user_id": "v",
                                                         "activity_type_id": "a"})  # fmt: skip
                assert answer.json()["stored"] is True
        sidecar.kill()
        sidecar.start()
        until(lambda: sidecar.books()["accepted"] == 9)


def test_a_request_may_still_ask_for_an_answer_at_once(tmp_path: Path) -> None:
    with (
        SidecarProcess(tmp_path, CONFIG, {"answer_when": '"stored"'}) as sidecar,
        sidecar.tcp(timeout=30) as client,
    ):
        for number in range(3):
            answer = client.post(
                "/v1/events?wait=accepted",
                json={"id": f"e-{number}", "billing_id": "acme", "user_id": "v", "activity_type_id": "a"},
            )
            assert answer.json()["stored"] is False
