"""The OpenAPI document is true and whole: its examples are accepted, and what is answered is what it says."""

import json

import httpx
import jsonschema_rs
import pytest
from abuse import ACTIVITY, MIB, ask, head, post, unharmed
from sidecar_process import SidecarProcess
from waiting import until

from per_agent.sidecar.openapi import document
from per_agent.version import version

DOCUMENT = document(version())
ENDPOINTS = {
    "/activities.add": {"get", "post"},
    "/api/meter-events": {"get", "post"},
    "/v1/events": {"post"},
    "/v1/status": {"get"},
    "/v1/books": {"get"},
    "/v1/dead-letters": {"get"},
    "/v1/dead-letters.ndjson": {"get"},
    "/v1/dead-letters/{id}": {"get"},
    "/v1/dead-letters/requeue": {"post"},
    "/v1/dead-letters/purge": {"post"},
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/metrics": {"get"},
    "/openapi.json": {"get"},
}
OPERATIONS = [(path, method) for path, methods in ENDPOINTS.items() for method in sorted(methods)]


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory):
    with SidecarProcess(tmp_path_factory.mktemp("s")) as running:
        yield running


def operation(path, method):
    return DOCUMENT["paths"][path][method]


def resolved(node):
    """What a reference leads to."""
    while "$ref" in node:
        found = DOCUMENT
        for name in node["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        node = found
    return node


def check(schema, value):
    """Fail where *value* is not what *schema* says."""
    whole = {**schema, "components": DOCUMENT["components"]}
    errors = [str(error) for error in jsonschema_rs.Draft202012Validator(whole).iter_errors(value)]
    assert not errors, (value, errors)


def conforms(path, method, status, kind, content):
    """Fail where this answer to *method* on *path* is not documented."""
    responses = operation(path, method)["responses"]
    assert str(status) in responses, (path, method, status)
    documented = resolved(responses[str(status)])
    media = kind.partition(";")[0]
    assert media in documented["content"], (path, method, status, kind)
    if media.endswith("json"):
        check(documented["content"][media]["schema"], json.loads(content))


def conforms_with(path, method, answer: httpx.Response):
    conforms(path, method, answer.status_code, answer.headers["content-type"], answer.content)


def test_it_is_served_as_it_is_and_says_the_packages_version(sidecar):
    served = sidecar.get("/openapi.json")
    assert served == json.loads(json.dumps(DOCUMENT))
    assert served["info"]["version"] == version()
    assert served["openapi"].startswith("3.1.")


def test_it_has_exactly_the_endpoints_and_each_operation_a_name_of_its_own():
    assert {path: set(item) for path, item in DOCUMENT["paths"].items()} == ENDPOINTS
    names = [operation(*each)["operationId"] for each in OPERATIONS]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names), "it becomes a function in some language"


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_an_operation_says_what_may_become_of_a_request(path, method):
    responses = operation(path, method)["responses"]
    probe = path in ("/healthz", "/readyz")
    assert {"400", "408", "414", "421", "431", "503"} <= set(responses)
    assert ("401" in responses) is not probe
    assert "500" not in responses
    for status, response in responses.items():
        found = resolved(response)
        assert found["description"]
        assert found["content"]
        if status == "503" and path != "/readyz":
            assert "Retry-After" in found["headers"]
        if status == "401":
            assert "WWW-Authenticate" in found["headers"]


def references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from references(each)


def test_every_reference_leads_somewhere_and_every_schema_is_one_that_is_used():
    used = set(references(DOCUMENT))
    for each in used:
        assert resolved({"$ref": each})
    schemas = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
    assert schemas - used == set()
    for schema in DOCUMENT["components"]["schemas"].values():
        assert jsonschema_rs.meta.is_valid(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
        )


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_a_schemas_examples_are_what_it_says(name):
    schema = DOCUMENT["components"]["schemas"][name]
    for example in schema.get("examples", []):
        check({"$ref": f"#/components/schemas/{name}"}, example)


def test_the_examples_of_requests_are_accepted(sidecar):
    seen = 0
    with sidecar.client() as client:
        for path, method in OPERATIONS:
            body = operation(path, method).get("requestBody")
            if body is None:
                continue
            for kind, media in body["content"].items():
                examples = [each["value"] for each in media.get("examples", {}).values()]
                examples += [*resolved(media["schema"]).get("examples", []), media.get("example")]
                for example in filter(None, examples):
                    check(media["schema"], example)
                    content = {"content": example} if isinstance(example, str) else {"json": example}
                    if "form" in kind:
                        content = {"data": example}
                    answer = client.request(method, path, headers={"content-type": kind}, **content)
                    assert answer.status_code in (200, 202), (path, kind, answer.text)
                    conforms_with(path, method, answer)
                    seen += 1
    assert seen >= 8


