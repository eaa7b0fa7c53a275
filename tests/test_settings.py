"""The settings: what wins over what, every problem named, and no secret shown."""

import copy
import itertools
import json
import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as trials
from hypothesis import strategies as st

from per_agent.backoff import MAX_RETRY_AFTER, Backoff
from per_agent.errors import ConfigError
from per_agent.settings import (
    AgentSettings,
    DeliverySettings,
    IntakeSettings,
    LedgerSettings,
    PaymentKitSettings,
    PerSettings,
    Secret,
    Settings,
    SidecarDestinationSettings,
    SidecarSettings,
    SpoolSettings,
    default_data_dir,
    example,
    load,
    show,
    socket_path,
    token_path,
)
from per_agent.settings.reader import Reader
from per_agent.settings.sections import SECTIONS
from per_agent.settings.upstreams import DESTINATIONS

HOME = {"HOME": "/home/someone"}
TOKEN = "tok_live_Zq81hVt0b3GxYw"  # what must never be seen in a message

# The beginnings of two destinations; the secrets are the tests'.
PER = '[destinations.per]\ntype = "per"\n'
KIT = '[destinations.payment_kit]\ntype = "payment_kit"\nurl = "https://pay.example/app"\n'


@pytest.fixture
def write(tmp_path):
    """Writes a configuration file that only its owner can read, and gives its path."""

    def write(text, mode=0o600):
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return path

    return write


def problems(path, environ=HOME):
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    return list(caught.value.problems)


# What wins over what


def test_nothing_set_means_the_defaults_and_the_ledger():
    settings = load(None, HOME)
    assert settings == Settings(agent=AgentSettings(data_dir=Path("/home/someone/.local/state/per-agent")))
    assert settings.destinations == {"ledger": LedgerSettings()}
    assert settings.warnings == ()


def test_an_empty_file_means_the_same(write):
    assert load(write(""), HOME) == load(None, HOME)
    assert load(write("[destinations]\n[agent]\n"), HOME) == load(None, HOME)


def test_the_environment_may_name_the_file(write):
    path = write("[intake]\nlinger = 0.25\n")
    assert load(None, {**HOME, "PER_AGENT_CONFIG": str(path)}).intake.linger == 0.25


def test_the_argument_wins_over_the_file_that_the_environment_names(write, tmp_path):
    path = write("[intake]\nlinger = 0.25\n")
    environ = {**HOME, "PER_AGENT_CONFIG": str(tmp_path / "missing.toml")}
    assert load(path, environ).intake.linger == 0.25


def test_the_file_wins_over_the_environment_and_the_environment_over_the_default(write):
    environ = {**HOME, "PER_AGENT_DATA_DIR": "/from/environ", "STATE_DIRECTORY": "/from/systemd"}
    assert load(write('[agent]\ndata_dir = "/from/file"\n'), environ).agent.data_dir == Path("/from/file")
    assert load(write(""), environ).agent.data_dir == Path("/from/environ")
    assert load(None, environ).agent.data_dir == Path("/from/environ")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"PER_AGENT_DATA_DIR": "/d", "STATE_DIRECTORY": "/s", "XDG_STATE_HOME": "/x", **HOME}, "/d"),
        ({"STATE_DIRECTORY": "/s/one:/s/two", "XDG_STATE_HOME": "/x", **HOME}, "/s/one"),
        ({"STATE_DIRECTORY": "", "XDG_STATE_HOME": "/x", **HOME}, "/x/per-agent"),
        ({"XDG_STATE_HOME": "relative/is/ignored", **HOME}, "/home/someone/.local/state/per-agent"),
        ({"XDG_STATE_HOME": "", **HOME}, "/home/someone/.local/state/per-agent"),
    ],
)
def test_the_data_lies_in_the_first_folder_that_is_set(environ, expected):
    assert default_data_dir(environ) == Path(expected)


def test_a_relative_data_dir_in_the_environment_is_relative_to_the_working_folder():
    assert default_data_dir({"PER_AGENT_DATA_DIR": "data"}) == Path.cwd() / "data"


def test_an_environment_that_says_nothing_of_folders_is_a_problem_that_names_the_remedies():
    [problem] = problems(None, {})
    assert problem.startswith("agent.data_dir: ")
    for name in ("PER_AGENT_DATA_DIR", "STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"):
        assert name in problem


def test_that_problem_does_not_arise_where_the_file_names_the_folder(write):
    assert load(write('[agent]\ndata_dir = "/d"\n'), {}).agent.data_dir == Path("/d")


