"""The unit files: what systemd thinks of them, and that they say the same as the code and the documents."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from per_agent.settings import SidecarSettings

ROOT = Path(__file__).parents[1]
UNITS = ROOT / "systemd"
SERVICE = (UNITS / "per-agent.service").read_text()
SOCKET = (UNITS / "per-agent.socket").read_text()
MOST_EXPOSURE = 1.2


@pytest.fixture(scope="module")
def analyze():
    """`systemd-analyze`, of systemd 252 or newer."""
    required = os.environ.get("PER_AGENT_BOOT_TEST") == "required"
    found = shutil.which("systemd-analyze")
    if found is None:
        assert not required, "systemd-analyze is missing"
        pytest.skip("systemd-analyze is not installed")
    version = re.match(
        r"systemd (\d+)",
        subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout,
    )
    assert version
    if int(version[1]) < 252:
        assert not required, "systemd is older than 252"
        pytest.skip(f"systemd {version[1]} does not know all that the units say; 252 does")

    def run(*arguments):
        # Away from a manager that may run here, and without a pager.
        environ = os.environ | {"SYSTEMD_PAGER": "cat", "NO_COLOR": "1"}
        return subprocess.run(
            [found, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=environ,
        )

    return run


def values(unit, setting):
    return re.findall(rf"^{setting}=(.*)$", unit, re.MULTILINE)


def test_the_sandbox_is_as_tight_as_was_promised(analyze):
    done = analyze(
        "security", "--offline=true", f"--threshold={MOST_EXPOSURE * 10:.0f}", UNITS / "per-agent.service"
    )
    assert done.returncode == 0, done.stdout
    exposure = re.search(r"exposure level for per-agent.service: (\S+)", done.stdout)
    assert exposure
    assert float(exposure[1]) <= MOST_EXPOSURE


def test_systemd_finds_nothing_wrong_with_the_units(analyze, tmp_path):
    # The command is not installed here; that is the one thing that may differ.
    for name, text in (("per-agent.service", SERVICE), ("per-agent.socket", SOCKET)):
        (tmp_path / name).write_text(text.replace("/opt/per-agent/bin/per-agent", sys.executable))
    done = analyze("verify", tmp_path / "per-agent.service", tmp_path / "per-agent.socket")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_stop_may_take_longer_than_the_sidecar_takes():
    (seconds,) = values(SERVICE, "TimeoutStopSec")
    assert float(seconds) > SidecarSettings().shutdown_timeout + 15


def test_files_are_allowed_for_as_many_connections_as_are():
    (limit,) = values(SERVICE, "LimitNOFILE")
    assert int(limit) > 4 * SidecarSettings().max_connections


def test_the_sockets_are_where_the_sidecar_and_its_clients_look():
    assert values(SOCKET, "ListenStream") == ["/run/per-agent/agent.sock", SidecarSettings().listen]
    (mode,) = values(SOCKET, "SocketMode")
    assert int(mode, 8) == int(SidecarSettings().unix_mode, 8)


def test_the_user_is_not_called_as_the_group_is():
    # systemd makes no user of a name that a group has already.
    assert values(SERVICE, "DynamicUser") == ["yes"]
    assert values(SERVICE, "User") != values(SOCKET, "SocketGroup")


def test_every_credential_that_the_example_names_is_handed_over():
    example = (ROOT / "config.example.toml").read_text()
    named = set(re.findall(r'credential = "([^"]+)"', example)) - {"name"}  # that one stands for any
    handed_over = dict(value.split(":") for value in values(SERVICE, "LoadCredential"))
    assert named
    assert named <= set(handed_over)
    assert all(source == f"per-agent.{name}" for name, source in handed_over.items())
