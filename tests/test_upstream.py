"""The test upstream itself: a score that can be trusted, and rules that do what they say."""

import http.client

import pytest
from upstream import UpstreamServer


def add(upstream, user="u"):
    """The status of one counted call, or None where there was no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=10)
    try:
        path = f"/activities.add?billingId=b&userId={user}&activityTypeId=t"
        connection.request("GET", path, headers={"Authorization": "Bearer x"})
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        return None
    else:
        return response.status
    finally:
        connection.close()


def test_the_score_and_the_port_survive_a_kill_and_rules_do_not(tmp_path):
    with UpstreamServer(tmp_path) as upstream:
        port = upstream.port
        upstream.rule(cut="after", users=["b"])
        assert [add(upstream, user) for user in "abc"] == [200, None, 200]
        upstream.kill()
        assert not upstream.running
        assert add(upstream) is None
        upstream.start()
        assert upstream.port == port
        assert add(upstream, "b") == 200
        assert upstream.score().users == ["a", "b", "c", "b"]
        assert [one["n"] for one in upstream.score().activities] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("rule", "statuses"),
    [
        ({"count": 2}, [503, 503, 200, 200]),
        ({"every": 2}, [200, 503, 200, 503]),
        ({"for_seconds": 1000}, [503, 503, 503, 503]),
        ({"for_seconds": 0}, [200, 200, 200, 200]),
        ({"path": "/activities.*"}, [503, 503, 503, 503]),
        ({"path": "*/meter-events"}, [200, 200, 200, 200]),
        ({"method": "POST"}, [200, 200, 200, 200]),
        ({"users": ["other"]}, [200, 200, 200, 200]),
    ],
)
def test_a_rule_takes_the_requests_that_it_names(upstream, rule, statuses):
    upstream.rule(status=503, **rule)
    assert [add(upstream) for _ in statuses] == statuses
    assert len(upstream.score().users) == statuses.count(200)
    upstream.clear_rules()
    assert add(upstream) == 200


def test_a_made_up_answer_counts_only_if_told_to(upstream):
    upstream.rule(status=500, users=["a"])
    upstream.rule(status=500, users=["b"], counts=True)
    assert [add(upstream, "a"), add(upstream, "b")] == [500, 500]
    score = upstream.score()
    assert score.users == ["b"]
    assert score.statuses == {"500": 2}
    assert score.requests == score.connections == 2


def test_a_setting_that_does_not_exist_is_not_swallowed(upstream):
    with pytest.raises(ValueError, match="unknown settings"):
        upstream.settings(tokn="x")


def test_a_reset_forgets_all(upstream):
    upstream.rule(status=503)
    add(upstream)
    upstream.reset()
    assert add(upstream) == 200
    assert upstream.score().requests == 1