def test_paths_in_the_file_are_relative_to_its_folder(write, tmp_path):
    path = write(
        '[agent]\ndata_dir = "data"\n[destinations.l]\ntype = "ledger"\npath = "~/ledger.db"\n'
        '[destinations.m]\ntype = "ledger"\npath = "/m.db"\n'
    )
    settings = load(path, HOME)
    assert settings.agent.data_dir == tmp_path / "data"
    assert settings.destinations["l"] == LedgerSettings(path=Path("/home/someone/ledger.db"))
    assert settings.destinations["m"] == LedgerSettings(path=Path("/m.db"))


def test_a_home_that_is_not_set_is_named_where_the_file_speaks_of_it(write):
    [problem] = problems(write('[agent]\ndata_dir = "~/data"\n'), {"STATE_DIRECTORY": "/s"})
    assert problem.endswith("agent.data_dir: ~ stands for $HOME, which is not set")


# The environment without a file


def test_the_environment_alone_makes_both_destinations():
    settings = load(
        None,
        {
            **HOME,
            "PER_ACTIVITY_TOKEN": "tok_a",
            "PER_REPORTING_TOKEN": "tok_r",
            "PAYMENT_KIT_URL": "https://pay.example/app",
            "PAYMENT_KIT_ACCESS_KEY": "key",
            "PAYMENT_KIT_LIVEMODE": "False",
        },
    )
    assert settings.destinations == {
        "per": PerSettings(activity_token=Secret("tok_a"), reporting_token=Secret("tok_r")),
        "payment_kit": PaymentKitSettings(
            url="https://pay.example/app", access_key=Secret("key"), livemode=False
        ),
    }
    assert settings.warnings == ()


def test_an_activity_token_alone_is_enough_for_per():
    settings = load(None, {**HOME, "PER_ACTIVITY_TOKEN": "tok_a"})
    assert settings.destinations == {"per": PerSettings(activity_token=Secret("tok_a"))}


def test_payment_kit_is_live_unless_the_environment_says_otherwise():
    environ = {**HOME, "PAYMENT_KIT_URL": "https://pay.example", "PAYMENT_KIT_ACCESS_KEY": "key"}
    assert load(None, environ).destinations["payment_kit"].livemode is True


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"PER_REPORTING_TOKEN": "r"}, ["PER_ACTIVITY_TOKEN: is not set"]),
        ({"PAYMENT_KIT_URL": "https://p.example"}, ["PAYMENT_KIT_ACCESS_KEY: is not set"]),
        ({"PAYMENT_KIT_ACCESS_KEY": "k"}, ["PAYMENT_KIT_URL: is not set"]),
        ({"PAYMENT_KIT_LIVEMODE": "true"}, ["PAYMENT_KIT_URL: is", "PAYMENT_KIT_ACCESS_KEY: is"]),
        ({"PER_ACTIVITY_TOKEN": ""}, ["PER_ACTIVITY_TOKEN: is set but empty"]),
        ({"PER_ACTIVITY_TOKEN": "two words"}, ["PER_ACTIVITY_TOKEN: must be printable"]),
        ({"PER_AGENT_DATA_DIR": ""}, ["PER_AGENT_DATA_DIR: is set but empty"]),
        ({"PER_AGENT_CONFIG": ""}, ["PER_AGENT_CONFIG: is set but empty"]),
        (
            {"PER_ACTIVITY_TOKEN": "", "PAYMENT_KIT_URL": "pay.example", "PAYMENT_KIT_LIVEMODE": "maybe"},
            [
                "PER_ACTIVITY_TOKEN: is set but empty",
                "PAYMENT_KIT_URL: expected a URL",
                "PAYMENT_KIT_LIVEMODE: expected true or false, found the string 'maybe'",
                "PAYMENT_KIT_ACCESS_KEY: is not set",
            ],
        ),
    ],
)
def test_a_wrong_environment_is_named_by_its_variables(environ, expected):
    found = problems(None, {**HOME, **environ})
    assert len(found) == len(expected)
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(start)


def test_with_a_file_the_environment_makes_no_destination_and_a_warning_says_so(write):
    environ = {**HOME, "PER_ACTIVITY_TOKEN": TOKEN}
    settings = load(write(""), environ)
    assert settings.destinations == {"ledger": LedgerSettings()}
    [warning] = settings.warnings
    assert "PER_ACTIVITY_TOKEN" in warning
    assert TOKEN not in warning
    assert load(write('[destinations.l]\ntype = "ledger"\n'), environ).warnings == ()


# The file: every problem named


