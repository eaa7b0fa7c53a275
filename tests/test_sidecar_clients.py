"""Clients that know nothing of this project: curl, and Node's `fetch`, in the two services' own wire forms."""

import json
import shutil
import subprocess

import pytest
from sidecar_process import SidecarProcess

PER_TOKEN = "per-activity-token"
REPORTING_TOKEN = "per-reporting-token"
ACCESS_KEY = "blocklet-access-key"

# As a program that was written for Per and Payment Kit does it; only the base URL is another.
NODE = """
const [base, token, reporting, key] = process.argv.slice(2);
const bearer = (t) => ({ Authorization: `Bearer ${t}` });
const call = async (path, options) => {
  const response = await fetch(base + path, options);
  return { status: response.status, body: await response.json() };
};
const out = {};
for (let n = 0; n < 20; n++) {
  const query = new URLSearchParams({ billingId: "acme & co", userId: `u+${n}`, activityTypeId: "active-users" });
  out.add = await call(`/activities.add?${query}`, { headers: bearer(token) });
}
out.wrong = await call("/activities.add?billingId=a&userId=u&activityTypeId=t", { headers: bearer("no") });
out.bad = await call("/activities.add?billingId=a&activityTypeId=t", { headers: bearer(token) });
const event = {
  event_name: "tokens", identifier: "node-1", timestamp: 1700000000,
  payload: { customer_id: "cus_9", value: "0.001" }, metadata: { from: "node" },
};
const post = (body) => ({
  method: "POST", headers: { ...bearer(key), "Content-Type": "application/json" }, body: JSON.stringify(body),
});
out.event = await call("/api/meter-events?livemode=true", post(event));
out.again = await call("/api/meter-events?livemode=true", post(event));
out.meters = await call("/api/meters?livemode=true", { headers: bearer(key) });
out.reported = await call("/reports.get?start=2026-01-01T00:00:00Z", { headers: bearer(reporting) });
console.log(JSON.stringify(out));
"""


@pytest.fixture
def sidecar(tmp_path, upstream):
    config = (
        f'[destinations.per]\ntype = "per"\nurl = "{upstream.url}"\nactivity_token = "{PER_TOKEN}"\n'
        f'reporting_token = "{REPORTING_TOKEN}"\n'
        f'[destinations.kit]\ntype = "payment_kit"\nurl = "{upstream.url}"\naccess_key = "{ACCESS_KEY}"\n'
    )
    with SidecarProcess(tmp_path, config) as running:
        yield running


def test_a_node_program_needs_only_another_base_url(tmp_path, sidecar, upstream):
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed here")
    program = tmp_path / "client.mjs"
    program.write_text(NODE)
    done = subprocess.run(
        ["node", str(program), sidecar.url, PER_TOKEN, REPORTING_TOKEN, ACCESS_KEY],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["add"]["status"] == 200
    assert out["add"]["body"]["ok"] is True
    assert (out["wrong"]["status"], out["wrong"]["body"]["ok"]) == (401, False)
    assert out["bad"] == {"status": 400, "body": {"ok": False, "error": "userId: is missing"}}
    assert out["event"]["status"] == 200
    assert (out["event"]["body"]["status"], out["event"]["body"]["identifier"]) == ("pending", "node-1")
    assert out["again"]["body"]["identifier"] == "node-1"
    assert "list" in out["meters"]["body"], "from the upstream itself"
    assert out["reported"]["body"]["ok"] is True
    sidecar.drained("per")
    sidecar.drained("kit")
    score = upstream.score()
    assert sorted(score.users) == sorted(f"u+{n}" for n in range(20))
    assert score.identifiers == ["node-1"]
    assert score.duplicates == 0


def curl(*words):
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "30", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


def test_curl_speaks_to_both_listeners(tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed here")
    with SidecarProcess(tmp_path) as sidecar:
        bearer = f"Authorization: Bearer {sidecar.token}"
        form = ["--data-urlencode", "billingId=ac me", "-d", "userId=u", "-d", "activityTypeId=t"]
        unix = ["--unix-socket", str(sidecar.socket)]
        assert curl(*unix, *form, "http://localhost/activities.add")["ok"] is True
        assert curl("--get", *form, "-H", bearer, f"{sidecar.url}/activities.add")["ok"] is True
        event = '{"event_name": "t", "identifier": "c1", "payload": {"customer_id": "c", "value": "2"}}'
        assert curl(*unix, "-d", event, "http://localhost/api/meter-events")["identifier"] == "c1"
        batch = tmp_path / "events.ndjson"
        lines = [{"billing_id": "a", "user_id": f"u{n}", "activity_type_id": "t"} for n in range(1000)]
        batch.write_text("\n".join(map(json.dumps, lines)))
        answer = curl(*unix, "--data-binary", f"@{batch}", "http://localhost/v1/events?wait=stored")
        assert (answer["accepted"], answer["stored"]) == (1000, True)
