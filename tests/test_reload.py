"""New settings for a running agent: credentials and tunables are taken over, the rest is named, nothing is half done."""

import itertools
import threading

import msgspec
import pytest
from test_courier import Gate, add
from upstream import UpstreamServer
from waiting import until

from per_agent import Agent, ConfigError, DeliverySettings, MemoryDestination, PaymentKit, Per, Sidecar
from per_agent.books import Books
from per_agent.destinations import Delivered, Refused, Retry
from per_agent.destinations.http import Upstream
from per_agent.errors import Unauthorized
from per_agent.event import Activity
from per_agent.settings import (
    AgentSettings,
    IntakeSettings,
    LedgerSettings,
    PaymentKitSettings,
    PerSettings,
    Secret,
    Settings,
    SidecarDestinationSettings,
    SpoolSettings,
)

PATIENT = DeliverySettings(backoff_initial=600, backoff_max=600, probe_interval=600)
replace = msgspec.structs.replace


def per(url: str, token: str = "old-token", **fields) -> PerSettings:
    return PerSettings(activity_token=Secret(token), url=url, **fields)


def settings(tmp_path, delivery: DeliverySettings = PATIENT, **destinations) -> Settings:
    return Settings(
        agent=AgentSettings(data_dir=tmp_path / "data"), delivery=delivery, destinations=destinations
    )


def delivery_of(agent: Agent, name: str):
    return agent.statistics().destinations[name].delivery


# Credentials


def test_a_halted_destination_is_tried_at_once_with_its_new_token(tmp_path, upstream: UpstreamServer):
    upstream.settings(activity_token="new-token")
    before = settings(tmp_path, per=per(upstream.url))
    with Agent.from_settings(before) as agent:
        for n in range(20):
            add(agent, n)
        until(lambda: delivery_of(agent, "per").condition.state == "halted")
        after = settings(tmp_path, per=per(upstream.url, "new-token"))
        assert agent.reload(after) == []
        assert agent.flush(30), "the pause would have lasted ten minutes"
    assert len(upstream.score().users) == 20


def test_a_payment_kit_goes_on_with_its_new_key(tmp_path, upstream: UpstreamServer):
    upstream.settings(access_key="new-key", gateway=401)
    made = PaymentKitSettings(url=upstream.url, access_key=Secret("old-key"))
    with Agent.from_settings(settings(tmp_path, kit=made)) as agent:
        agent.add_meter_event("m", customer_id="c", value=1)
        until(lambda: delivery_of(agent, "kit").condition.state == "halted")
        with pytest.raises(Unauthorized):
            agent.meters.list()
        assert agent.reload(settings(tmp_path, kit=replace(made, access_key=Secret("new-key")))) == []
        assert agent.flush(30)
        agent.meters.list()


def test_a_reporting_token_comes_changes_and_goes(tmp_path, upstream: UpstreamServer):
    upstream.settings(reporting_token="second")
    with Agent.from_settings(settings(tmp_path, per=per(upstream.url))) as agent:
        with pytest.raises(ConfigError):
            agent.get_report()
        agent.reload(settings(tmp_path, per=per(upstream.url, reporting_token=Secret("first"))))
        with pytest.raises(Unauthorized):
            agent.get_report()
        agent.reload(settings(tmp_path, per=per(upstream.url, reporting_token=Secret("second"))))
        agent.get_report()
        agent.reload(settings(tmp_path, per=per(upstream.url)))
        with pytest.raises(ConfigError):
            agent.get_report()


def test_what_is_asked_when_the_token_changes_is_answered(tmp_path, upstream: UpstreamServer):
    upstream.rule(path="/activities.add", delay=1.0, count=1)
    destination = Per("old-token", url=upstream.url)
    outcomes = []
    event = Activity("1", "acme", "u-1", "active", 1.0)
    asking = threading.Thread(target=lambda: outcomes.extend(destination.send([event])))
    asking.start()
    until(lambda: upstream.score().requests)
    destination.authorize("new-token", None, timeout=10.0)
    outcomes += destination.send([event])
    asking.join(30)
    assert outcomes == [Delivered(), Delivered()]
    assert [one["headers"]["authorization"] for one in upstream.score().last] == [
        "Bearer old-token",
        "Bearer new-token",
    ]
    destination.close()


def test_many_threads_ask_while_the_token_changes_and_each_is_answered(upstream: UpstreamServer):
    asked = Upstream("per", upstream.url, "token-0", timeout=20.0, concurrency=4)
    query = (("billingId", "a"), ("userId", "u"), ("activityTypeId", "t"))
    statuses: list[int] = []

    def ask() -> None:
        statuses.extend(asked.ask("GET", "/activities.add", query).status for _ in range(50))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(1, 30):
        asked.authorize(f"token-{n}", timeout=20.0)
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 200
    asked.ask("GET", "/activities.add", query)
    assert upstream.score().last[-1]["headers"]["authorization"] == "Bearer token-29"
    asked.close()


def test_the_old_token_stays_hidden_too():
    asked = Upstream("per", "http://localhost:9", "old-token", timeout=1.0, concurrency=1)
    asked.authorize("new-token", timeout=1.0)
    assert asked.hide("old-token and new-token") == "[hidden] and [hidden]"
    asked.authorize(None, timeout=1.0)
    assert asked.token is None
    assert asked.hide("old-token") == "[hidden]"