def test_all_problems_of_a_file_are_named_at_once(write):
    path = write(
        """
        data_dir = "/d"
        [intak]
        linger = 1
        [intake]
        lingr = 1
        linger = "soon"
        buffer_events = true
        overflow = "rais"
        [spool]
        max_bytes = "10 gigs"
        adopt_interval = 61
        [delivery]
        backoff_initial = 0
        refusal_attempts = 1.5
        zebra = 1
        [destinations.a]
        type = "pre"
        [destinations.b]
        typ = "per"
        [destinations.c]
        type = "payment_kit"
        livemode = 1
        [destinations."d d"]
        type = "ledger"
        """
    )
    expected = [
        "data_dir: unknown section; did you mean agent.data_dir?",
        "intak: unknown section; did you mean intake?",
        "intake.lingr: unknown key; did you mean linger?",
        "intake.buffer_events: expected an integer (at least 1 and at most 100000000), found true",
        "intake.linger: expected a number (at least 0 and at most 60), found the string 'soon'",
        """intake.overflow: expected "raise", "block" or "drop_newest", found the string 'rais'""",
        """spool.max_bytes: expected bytes, as an integer or such as "10 GiB", at least 65536, found the string '10 gigs'; units: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB""",
        "spool.adopt_interval: expected a number (above 0 and at most 60), found 61",
        "delivery.zebra: unknown key; expected one of backoff_initial, backoff_max, retry_after_max, probe_interval, refusal_attempts, window_blocks",
        "delivery.backoff_initial: expected a number (above 0 and at most 3600), found 0",
        "delivery.refusal_attempts: expected an integer (at least 1 and at most 1000), found 1.5",
        """destinations.a.type: expected one of "per", "payment_kit", "ledger", "sidecar", found the string 'pre'; did you mean per?""",
        'destinations.b.type: expected one of "per", "payment_kit", "ledger", "sidecar", found nothing',
        "destinations.c.url: is missing; expected a URL such as https://host/path",
        'destinations.c.access_key: is missing; expected { env = "NAME" }, { file = "/path" } or { credential = "name" }',
        "destinations.c.livemode: expected true or false, found 1",
        'destinations."d d": a destination\'s name is up to 64 letters, digits, _ and -',
    ]
    assert problems(path) == [f"{path}: {problem}" for problem in expected]


def test_the_problems_of_the_file_and_of_the_environment_are_named_together(write):
    found = problems(write("[intake]\nlinger = -1\n"), {"PER_AGENT_DATA_DIR": ""})
    assert len(found) == 2
    assert "intake.linger" in found[0]
    assert found[1].startswith("PER_AGENT_DATA_DIR")


@pytest.mark.parametrize("text", ["agent = 5", "[[intake]]", "destinations = []", "[destinations]\nper = 3"])
def test_what_should_be_a_table_and_is_not_is_named(write, text):
    [problem] = problems(write(text))
    assert "expected a table" in problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[agent]\nexit_timeout = \n", "line 2"),
        ("[agent\n", "line 1"),
        ("[agent]\na = 1\na = 2\n", "line 3"),
        ("x = " + "[" * 5000, "is not TOML"),
        ("x = " + "9" * 5000, "is not TOML"),
    ],
)
def test_a_syntax_error_is_named_with_file_and_line(write, text, words):
    path = write(text)
    [problem] = problems(path)
    assert problem.startswith(f"{path}: ")
    assert words in problem


def test_a_file_that_is_not_utf_8_or_not_there_is_named(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes(b'[agent]\ndata_dir = "\xe9"\n')
    assert problems(path) == [f"{path}: is not UTF-8, as TOML must be"]
    missing = tmp_path / "missing.toml"
    assert problems(missing) == [f"{missing}: cannot be read: No such file or directory"]
    assert problems(tmp_path) == [f"{tmp_path}: cannot be read: Is a directory"]


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-0.001", "601", "1" + "0" * 300])
def test_a_number_out_of_range_is_named(write, number):
    [problem] = problems(write(f"[agent]\nexit_timeout = {number}\n"))
    assert "agent.exit_timeout: expected a number (at least 0 and at most 600)" in problem
    assert len(problem) < 300


def test_an_integer_serves_where_a_number_is_wanted_and_becomes_one(write):
    linger = load(write("[intake]\nlinger = 1\n"), HOME).intake.linger
    assert type(linger) is float


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("70000", 70_000),
        ('"70000 B"', 70_000),
        ('"500 MiB"', 500 * 2**20),
        ('"500MiB"', 500 * 2**20),
        ('"1.5 GiB"', 3 * 2**29),
        ('"2 GB"', 2_000_000_000),
        ('"100 kB"', 100_000),
        ('" 1 TiB "', 2**40),
    ],
)
def test_a_size_is_bytes_or_has_a_unit(write, written, size):
    assert load(write(f"[spool]\nmax_bytes = {written}\n"), HOME).spool.max_bytes == size


