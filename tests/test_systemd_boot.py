"""The service on a booted machine with a real systemd: installed as the README says, used, restarted, killed, stopped.

A copy of this machine boots once in a container, runs `boot/scenario.py` and powers off; the tests judge what it saw.
With PER_AGENT_BOOT_TEST=required, a machine on which that cannot be is a failure and no reason to skip.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CHECKOUT = Path(__file__).parents[1]
BOOT = Path(__file__).parent / "boot"
README = (CHECKOUT / "README.md").read_text()


def _missing(folder: Path) -> str | None:
    """What keeps a machine from being booted here; *folder* is there to try it in."""
    if os.getuid() != 0:
        return "only root can boot a machine"
    tools = ("systemd-nspawn", "systemctl", "unshare", "setpriv", "groupadd", "openssl", "curl")
    absent = [tool for tool in tools if not shutil.which(tool)]
    if absent:
        return f"not installed: {', '.join(absent)}"
    # In a namespace of its own, so that nothing is to be taken down: it goes with the process.
    layers = "mount -t tmpfs t . && cd $PWD && mkdir u w m && mount -t overlay o -o lowerdir=/,upperdir=u,workdir=w m"
    tried = subprocess.run(
        ["unshare", "--mount", "sh", "-c", layers], cwd=folder, capture_output=True, text=True, check=False
    )
    return f"no overlay can be mounted: {tried.stderr.strip()}" if tried.returncode else None


def _commands() -> list[str]:
    """The README's commands that install the service; whoever runs them here is root already."""
    (section,) = re.findall(r"^## As a service.*?```bash\n(.*?)```", README, re.DOTALL | re.MULTILINE)
    return [re.sub(r"\bsudo ", "", line) for line in section.splitlines()]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each part of the scenario saw."""
    missing = _missing(tmp_path_factory.mktemp("try"))
    if missing is not None:
        assert os.environ.get("PER_AGENT_BOOT_TEST") != "required", missing
        pytest.skip(missing)
    root, results = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("results")
    *before, last = _commands()
    (results / "last-command").write_text(last)
    arguments = [root, CHECKOUT, results, BOOT / "scenario.py", sys.base_prefix]
    machine = subprocess.Popen(
        ["unshare", "--mount", BOOT / "boot.sh", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = machine.communicate("\n".join(before), timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(machine.pid, signal.SIGKILL)
        said, _ = machine.communicate()
    found = results / "seen.json"
    assert found.exists(), f"the machine did not come to the end of the scenario:\n{said}"
    journal = results / "journal.txt"
    return json.loads(found.read_text()) | {"journal": journal.read_text()}


@pytest.fixture
def part(seen, request):
    """What the part of the scenario saw that the test names; shown when it fails."""
    facts = seen[request.param]
    if "failed" in facts and isinstance(facts["failed"], str):
        pytest.fail(f"{facts['failed']}\n{facts['status']}\n{seen['journal'][-6000:]}")
    print(json.dumps(facts, indent=1))
    return facts


def of(name):
    return pytest.mark.parametrize("part", [name], indirect=True)


def test_five_commands_install_it():
    assert len(_commands()) == 5


@of("start")
def test_the_last_command_returns_when_it_is_ready_and_starts_it_at_each_boot(part):
    unit = part["unit"]
    assert (unit["Type"], unit["ActiveState"], unit["SubState"]) == ("notify", "active", "running")
    assert (unit["Result"], unit["NRestarts"]) == ("success", "0")
    assert unit["StatusText"].startswith("ready")
    assert part["enabled"] == ["enabled", "enabled"]
    assert part["listeners"] == ["unix:/run/per-agent/agent.sock", "http://127.0.0.1:4737"]


@of("start")
def test_it_runs_without_power_and_keeps_its_files_to_itself(part):
    assert "0" not in part["process"]["Uid"].split()
    assert (part["process"]["NoNewPrivs"], part["process"]["Seccomp"]) == ("1", "2")
    assert {int(part["process"][each], 16) for each in ("CapEff", "CapBnd")} == {0}
    assert part["modes"] == {
        "/run/per-agent/agent.sock": "660",
        "/run/per-agent": "755",
        "/var/lib/per-agent/": "700",
    }
    assert set(part["files"].values()) == {"600"}


@of("units")
def test_systemd_finds_nothing_wrong_with_the_units_and_calls_them_safe(part):
    assert part["verify"] == ""
    assert part["threshold"] == 0, part["security"]
    assert float(re.search(r"exposure level for per-agent.service: (\S+)", part["security"])[1]) <= 1.2


@of("listeners")
def test_events_come_by_both_sockets_from_those_who_may_and_from_nobody_else(part):
    assert '"stored":true' in part["of the group"]
    assert "connect" in part["not of the group"]
    assert part["with the token"][0] == 202
    assert part["with the token"][1]["stored"] is True
    assert part["without a token"] == 401
    assert part["counted"] == ["by-group", "by-token"]
    assert part["books"]["balanced"] is True
    assert '"unique": 2' in json.dumps(part["report"])


@of("restart")
def test_restarts_under_a_steady_stream_lose_nothing_and_refuse_nobody(part):
    assert len(set(part["pids"])) == 4
    assert part["stored"] > 800
    assert (part["broke"], part["failed"], part["not counted"]) == ([], [], [])


@of("kill")
def test_after_a_kill_it_is_started_again_and_all_that_was_stored_is_counted(part):
    assert part["restarts"] == 1
    assert len(set(part["pids"])) == 2
    assert part["stored"] > 600
    assert part["not counted"] == []
    assert part["broke"] == [], "the sockets stayed open meanwhile"


@of("credentials")
def test_credentials_arrive_and_an_upstream_is_found_by_name_and_trusted_by_its_certificate(part):
    assert part["with the credential"] == 202
    assert part["with the one before"] == 401
    assert part["authorizations"] == ["Bearer this-is-the-per-activity-token"]
    assert part["users"] == ["by-credential"]


@of("silent_upstream")
def test_an_upstream_that_never_answers_does_not_trip_the_watchdog(part):
    assert part["before"]["WatchdogUSec"] == "5s"
    assert part["after"] == part["before"]
    assert part["pending"] == 20
    assert part["took"] < 30, "a restart, within the unit's TimeoutStopSec"
    assert part["users"] == sorted(f"silent-{n}" for n in range(20))


@of("wedge")
def test_a_deadlocked_courier_trips_the_watchdog_and_the_journal_shows_where(part):
    assert part["stored"][0] == 202
    assert part["counted"], "once it was started again"
    assert len(set(part["pids"])) == 2
    assert "Watchdog timeout" in part["judged"]
    assert "in batch" in part["said"]


@of("reload")
def test_a_reload_changes_a_token_and_a_wrong_configuration_changes_nothing(part):
    assert part["before"] == {"this-is-the-sidecar-token": 200, "changed": 401}
    assert part["after"] == {"this-is-the-sidecar-token": 401, "changed": 200}
    assert part["after a wrong one"] == 200
    assert len(set(part["pids"])) == 1
    assert part["unit"] == {"ActiveState": "active", "SubState": "running"}


@of("stop")
def test_a_stop_while_the_upstream_is_down_ends_in_time_with_everything_stored(part):
    assert part["accepted"] == [[202, 125]] * 4
    assert part["unit"]["Result"] == "success"
    assert (part["unit"]["ActiveState"], part["unit"]["ExecMainStatus"]) == ("inactive", "0")
    assert part["gone"]
    assert part["took"] < 30, "the unit's TimeoutStopSec"
    assert part["pending"] == part["users"] == 500
    assert (part["not delivered"], part["not counted"]) == ([], [])
