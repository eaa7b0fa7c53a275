"""The ledger's meters follow the rules of Payment Kit's meters page."""

import pytest

from per_agent import errors
from per_agent.destinations.local import Ledger


@pytest.fixture
def ledger(tmp_path):
    clock = iter(range(1_700_000_000, 1_800_000_000))
    ledger = Ledger(tmp_path / "ledger.db", clock=lambda: float(next(clock)))
    yield ledger
    ledger.close()


@pytest.fixture
def meters(ledger):
    return ledger.meters


def make(meters, event_name="api.calls.v1", **fields):
    return meters.create(**{"name": "API Calls", "event_name": event_name, "unit": "requests"} | fields)


def refused(status, call, /, *args, **fields):
    with pytest.raises(errors.Refused) as caught:
        call(*args, **fields)
    assert caught.value.status == status
    return caught.value.words


def test_a_new_meter_has_all_the_fields_of_the_meters_page(meters):
    meter = make(meters, description="Tracks API calls.", livemode=False)
    assert meter["id"].startswith("mtr_")
    assert meter["currency_id"].startswith("pcur_")
    assert meter == {
        "id": meter["id"],
        "object": "meter",
        "name": "API Calls",
        "event_name": "api.calls.v1",
        "aggregation_method": "sum",
        "unit": "requests",
        "currency_id": meter["currency_id"],
        "status": "active",
        "livemode": False,
        "description": "Tracks API calls.",
        "metadata": {},
        "created_at": "2023-11-14T22:13:20.000Z",
        "updated_at": "2023-11-14T22:13:20.000Z",
        "paymentCurrency": {
            "id": meter["currency_id"],
            "name": "API Calls",
            "symbol": "requests",
            "decimal": 0,
            "type": "meter",
        },
    }


def test_a_meter_is_retrieved_by_id_or_by_event_name_in_its_mode(meters):
    live, test = make(meters), make(meters, livemode=False)
    assert meters.retrieve(live["id"]) == live
    assert meters.retrieve(test["id"]) == test
    assert meters.retrieve("api.calls.v1") == live
    assert meters.retrieve("api.calls.v1", livemode=False) == test


def test_an_unknown_meter_is_not_found(meters):
    assert "mtr_nowhere" in refused(404, meters.retrieve, "mtr_nowhere")
    refused(404, meters.update, "mtr_nowhere", name="x")
    refused(404, meters.activate, "mtr_nowhere")
    refused(404, meters.deactivate, "mtr_nowhere")


def test_an_event_name_is_unique_in_its_mode(meters):
    make(meters)
    assert refused(409, make, meters) == "event_name: already exists in live mode"
    make(meters, livemode=False)
    refused(409, make, meters, livemode=False)
    assert meters.list(livemode=None)["count"] == 2


def test_all_problems_of_a_new_meter_are_named_at_once(meters):
    words = refused(
        400,
        meters.create,
        name="n" * 65,
        event_name="",
        description="d" * 256,
        aggregation_method="max",
        metadata=[1],
        livemode="yes",
        colour="red",
    )
    for field in (
        "name: is 65",
        "event_name",
        "unit: is required",
        "description",
        "aggregation_method",
        "metadata",
    ):
        assert field in words
    assert "livemode" in words
    assert "colour: is not a field" in words
    assert meters.list(livemode=None)["count"] == 0


@pytest.mark.parametrize(
    ("field", "longest"), [("name", 64), ("event_name", 64), ("unit", 32), ("description", 255)]
)
def test_texts_may_be_as_long_as_the_meters_page_says_and_no_longer(meters, field, longest):
    assert make(meters, **{field: "ü" * longest})[field] == "ü" * longest
    assert field in refused(400, make, meters, **{"event_name": "other", field: "ü" * (longest + 1)})


def test_text_without_a_utf8_form_is_refused(meters):
    assert "name" in refused(400, make, meters, name="\ud800")
    assert "metadata" in refused(400, make, meters, metadata={"a": float("nan")})


def test_a_meter_may_share_an_existing_currency_but_not_an_unknown_one(meters):
    first = make(meters)
    assert (
        make(meters, "other", currency_id=first["currency_id"])["paymentCurrency"] == first["paymentCurrency"]
    )
    assert "currency_id" in refused(400, make, meters, "third", currency_id="pcur_nowhere")


def test_update_sets_what_is_given_and_replaces_metadata_whole(meters):
    meter = make(meters, metadata={"team": "a", "tier": 1})
    updated = meters.update(meter["id"], name="Calls", metadata={"team": "b"})
    assert updated == meter | {
        "name": "Calls",
        "metadata": {"team": "b"},
        "updated_at": updated["updated_at"],
    }
    assert updated["updated_at"] > meter["updated_at"]
    assert meters.retrieve(meter["id"]) == updated
    assert meters.update(meter["id"], description="d")["description"] == "d"
    assert meters.update(meter["id"], description=None)["description"] is None


def test_update_refuses_other_fields_by_name_and_changes_nothing(meters):
    meter = make(meters)
    wrong = {"event_name": "x", "currency_id": "y", "status": "gone", "name": "", "unit": "u"}
    words = refused(400, lambda: meters.update(meter["id"], **wrong))
    for field in ("event_name: cannot", "currency_id: cannot", "status", "name: must not be empty"):
        assert field in words
    assert meters.retrieve(meter["id"]) == meter


def test_a_meter_is_deactivated_and_activated(meters):
    meter = make(meters)
    assert meters.deactivate(meter["id"])["status"] == "inactive"
    assert meters.activate(meter["id"])["status"] == "active"
    assert meters.update(meter["id"], status="inactive")["status"] == "inactive"


def test_lists_are_newest_first_and_paged(meters):
    for number in range(25):
        make(meters, f"m{number}")
    first = meters.list()
    assert first["count"] == 25
    assert first["paging"] == {"page": 1, "pageSize": 20}
    assert [meter["event_name"] for meter in first["list"]] == [f"m{number}" for number in range(24, 4, -1)]
    assert [meter["event_name"] for meter in meters.list(page=5, pageSize=6)["list"]] == ["m0"]
    assert meters.list(page=9)["list"] == []


@pytest.mark.parametrize(
    "paging", [{"page": 0}, {"pageSize": 0}, {"pageSize": 101}, {"page": "1"}, {"pageSize": True}]
)
def test_pages_outside_of_the_bounds_are_refused(meters, paging):
    assert next(iter(paging)) in refused(400, meters.list, **paging)


def test_lists_filter_by_event_name_mode_and_words(meters):
    make(meters, "a", name="Größe", description="of all")
    make(meters, "b", name="Other", description="100% sure")
    make(meters, "b", name="Other", livemode=False)

    def names(**filters):
        return [meter["event_name"] for meter in meters.list(**filters)["list"]]

    assert names() == ["b", "a"]
    assert names(livemode=False) == ["b"]
    assert names(livemode=None) == ["b", "b", "a"]
    assert names(event_name="a") == ["a"]
    assert names(q="GRÖSSE") == ["a"]
    assert names(q="100%") == ["b"]
    assert names(q="%") == ["b"]
    assert names(q="nothing") == []