@pytest.mark.parametrize(
    "written", ['"10"', '"ten GiB"', '"-1 GiB"', '"1e3 GiB"', '"10 gib"', "1.5", "10", '"٣ GiB"']
)
def test_a_size_that_is_unclear_or_too_small_is_refused(write, written):
    [problem] = problems(write(f"[spool]\nmax_bytes = {written}\n"))
    assert "spool.max_bytes: expected bytes" in problem


toml_scalars = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=40),
    st.dates(),
    st.lists(st.integers(), max_size=2),
)
tables = st.recursive(
    toml_scalars,
    lambda inner: st.dictionaries(
        st.one_of(
            st.sampled_from(
                [*SECTIONS, "destinations", "type", "url", "env", "file", "credential", "max_bytes"]
            ),
            st.sampled_from(["per", "ledger", "activity_token", "access_key", "path", "linger", "livemode"]),
            st.text(max_size=5),
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)


# Tables of Unicode's characters are made at first use, which takes a slow machine longer than Hypothesis likes.
@trials(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*SECTIONS, "destinations", "other"]), tables, max_size=5))
def test_whatever_the_tables_hold_they_are_settings_or_named_problems(content):
    reader = Reader(HOME, Path("/nonexistent"), exposed=True)
    parts = reader.read(content)
    if not reader.problems:
        Settings(**parts)
    assert all("\n" not in problem for problem in reader.problems)


# Secrets


def test_a_secret_is_never_shown():
    secret = Secret(TOKEN)
    settings = PerSettings(activity_token=secret)
    for shown in (
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!s:>20}",
        repr(settings),
        repr([settings]),
    ):
        assert TOKEN not in shown
        assert "********" in shown
    assert secret.reveal() == TOKEN


def test_secrets_are_compared_by_what_they_hold():
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1
    assert copy.deepcopy(Secret("a")) == Secret("a")


@pytest.mark.parametrize("text", ["", " ", "a b", "a\n", "\ta", "a\x00b", "töken", "a\u200bb", "a\x7f"])
def test_what_cannot_be_a_token_is_refused_without_being_quoted(text):
    with pytest.raises(ConfigError) as caught:
        Secret(text)
    assert str(caught.value) in {"is empty", "must be printable ASCII without white space, and is not"}