@pytest.mark.parametrize(
    ("destination", "new"),
    [
        (Per("good", "good", "http://localhost:9"), ("good", "not good")),
        (PaymentKit("http://localhost:9", "good"), ("not good",)),
        (Sidecar("http://localhost:9", "good"), ("not good",)),
    ],
    ids=["per", "payment_kit", "sidecar"],
)
def test_a_token_that_no_header_takes_changes_nothing(destination, new):
    with pytest.raises(ConfigError) as caught:
        destination.authorize(*new, timeout=1.0)
    assert "not good" not in str(caught.value)
    assert destination._upstream.token == "good"
    assert destination._upstream.total == 10.0


# Tunables


def test_a_pause_is_as_long_as_the_settings_in_force_say_when_it_begins(tmp_path, upstream: UpstreamServer):
    upstream.rule(path="/activities.add", status=503)
    quick = DeliverySettings(backoff_initial=0.01, backoff_max=0.01)
    with Agent.from_settings(settings(tmp_path, quick, per=per(upstream.url))) as agent:
        add(agent)
        until(lambda: delivery_of(agent, "per").condition.failures > 3)
        assert agent.reload(settings(tmp_path, PATIENT, per=per(upstream.url))) == []
        until(lambda: agent.settled)
        # Without new credentials there is nothing to be tried at once, so the long pause goes on.
        assert agent.reload(settings(tmp_path, quick, per=per(upstream.url))) == []
        assert not agent.flush(0.5)
        agent.close(0)


def test_how_often_a_refusal_is_tried_and_how_far_is_read_ahead_change_under_way(tmp_path):
    odd = Refused("odd words", certain=False)
    gate = Gate([odd, Delivered()])
    once = DeliverySettings(refusal_attempts=1, window_blocks=2)
    with Agent(tmp_path, [gate], delivery=DeliverySettings(refusal_attempts=1000)) as agent:
        add(agent, 0)
        add(agent, 1)
        until(lambda: gate.inside)
        made = Settings(agent=AgentSettings(data_dir=tmp_path), delivery=once, destinations={})
        assert agent.reload(made) == []
        engine = agent._life.engine
        engine.courier.run(lambda: None, 30)  # what was asked before it is done
        (route,) = engine.courier._routes
        assert [window.size for window in route._windows] == [2]
        assert route._settings == once
        gate.gate.set()
        assert agent.flush(30)
        assert agent.books()["memory"].pending == 0


def test_linger_and_the_size_of_blocks_change_under_way(tmp_path):
    with Agent(tmp_path, [MemoryDestination()], intake=IntakeSettings(linger=60.0)) as agent:
        assert add(agent).stored(30)
        made = Settings(
            agent=AgentSettings(data_dir=tmp_path), intake=IntakeSettings(linger=0.0), destinations={}
        )
        assert agent.reload(made) == []
        add(agent, 1)
        until(lambda: agent.statistics().destinations["memory"].books == Books(2, 2))


# What needs a restart


def test_what_cannot_change_under_way_is_named_and_stays(tmp_path, upstream: UpstreamServer):
    before = settings(tmp_path, per=per(upstream.url), ledger=LedgerSettings(), kit=per(upstream.url))
    after = Settings(
        agent=AgentSettings(data_dir=tmp_path / "other", exit_timeout=9.0),
        intake=IntakeSettings(buffer_events=7, overflow="block", linger=0.5, block_events=3),
        spool=SpoolSettings(max_bytes=2**20, adopt_interval=5.0),
        delivery=DeliverySettings(probe_interval=1.0),
        destinations={
            "per": per("http://localhost:9", concurrency=2, timeout=3.0),
            "kit": LedgerSettings(),
            "sidecar": SidecarDestinationSettings(),
        },
    )
    named = [
        "agent.data_dir",
        "intake.buffer_events",
        "intake.overflow",
        "spool.max_bytes",
        "spool.adopt_interval",
        "destinations.per.url",
        "destinations.per.concurrency",
        "destinations.ledger",
        "destinations.kit.type",
        "destinations.sidecar",
    ]
    with Agent.from_settings(before) as agent:
        assert agent.reload(after) == named
        assert agent.reload(after) == named, "what was not taken over still differs"
        assert agent.reload(before) == []
        add(agent)
        assert agent.flush(30), "it goes where it went"
        assert (tmp_path / "data").is_dir()
    assert len(upstream.score().users) == 2


def test_an_agent_that_was_made_by_hand_keeps_its_destinations(tmp_path):
    with Agent(tmp_path, [MemoryDestination(itertools.repeat(Retry("down")))], delivery=PATIENT) as agent:
        made = Settings(
            agent=AgentSettings(data_dir=tmp_path),
            delivery=PATIENT,
            destinations={"ledger": LedgerSettings()},
        )
        assert agent.reload(made) == ["destinations.ledger"]


def test_new_settings_are_in_force_also_before_the_first_event_and_after_the_end(tmp_path, upstream):
    upstream.settings(activity_token="new-token")
    agent = Agent.from_settings(settings(tmp_path, per=per(upstream.url)))
    assert agent.reload(settings(tmp_path, per=per(upstream.url, "new-token"))) == []
    assert add(agent).delivered(30)
    agent.close()
    assert agent.reload(settings(tmp_path, per=per(upstream.url))) == []
