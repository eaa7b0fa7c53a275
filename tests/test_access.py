"""Who may talk to the sidecar on TCP: which credential is good for what, and which names are its own."""

import pytest

from per_agent.settings import PaymentKitSettings, PerSettings, Secret, Settings, SidecarSettings
from per_agent.sidecar.access import Access
from per_agent.sidecar.problems import Problem

OWN, COUNTING, REPORTING, KEY = "the-sidecars-own", "per-activity", "per-reporting", "payment-kit-key"
SETTINGS = Settings(
    sidecar=SidecarSettings(listen="127.0.0.2:4737", hosts=("Box.Example",)),
    destinations={
        "per": PerSettings(activity_token=Secret(COUNTING), reporting_token=Secret(REPORTING)),
        "kit": PaymentKitSettings(url="https://pay.example", access_key=Secret(KEY)),
    },
)
GOOD_FOR = {
    "/activities.add": {OWN, COUNTING},
    "/reports.get": {OWN, REPORTING},
    "/api/meter-events": {OWN, KEY},
    "/api/customers/cus_9": {OWN, KEY},
    "/v1/events": {OWN},
    "/v1/dead-letters/purge": {OWN},
    "/metrics": {OWN},
    "/openapi.json": {OWN},
    "/nowhere": {OWN},
    "/activities.add/": {OWN},
    "/api": {OWN},
}


@pytest.fixture
def access():
    return Access(OWN, SETTINGS)


def bearer(token, scheme=b"Bearer "):
    return {b"authorization": scheme + token.encode()}


def is_let_in(access, path, given):
    try:
        access.by_token(path, given)
    except Problem as problem:
        refused = problem
    else:
        return True
    assert refused.status == 401
    assert "Bearer" in refused.headers["www-authenticate"]
    return False


@pytest.mark.parametrize("path", GOOD_FOR)
@pytest.mark.parametrize(
    "token", [OWN, COUNTING, REPORTING, KEY, "", "unknown", OWN[:-1], OWN + "x", OWN.upper()]
)
def test_each_path_takes_the_sidecars_token_and_the_upstreams_own_for_it(access, path, token):
    assert is_let_in(access, path, bearer(token)) is (token in GOOD_FOR[path])


@pytest.mark.parametrize("path", GOOD_FOR)
def test_beside_an_upstreams_credential_only_the_sidecars_own_token_counts(access, path):
    for token in (OWN, COUNTING, REPORTING, KEY):
        given = bearer("somebody-elses") | {b"proxy-authorization": b"Bearer " + token.encode()}
        assert is_let_in(access, path, given) is (token == OWN)


@pytest.mark.parametrize(
    "header", [b"", b"Bearer", b"Bearer ", b"Bearer  ", OWN.encode(), b"Basic " + OWN.encode(), b"Token " + OWN.encode(),
               b"Bearer\t" + OWN.encode(), b"Bearer \xff\xfe", b"Bearer " + OWN.encode() + b", Bearer x"],
)  # fmt: skip
def test_what_is_no_bearer_token_is_none(access, header):
    assert not is_let_in(access, "/v1/events", {b"authorization": header})


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER ", b"Bearer   "])
def test_the_scheme_is_read_as_the_standard_says(access, scheme):
    assert is_let_in(access, "/v1/events", bearer(OWN, scheme))


def test_it_is_known_by_which_header_a_request_was_let_in(access):
    assert access.by_token("/api/x", bearer(KEY)) == "header"
    given = bearer("the-callers-own") | {b"proxy-authorization": b"Bearer " + OWN.encode()}
    assert access.by_token("/api/x", given) == "proxy-header"
    assert access.by_socket("/api/x", {}) == "socket"
    assert access.by_socket("/api/x", bearer("the-callers-own")) == "socket"
    assert access.by_socket("/api/x", bearer(KEY)) == "header"


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_bring_no_token(access, path):
    assert is_let_in(access, path, {})


@pytest.mark.parametrize("path", ["/healthz/", "/readyz?x", "//healthz", "/healthz/../v1/events"])
def test_only_the_probes_paths_themselves_are_open(access, path):
    assert not is_let_in(access, path, {})


@pytest.mark.parametrize(
    "host",
    [b"localhost", b"LOCALHOST:4737", b"127.0.0.1", b"127.0.0.1:80", b"[::1]", b"[::1]:4737", b"127.0.0.2:4737",
     b"box.example", b"BOX.EXAMPLE:4737", b"10.1.2.3:4737"],
)  # fmt: skip
def test_its_own_names_are_taken_with_any_port(access, host):
    access.check_host(host, "10.1.2.3")
    access.check_host(host, "10.1.2.3")


@pytest.mark.parametrize(
    "host",
    [b"", b":4737", b"evil.example", b"localhost.evil.example", b"evil.example:127.0.0.1", b"localhost:evil",
     b"127.0.0.1:4737.evil.example", b"127.0.0.1@evil.example", b"[::1].evil.example", b"box.example.", b"10.1.2.4",
     b"localhost:4737:4737", b"localhost,evil.example", b"\xff"],
)  # fmt: skip
def test_any_other_name_is_refused_every_time(access, host):
    for _ in range(2):
        with pytest.raises(Problem) as refused:
            access.check_host(host, "10.1.2.3")
        assert refused.value.status == 421


def test_a_request_must_say_whom_it_means(access):
    with pytest.raises(Problem) as refused:
        access.check_host(None, "127.0.0.1")
    assert refused.value.status == 400


def test_an_address_is_known_only_while_a_request_came_to_it(access):
    access.check_host(b"127.0.0.1", "10.1.2.3")
    with pytest.raises(Problem):
        access.check_host(b"10.1.2.3", None)
    access.check_host(b"[fd00::1]:4737", "fd00::1")


def test_names_and_tokens_follow_a_reload(access):
    access.check_host(b"box.example", None)
    access.renew("another", Settings(sidecar=SidecarSettings(hosts=("other.example",))))
    with pytest.raises(Problem):
        access.check_host(b"box.example", None)
    access.check_host(b"other.example", None)
    assert not is_let_in(access, "/v1/events", bearer(OWN))
    assert not is_let_in(access, "/activities.add", bearer(COUNTING))
    assert is_let_in(access, "/activities.add", bearer("another"))