def test_a_secret_comes_from_the_environment_a_file_or_a_credential(write, tmp_path):
    for name, content in (("token", "tok_f\n"), ("key", "key_c")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o400)
    path = write(
        PER
        + 'activity_token = { file = "token" }\nreporting_token = { env = "TOK" }\n'
        + KIT
        + 'access_key = { credential = "key" }\n'
    )
    settings = load(path, {**HOME, "TOK": "tok_e", "CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert settings.destinations == {
        "per": PerSettings(activity_token=Secret("tok_f"), reporting_token=Secret("tok_e")),
        "payment_kit": PaymentKitSettings(url="https://pay.example/app", access_key=Secret("key_c")),
    }
    assert settings.warnings == ()


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_one_newline_at_the_end_of_a_secret_file_is_not_part_of_it(write, tmp_path, ending):
    (tmp_path / "token").write_bytes(b"tok" + ending.encode())
    settings = load(write(PER + 'activity_token = { file = "token" }\n'), HOME)
    assert settings.destinations["per"].activity_token.reveal() == "tok"


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ('{ env = "NOT_SET" }', "the environment variable NOT_SET is not set"),
        ('{ env = "EMPTY" }', "the environment variable EMPTY is empty"),
        ('{ env = "SPACED" }', "the environment variable SPACED must be printable ASCII"),
        ('{ file = "none" }', "/none cannot be read: No such file or directory"),
        ('{ file = "two-lines" }', "/two-lines must be printable ASCII"),
        ('{ file = "binary" }', "/binary must be printable ASCII"),
        ('{ file = "long" }', "/long is longer than 8192 bytes"),
        ('{ file = "" }', "expected a path, found an empty string"),
        ('{ file = "~/x" }', "/home/someone/x cannot be read"),
        ('{ credential = "none" }', "the credential none in"),
        ('{ credential = "../token" }', "a credential's name is a file name"),
        ('{ evn = "X" }', "found a table with evn"),
        ('{ env = "A", file = "B" }', "found a table with env, file"),
        ("{ env = 5 }", "found a table with env"),
        ("{}", "found a table with nothing in it"),
        ("12345678", "found an integer"),
        ('["a"]', "found a list"),
        ('""', "is empty"),
        (f'"{TOKEN} "', "must be printable ASCII"),
    ],
)
def test_a_secret_that_is_not_there_names_its_key_and_its_source_and_never_itself(
    write, tmp_path, written, words
):
    (tmp_path / "two-lines").write_text(f"{TOKEN}\n\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe" + TOKEN.encode())
    (tmp_path / "long").write_text(TOKEN * 1000)
    environ = {**HOME, "EMPTY": "", "SPACED": f"{TOKEN} x", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    [problem] = problems(write(PER + f"activity_token = {written}\n"), environ)
    assert "destinations.per.activity_token: " in problem
    assert words in problem
    assert TOKEN not in problem
    assert "12345678" not in problem


def test_a_credential_outside_of_systemd_says_what_is_missing(write):
    [problem] = problems(write(PER + 'activity_token = { credential = "tok" }\n'))
    assert "$CREDENTIALS_DIRECTORY is not set" in problem
    assert "LoadCredential=" in problem


def test_a_token_on_the_wrong_line_is_not_quoted(write):
    text = PER + f'activity_token = "{TOKEN}"\nurl = "{TOKEN}"\ntimeout = "{TOKEN}"\n'
    found = problems(write(text + f'[intake]\noverflow = "{TOKEN}"\n[delivery]\nwindow_blocks = "{TOKEN}"\n'))
    assert len(found) == 4
    assert all(TOKEN not in problem for problem in found)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_plain_token_is_taken_and_warned_about_where_others_can_read_it(write, mode, warned):
    settings = load(write(PER + f'activity_token = "{TOKEN}"\n', mode), HOME)
    assert settings.destinations["per"].activity_token == Secret(TOKEN)
    assert [("destinations.per.activity_token" in w, TOKEN in w) for w in settings.warnings] == [
        (True, False)
    ] * warned


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o644, True)])
def test_a_secret_file_that_others_can_read_is_warned_about(write, tmp_path, mode, warned):
    (tmp_path / "token").write_text("tok")
    (tmp_path / "token").chmod(mode)
    settings = load(write(PER + 'activity_token = { file = "token" }\n'), HOME)
    assert [str(tmp_path / "token") in warning for warning in settings.warnings] == [True] * warned


# Addresses


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "found nothing"),
        ("pay.example", "no http:// or https://"),
        ("ftp://pay.example", "no http:// or https://"),
        ("https://", "no host"),
        ("https:///path", "no host"),
        ("https://pay.example:port", "Port could not be cast"),
        ("https://pay.example:99999", "Port out of range"),
        ("https://pay.example:0", "no usable port"),
        ("https://[::1", "Invalid IPv6 URL"),
        ("https://me:hunter2@pay.example", "credentials inside"),
        ("https://pay.example/?livemode=true", "a query or a fragment"),
        ("https://pay.example/#x", "a query or a fragment"),
        ("https://pay.example/a b", "white space"),
        ("https://pay.ex\\nample", "white space or control characters"),
    ],
)
def test_an_address_that_is_none_is_named_without_being_quoted(write, url, words):
    text = f'[destinations.k]\ntype = "payment_kit"\naccess_key = "k"\nurl = "{url}"\n'
    [problem] = problems(write(text))
    assert "destinations.k.url: expected a URL such as https://host/path" in problem
    assert words in problem
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("https://pay.example", False),
        ("http://localhost:3030/app", False),
        ("http://pay.localhost", False),
        ("http://127.0.0.2:8080", False),
        ("http://[::1]:8080", False),
        ("http://pay.example", True),
        ("HTTP://10.0.0.1", True),
        ("http://127.evil.example", True),
    ],
)
def test_credentials_in_the_clear_are_warned_about_unless_they_stay_on_this_machine(write, url, warned):
    text = f'[destinations.k]\ntype = "payment_kit"\naccess_key = "k"\nurl = "{url}"\n'
    warnings = load(write(text), HOME).warnings
    assert ["destinations.k.url" in warning for warning in warnings] == [True] * warned
    environ = {**HOME, "PAYMENT_KIT_URL": url, "PAYMENT_KIT_ACCESS_KEY": "k"}
    assert ["PAYMENT_KIT_URL" in warning for warning in load(None, environ).warnings] == [True] * warned


