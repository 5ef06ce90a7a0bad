"""Who may look and who may act."""

import pytest
from starlette.requests import Request

from station.dashboard import DashboardError
from station.dashboard.access import COOKIE, Access, RefusedError, Throttle, Users
from station.settings import DashboardSection, SettingsError
from tests.support.dashboard import quick_hashes


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("station.dashboard.access.PasswordHasher", quick_hashes)


@pytest.fixture
def section(tmp_path):
    Users(tmp_path / "users").set("ann", "correct horse")
    return DashboardSection(users_file=tmp_path / "users", operators=["ann"], state=tmp_path / "state")


def request(peer="127.0.0.1", scheme="http", **headers):
    told = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "scheme": scheme,
        "server": ("127.0.0.1", 8080),
        "client": (peer, 1),
        "headers": told,
    }
    return Request(scope)


def test_passwords_are_kept_as_hashes_for_their_owner_alone(tmp_path):
    users = Users(tmp_path / "users")
    users.set("ann", "correct horse")
    users.set("bob", "battery staple")
    text = (tmp_path / "users").read_text()
    assert [line.partition(":")[0] for line in text.splitlines()] == ["ann", "bob"]
    assert "$argon2id$" in text
    assert "horse" not in text
    assert (tmp_path / "users").stat().st_mode & 0o077 == 0
    assert users.verify("ann", "correct horse")
    assert not users.verify("ann", "battery staple")
    assert not users.verify("eve", "correct horse")
    (tmp_path / "users").chmod(0o640)  # the service reads it by its group
    users.set("ann", "another horse")
    assert (tmp_path / "users").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(("user", "password"), [("", "long enough"), ("a:b", "long enough"), ("ann", "short")])
def test_names_and_passwords_that_do_not_do(tmp_path, user, password):
    with pytest.raises(DashboardError):
        Users(tmp_path / "users").set(user, password)


def test_a_users_file_that_is_none_is_told_with_its_line(tmp_path):
    (tmp_path / "users").write_text("# people\n\nann:correct horse\n")
    with pytest.raises(SettingsError, match="line 3"):
        Users(tmp_path / "users")


def test_a_session_ends_with_the_password(section):
    access = Access(section)
    cookie = access.log_in("ann", "correct horse", "192.0.2.9")
    assert access.viewer(request(cookie=f"{COOKIE}={cookie}")).may_act
    assert Access(section).viewer(request(cookie=f"{COOKIE}={cookie}")).user == "ann"  # restarted
    assert access.viewer(request(cookie=f"{COOKIE}=x{cookie[1:]}")).user is None
    Users(section.users_file).set("ann", "another horse")
    assert access.viewer(request(cookie=f"{COOKIE}={cookie}")).user is None


def test_a_session_ends_with_the_shift(section, monkeypatch):
    access = Access(section)
    cookie = access.log_in("ann", "correct horse", "192.0.2.9")
    monkeypatch.setattr("station.dashboard.access.SESSION_SECONDS", -1)
    assert access.viewer(request(cookie=f"{COOKIE}={cookie}")).user is None