def test_what_operators_are_told_is_what_is_documented(tmp_path, upstream):
    config = (
        "[delivery]\nrefusal_attempts = 1\n"
        f'[destinations.kit]\ntype = "payment_kit"\naccess_key = "key-1"\nurl = "{upstream.url}"\n'
        f'[destinations.per]\ntype = "per"\nactivity_token = "t"\nurl = "{upstream.url}"\n'
        '[destinations.gone]\ntype = "sidecar"\nurl = "unix:/nowhere/agent.sock"\n'
    )
    upstream.rule(path="*/meter-events", method="POST", status=413, body={"error": "too large by far"})
    upstream.rule(path="/activities.add", status=401)
    event = {"event_name": "m", "customer_id": "c", "value": "0.10", "metadata": {"a": [1.5]}, "timestamp": 7}
    with SidecarProcess(tmp_path, config) as running, running.client() as client:
        batch = [{**event, "identifier": f"é/{number}"} for number in range(3)]
        batch += [json.loads(ACTIVITY), {"user_id": 7}]
        conforms_with("/v1/events", "post", client.post("/v1/events?wait=stored", json=batch))
        until(lambda: client.get("/v1/dead-letters").json()["total"] == 3)
        until(lambda: client.get("/v1/status").json()["destinations"]["per"]["state"] == "halted")
        until(lambda: client.get("/v1/status").json()["destinations"]["gone"]["state"] == "retrying")
        for path in ("/v1/status", "/v1/books", "/v1/dead-letters", "/metrics", "/healthz", "/readyz"):
            conforms_with(path, "get", client.get(path))
        conforms_with("/v1/dead-letters", "get", client.get("/v1/dead-letters?limit=1"))
        conforms_with("/v1/dead-letters/{id}", "get", client.get("/v1/dead-letters/é/1"))
        openmetrics = client.get("/metrics", headers={"accept": "application/openmetrics-text"})
        conforms_with("/metrics", "get", openmetrics)
        for path in ("/v1/dead-letters/requeue", "/v1/dead-letters/purge"):
            for choice in (
                {"ids": ["é/0"]},
                {"older_than": 0.5, "meter": "m"},
                {"all": True},
                {},
                {"ids": 7},
            ):
                conforms_with(path, "post", client.post(path, json=choice))


def requests_that_are_refused(sidecar, path, method):
    closing = b"Connection: close"
    target = path.replace("{id}", "x").encode()
    line = b"GET " + target if method == "get" else b"POST " + target
    yield head(sidecar, line, closing, host=b"evil.example")
    yield head(sidecar, line, closing).replace(b"Bearer", b"Basic")
    yield head(sidecar, line + b"?" + b"x" * 40_000, closing)
    yield head(sidecar, line, closing, b"X: " + b"x" * 100_000)
    yield head(sidecar, line, closing, b"X Y: z")
    if method == "post":
        yield post(sidecar, closing, path=target, body=b"x" * 9 * MIB)
        yield post(sidecar, closing, path=target, body=b"{" * 100)
        yield post(sidecar, closing, b"Content-Encoding: br", path=target)
    elif "post" not in ENDPOINTS[path] and "{id}" not in path:
        yield post(sidecar, closing, path=target)


def test_what_is_refused_before_it_is_understood_is_documented_too(sidecar):
    seen = {}
    with unharmed(sidecar):
        for path, method in OPERATIONS:
            for request in requests_that_are_refused(sidecar, path, method):
                top, _, content = ask(sidecar, request).partition(b"\r\n\r\n")
                status = int(top.split(b" ")[1])
                kind = next(each for each in top.lower().split(b"\r\n") if each.startswith(b"content-type: "))
                conforms(path, method, status, kind[14:].decode(), content)
                seen.setdefault(status, set()).add(path)
    assert {400, 401, 405, 413, 414, 415, 421, 431} <= set(seen)
    assert len(seen[401]) == len(ENDPOINTS) - 2
    assert len(seen[431]) == len(ENDPOINTS)