# The sidecar


def test_the_sidecar_s_settings_come_from_the_file(write, tmp_path):
    settings = load(
        write(
            """
            [sidecar]
            unix_socket = "s.sock"
            unix_mode = "0600"
            unix_group = "www-data"
            listen = "[::1]:80"
            hosts = ["sidecar.internal", "10.0.0.1", "[fd00::1]"]
            token = "tok"
            max_body = "1 MiB"
            """
        ),
        HOME,
    )
    assert settings.sidecar == SidecarSettings(
        unix_socket=tmp_path / "s.sock",
        unix_mode="0600",
        unix_group="www-data",
        listen="[::1]:80",
        hosts=("sidecar.internal", "10.0.0.1", "[fd00::1]"),
        token=Secret("tok"),
        max_body=2**20,
    )
    assert settings.sidecar.mode == 0o600
    assert settings.warnings == ()
    assert json.loads(json.dumps(show(settings)))["sidecar"]["hosts"] == list(settings.sidecar.hosts)


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("", None),
        ("127.0.0.1:4737", ("127.0.0.1", 4737)),
        ("127.8.0.1:0", ("127.8.0.1", 0)),
        ("localhost:1", ("localhost", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_what_to_listen_on_is_taken_apart(listen, address):
    assert SidecarSettings(listen=listen).address == address


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("127.0.0.1", "found no port"),
        ("4737", "found no port"),
        (":4737", "found no host"),
        ("127.0.0.1:", "found no usable port"),
        ("127.0.0.1:http", "found no usable port"),
        ("127.0.0.1:65536", "found no usable port"),
        ("127.0.0.1:٣", "found no usable port"),
        ("127.0.0.1:-1", "found no usable port"),
        ("::1:80", "found colons that no [ ] stands around"),
        ("[::1]", "found no port"),
        ("[127.0.0.1]:80", "found a host that is neither a name nor an address"),
        ("127.0.0.256:80", "found a host that is neither a name nor an address"),
        ("http://127.0.0.1:80", "found colons that no [ ] stands around"),
        ("*:80", "found a host that is neither a name nor an address"),
        ("a b:80", "found a host that is neither a name nor an address"),
    ],
)
def test_what_cannot_be_listened_on_is_named(write, listen, words):
    path = write(f'[sidecar]\nlisten = "{listen}"\n')
    expected = """expected "HOST:PORT", "[::1]:PORT", or "" for no TCP"""
    assert problems(path) == [f"{path}: sidecar.listen: {expected}, {words}"]


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.1.2.3", "sidecar.internal", "[fd00::1]"])
def test_what_other_machines_reach_must_be_allowed(write, host):
    [problem] = problems(write(f'[sidecar]\nlisten = "{host}:4737"\n'))
    assert "sidecar.listen: other machines may reach this host" in problem
    assert problem.endswith("listen on 127.0.0.1 or [::1], or set allow_remote = true")
    allowed = load(write(f'[sidecar]\nlisten = "{host}:4737"\nallow_remote = true\n'), HOME)
    assert allowed.sidecar.address == (host.strip("[]"), 4737)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("unix_mode = 660", 'unix_mode: expected octal text such as "0660", found 660'),
        ('unix_mode = "0o660"', "unix_mode: expected octal text such as \"0660\", found the string '0o660'"),
        ('unix_mode = "0668"', "unix_mode: expected octal text such as \"0660\", found the string '0668'"),
        ('unix_mode = "4755"', "unix_mode: expected octal text such as \"0660\", found the string '4755'"),
        ("unix_group = 5", "unix_group: expected a string, found 5"),
        ('unix_group = ""', "unix_group: expected the name of a group, found an empty string"),
        ('hosts = "a"', "hosts: expected a list of strings, found the string 'a'"),
        ('hosts = ["a", 5]', "hosts: expected a list of strings, found 5 as item 2"),
        ("listen = 4737", 'listen: expected "HOST:PORT", "[::1]:PORT", or "" for no TCP, found 4737'),
        ("max_body = 10", 'max_body: expected bytes, as an integer or such as "10 GiB", at least 65536, found 10'),
        ("token = 5", 'token: expected { env = "NAME" }, { file = "/path" } or { credential = "name" }, found an integer'),
        ('log_format = "xml"', """log_format: expected "auto", "console" or "json", found the string 'xml'"""),
        ("idle_timeout = 0", "idle_timeout: expected a number (above 0 and at most 3600), found 0"),
    ],
)  # fmt: skip
def test_a_wrong_setting_of_the_sidecar_is_named_precisely(write, line, problem):
    path = write(f"[sidecar]\n{line}\n")
    assert problems(path) == [f"{path}: sidecar.{problem}"]