def test_tokens_are_the_session_s_own(section):
    access = Access(section)
    cookies = [access.log_in("ann", "correct horse", "192.0.2.9") for _ in range(2)]
    viewers = [access.viewer(request(cookie=f"{COOKIE}={cookie}")) for cookie in cookies]
    nobody = access.viewer(request())
    assert len({access.token(viewer) for viewer in (*viewers, nobody)}) == 3
    access.demand_own_page(request(x_csrf_token=access.token(viewers[0])), viewers[0])
    with pytest.raises(RefusedError):
        access.demand_own_page(request(x_csrf_token=access.token(nobody)), viewers[0])


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({}, True),
        ({"sec_fetch_site": "same-origin"}, True),
        ({"sec_fetch_site": "cross-site"}, False),
        ({"sec_fetch_site": "none"}, False),
        ({"origin": "http://line.example:8080", "host": "line.example:8080"}, True),
        ({"origin": "http://line.example:8081", "host": "line.example:8080"}, False),
        ({"origin": "null", "host": "line.example"}, False),
    ],
    ids=["neither", "same-origin", "cross-site", "typed", "own origin", "other port", "null"],
)
def test_other_pages_are_refused(section, headers, own):
    access = Access(section)
    viewer = access.viewer(request())
    asked = request(x_csrf_token=access.token(viewer), **headers)
    if own:
        access.demand_own_page(asked, viewer)
    else:
        with pytest.raises(RefusedError, match="csrf"):
            access.demand_own_page(asked, viewer)


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("192.0.2.7", True),
        ("localhost:8080", True),
        ("box-7", True),
        ("box-7.local", True),
        ("line.example", True),
        ("LINE.example.", True),
        ("evil.example", False),
        ("line.example.evil", False),
        ("", False),
        ("[::1", False),
    ],
)
def test_foreign_names_are_refused(section, host, known):
    access = Access(section.model_copy(update={"hosts": ("line.example",)}))
    if known:
        access.demand_known_host(request(host=host))
    else:
        with pytest.raises(RefusedError, match=r"dashboard\.hosts"):
            access.demand_known_host(request(host=host))


def test_a_proxy_names_the_user(tmp_path):
    section = DashboardSection(user_header="X-Remote-User", operators=["ann"], state=tmp_path)
    access = Access(section)
    assert access.viewer(request(x_remote_user="ann")).may_act
    assert access.viewer(request(peer="::1", x_remote_user="ann")).may_act
    assert access.viewer(request(peer="192.0.2.9", x_remote_user="ann")).user is None
    assert access.viewer(request(x_remote_user=" ")).user is None
    twice = request(x_remote_user="ann")
    twice.scope["headers"].append((b"x-remote-user", b"eve"))
    assert access.viewer(twice).user is None  # one of them is the browser's own
    assert access.address(request(x_forwarded_for="203.0.113.1, 192.0.2.9")) == "192.0.2.9"
    assert access.address(request(peer="192.0.2.1", x_forwarded_for="203.0.113.1")) == "192.0.2.1"
    assert access.is_secure(request(x_forwarded_proto="https"))
    assert not access.is_secure(request(peer="192.0.2.1", x_forwarded_proto="https"))


def test_wrong_passwords_cost_time(section):
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    for _ in range(5):
        throttle.demand("user ann")
        throttle.failed("user ann")
    with pytest.raises(RefusedError) as refused:
        throttle.demand("user ann")
    assert refused.value.status == 429
    assert refused.value.retry_after == 5
    throttle.demand("user bob")
    now[0] = 6
    throttle.demand("user ann")
    throttle.failed("user ann")
    now[0] = 11
    with pytest.raises(RefusedError):
        throttle.demand("user ann")  # ten seconds now
    throttle.succeeded("user ann")
    throttle.demand("user ann")


def test_the_right_password_does_not_help_who_has_to_wait(section):
    access = Access(section)
    for _ in range(5):
        with pytest.raises(RefusedError, match="wrong"):
            access.log_in("ann", "guess", "192.0.2.9")
    with pytest.raises(RefusedError, match="wait"):
        access.log_in("ann", "correct horse", "192.0.2.10")  # the user's count, from another address


def test_operators_that_cannot_log_in_are_an_error(tmp_path):
    with pytest.raises(SettingsError, match="nobody can log in"):
        Access(DashboardSection(operators=["ann"], state=tmp_path))
    with pytest.raises(SettingsError, match=r"dashboard\.public"):
        Access(DashboardSection(public=False, state=tmp_path))


def test_the_key_is_the_owner_s_alone(section):
    Access(section)
    assert (section.state_folder / "session-key").stat().st_mode & 0o077 == 0