@pytest.mark.parametrize("host", ["http://a", "a:80", "a/b", "", "::1", "[x]", "-a", "1.2.3"])
def test_a_host_that_no_client_can_name_is_no_host(host):
    with pytest.raises(ConfigError, match="hosts: item 2 is no host: expected a name or an address"):
        SidecarSettings(hosts=("good.example", host))


def test_a_socket_s_path_is_no_longer_than_the_kernel_takes():
    assert SidecarSettings(unix_socket=Path("/" + "s" * 106)).unix_socket is not None
    with pytest.raises(ConfigError, match=r"unix_socket: is 108 bytes long, and .* at most 107"):
        SidecarSettings(unix_socket=Path("/" + "s" * 107))


def test_the_socket_lies_where_it_is_set_else_in_the_runtime_folder_else_beside_the_data():
    systemd = {**HOME, "RUNTIME_DIRECTORY": "/run/one:/run/two"}
    settings = load(None, {**HOME, "PER_AGENT_DATA_DIR": "/d"})
    assert socket_path(settings, {}) == Path("/d/agent.sock")
    assert socket_path(settings, {"RUNTIME_DIRECTORY": ""}) == Path("/d/agent.sock")
    assert socket_path(settings, systemd) == Path("/run/one/agent.sock")
    assert socket_path(Settings(), HOME) == Path("/home/someone/.local/state/per-agent/agent.sock")
    placed = Settings(sidecar=SidecarSettings(unix_socket=Path("/p.sock")))
    assert socket_path(placed, systemd) == Path("/p.sock")


def test_the_token_lies_beside_the_data():
    assert token_path(load(None, {"PER_AGENT_DATA_DIR": "/d"})) == Path("/d/sidecar.token")
    with pytest.raises(ConfigError, match=r"agent\.data_dir"):
        token_path(Settings())


def test_a_sidecar_as_destination_needs_nothing_but_its_type(write):
    settings = load(write('[destinations.s]\ntype = "sidecar"\n'), HOME)
    assert settings.destinations == {"s": SidecarDestinationSettings()}
    assert settings.warnings == ()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "found nothing"),
        ("/run/agent.sock", "no http:// or https:// in front"),
        ("unix:", "no absolute path after unix:"),
        ("unix:agent.sock", "no absolute path after unix:"),
        ("unix://run/agent.sock", "no absolute path after unix:"),
        ("unix:/" + "s" * 107, "is 108 bytes long"),
        ("ftp://host", "no http:// or https:// in front"),
        ("http://me:hunter2@host", "credentials inside"),
    ],
)
def test_where_no_sidecar_can_be_is_named(write, url, words):
    [problem] = problems(write(f'[destinations.s]\ntype = "sidecar"\nurl = "{url}"\n'))
    assert "destinations.s.url: " in problem
    assert words in problem
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("unix:/run/agent.sock", False),
        ("unix:///run/agent.sock", False),
        ("http://127.0.0.1:4737", False),
        ("https://sidecar.internal", False),
        ("http://sidecar.internal:4737", True),
    ],
)
def test_a_sidecar_on_another_machine_is_allowed_with_a_warning_where_it_is_in_the_clear(write, url, warned):
    settings = load(write(f'[destinations.s]\ntype = "sidecar"\nurl = "{url}"\n'), HOME)
    assert settings.destinations["s"].url == url
    assert ["destinations.s.url" in warning for warning in settings.warnings] == [True] * warned


# The structs


def test_a_section_made_in_code_is_checked_like_one_from_a_file():
    with pytest.raises(ConfigError) as caught:
        IntakeSettings(linger=-1, overflow="drop_oldest", block_events=0)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "linger",
        "block_events",
        "overflow",
    ]
    with pytest.raises(ConfigError, match="activity_token: expected"):
        PerSettings(activity_token=TOKEN)
    assert type(DeliverySettings(probe_interval=3).probe_interval) is float


def test_settings_are_frozen():
    settings = Settings()
    with pytest.raises(AttributeError):
        settings.intake = IntakeSettings()
    with pytest.raises(AttributeError):
        settings.intake.linger = 1.0


def test_a_wait_that_settings_allow_is_one_that_the_backoff_keeps():
    delivery = DeliverySettings()
    assert Backoff() == Backoff(
        initial=delivery.backoff_initial,
        ceiling=delivery.backoff_max,
        retry_after_ceiling=delivery.retry_after_max,
    )
    assert DeliverySettings(retry_after_max=MAX_RETRY_AFTER).retry_after_max == MAX_RETRY_AFTER
    with pytest.raises(ConfigError):
        DeliverySettings(retry_after_max=MAX_RETRY_AFTER + 1)


# Showing


def test_what_is_shown_is_plain_complete_and_without_secrets(write):
    text = PER + f'activity_token = "{TOKEN}"\n' + KIT + f'access_key = "{TOKEN}"\n'
    shown = json.loads(json.dumps(show(load(write(text), HOME))))
    assert TOKEN not in json.dumps(shown)
    assert shown["agent"] == {"data_dir": "/home/someone/.local/state/per-agent", "exit_timeout": 2.0}
    assert shown["spool"]["max_bytes"] == 10 * 2**30
    assert shown["destinations"]["per"] == {
        "type": "per",
        "activity_token": "********",
        "reporting_token": None,
        "url": "https://api.useper.com",
        "timeout": 10.0,
        "concurrency": 64,
    }
    assert set(shown) == {*SECTIONS, "destinations"}


# The example


def switched_on(text):
    """The example with every setting that is off switched on: a "#" without a space behind it taken away."""
    return re.sub(r"^#(?=\S)", "", text, flags=re.MULTILINE)


@pytest.fixture
def everything():
    return tomllib.loads(switched_on(example()))


def fields_of_the_example(everything):
    for name, kind in SECTIONS.items():
        yield name, kind, everything[name]
    for tag, kind in DESTINATIONS.items():
        [table] = (table for table in everything["destinations"].values() if table["type"] == tag)
        yield f"destinations.{tag}", kind, {key: value for key, value in table.items() if key != "type"}


def test_the_wheel_carries_the_example_of_the_checkout():
    top = Path(__file__).parents[1]
    build = tomllib.loads((top / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["force-include"] == {"config.example.toml": "per_agent/config.example.toml"}
    assert example() == (top / "config.example.toml").read_text()


def test_the_example_as_it_stands_is_the_defaults(write):
    assert load(write(example(), 0o644), HOME) == load(None, HOME)


def test_the_example_has_every_setting_and_no_other(everything):
    assert set(everything) == {*SECTIONS, "destinations"}
    for _name, kind, table in fields_of_the_example(everything):
        assert list(table) == list(kind.__struct_fields__)


def test_every_default_in_the_example_is_the_one_in_the_code(write, everything):
    environ = {
        **HOME,
        "PER_ACTIVITY_TOKEN": "a",
        "PER_REPORTING_TOKEN": "r",
        "PER_AGENT_SIDECAR_TOKEN": "s",
    }
    path = write(switched_on(example()))
    credentials = path.parent / "credentials"
    credentials.mkdir()
    (credentials / "payment-kit-access-key").write_text("key")
    (credentials / "sidecar-token").write_text("key")
    settings = load(path, {**environ, "CREDENTIALS_DIRECTORY": str(credentials)})
    assert settings.warnings == ()
    assert settings.destinations["sidecar"].token == Secret("s")
    made = {name: getattr(settings, name) for name in SECTIONS}
    made |= {f"destinations.{name}": made for name, made in settings.destinations.items()}
    compared = 0
    for name, kind, _table in fields_of_the_example(everything):
        for field in msgspec.structs.fields(kind):
            if field.required or field.default is None:
                continue  # there is no default to write down: what stands there is an example
            assert getattr(made[name], field.name) == field.default, f"{name}.{field.name}"
            compared += 1
    assert compared == 36


def test_every_setting_in_the_example_has_a_line_of_why_right_above_it():
    lines = example().splitlines()
    for above, line in itertools.pairwise(lines):
        if re.match(r"#?[a-z_]+ = ", line) and not re.match(r"#?type = ", line):
            assert above.startswith("# "), line


def test_every_setting_is_documented_in_its_struct():
    for kind in (*SECTIONS.values(), *DESTINATIONS.values()):
        for name in kind.__struct_fields__:
            assert re.search(rf"^\s*{name}: ", kind.__doc__, flags=re.MULTILINE), f"{kind.__name__}.{name}"


def test_the_defaults_are_the_documented_ones():
    assert IntakeSettings() == IntakeSettings(
        buffer_events=100_000, linger=0.05, block_events=500, overflow="raise"
    )
    assert SpoolSettings() == SpoolSettings(max_bytes=10_737_418_240, adopt_interval=30.0)
