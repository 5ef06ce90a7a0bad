"""The real dashboard process with a real broker: what stations say is there, whatever is killed meanwhile."""

import io
import json
import signal
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from paho.mqtt.client import MQTTv311

from station.messages import Feedback, Status
from tests.support.dashboard import (
    PASSWORD,
    DashboardProcess,
    SpokenStation,
    Visitor,
    alert_message,
    health_message,
    info_message,
    picture,
)
from tests.support.mill import run_mill
from tests.support.mosquitto import Mosquitto, Subscriber

pytestmark = pytest.mark.e2e

PATH = "mill/3/left"
OPERATED = "operators = ['ann']"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mosquitto, DashboardProcess]]:
    """For all tests that kill neither: each has a station of its own."""
    folder = tmp_path_factory.mktemp("dashboard")
    with (
        Mosquitto(folder) as broker,
        DashboardProcess(folder, broker.port, OPERATED, users=("ann", "bob")) as dashboard,
    ):
        Visitor(dashboard).wait_for("/api/me", lambda me: me["broker"]["connected"])
        yield broker, dashboard


@pytest.fixture
def visitor(shared: tuple[Mosquitto, DashboardProcess]) -> Visitor:
    return Visitor(shared[1])


@pytest.fixture
def path(request: pytest.FixtureRequest) -> str:
    """Of this test's own station."""
    return f"mill/3/{request.node.name[:60]}"


@pytest.fixture
def spoken(shared: tuple[Mosquitto, DashboardProcess], visitor: Visitor, path: str) -> Iterator[SpokenStation]:
    with _spoken(shared[0], visitor, path) as spoken:
        yield spoken


@contextmanager
def _spoken(broker: Mosquitto, visitor: Visitor, path: str) -> Iterator[SpokenStation]:
    visitor.wait_for("/api/me", lambda me: me["broker"]["connected"])
    with SpokenStation(broker.port, path) as spoken:
        visitor.wait_for(f"/api/stations/{path}", lambda view: view["state"] == "online")
        yield spoken


def test_a_station_as_it_is_now(spoken: SpokenStation, visitor: Visitor, path: str) -> None:
    spoken.say(info_message())
    spoken.say(health_message(reasons=["scores-drift: higher than at calibration"]))
    for score in (20.0, 61.5, 25.0):
        spoken.score(score)
    spoken.alert("a1")
    view = visitor.wait_for(
        f"/api/stations/{path}", lambda view: view["picture"] and view["score"] and view["score"]["score"] == 25.0
    )
    assert (view["site"], view["line"], view["name"]) == tuple(path.split("/"))
    assert view["reasons"] == ["scores-drift: higher than at calibration"]  # no reason to call it degraded
    assert (view["score"]["threshold"], view["score"]["anomalous"], view["score"]["latency_ms"]) == (40.0, False, 12.5)
    assert view["info"]["bundle_name"] == "toy"
    assert view["health"]["drift"]["state"] == "stable"
    assert view["fps"] > 0
    assert view["alerts_24h"] == 1
    assert [alert["id"] for alert in view["open_alerts"]] == ["a1"]
    assert view["picture"]["kind"] == "alert"
    assert max(score for _, score in view["spark"] if score is not None) == 61.5
    assert len(view["spark"]) == 60
    shown = visitor.get(view["picture"]["url"])
    assert (shown.headers["content-type"], shown.body) == ("image/jpeg", picture(len("a1") + 5))
    chart = visitor.get(f"/api/stations/{path}/scores?minutes=10").json
    assert max(score for score in chart["max"] if score is not None) == 61.5
    assert [alert["id"] for alert in chart["alerts"]] == ["a1"]
    assert visitor.get(f"/api/stations/{path}/recent-scores").json == {"scores": [20.0, 61.5, 25.0], "threshold": 40.0}
    assert path in [station["path"] for station in visitor.get("/api/stations").json["stations"]]


def test_an_alert_with_its_pictures(spoken: SpokenStation, visitor: Visitor, path: str) -> None:
    spoken.alert("a1", patches=[{"x": 0, "y": 0, "w": 16, "h": 16, "score": 60.0}])
    spoken.alert("a1", "close", peak_score=70.0)
    spoken.alert("a1")  # delivered again: a closed alert stays closed
    alert = visitor.wait_for(f"/api/alerts/{path}/a1", lambda alert: alert["frame_url"])
    assert (alert["state"], alert["peak_score"], alert["url"]) == ("closed", 70.0, f"/alerts/{path}/a1")
    assert alert["patches"] == [{"x": 0, "y": 0, "w": 16, "h": 16, "score": 60.0}]  # `close` did not tell them again
    image, frame = visitor.get(alert["image_url"]), visitor.get(alert["frame_url"])
    assert (image.headers["content-type"], frame.headers["content-type"]) == ("image/jpeg", "image/png")
    assert image.headers["cache-control"] == "private, no-cache"
    assert visitor.get(alert["image_url"], If_None_Match=image.headers["etag"]).status == 304
    for number in range(2, 6):
        spoken.alert(f"b{number}", with_picture=False)
    query = f"/api/alerts?station={path}"
    visitor.wait_for(query, lambda page: len(page["alerts"]) == 5)
    assert [a["id"] for a in visitor.get(f"{query}&state=closed").json["alerts"]] == ["a1"]
    first = visitor.get(f"{query}&limit=3").json
    second = visitor.get(f"{query}&limit=3&before={first['next']}").json
    assert [a["id"] for a in first["alerts"] + second["alerts"]] == ["b5", "b4", "b3", "b2", "a1"]
    assert second["next"] is None


def test_events_come_as_things_happen(spoken: SpokenStation, visitor: Visitor, path: str) -> None:
    with visitor.events() as events:
        spoken.alert("a1")
        spoken.score(61.0)
        spoken.score(61.0)
        seen: dict[str, object] = {}
        for name, data in events:
            if name == "alert" and data["image_url"]:
                seen["picture"] = data["id"]
            if name == "station" and data["score"] and data["open_alerts"] and "info" not in data:  # unchanged
                seen["station"] = data["score"]["score"]
            if len(seen) == 2:
                break
            if name == "station":
                spoken.score(61.0)
        assert seen == {"picture": "a1", "station": 61.0}
        spoken.put("status", b"", retain=True)  # taken out of service
        assert next(data for name, data in events if name == "removed") == {"path": path}
    assert visitor.get(f"/api/stations/{path}").status == 404


def test_a_station_that_vanishes_is_offline(spoken: SpokenStation, visitor: Visitor, path: str) -> None:
    spoken.vanish()
    view = visitor.wait_for(f"/api/stations/{path}", lambda view: view["state"] == "offline")
    assert view["since"] is not None


def test_commands_reach_the_station_and_its_answer_the_browser(
    spoken: SpokenStation, visitor: Visitor, path: str
) -> None:
    visitor.log_in("ann")
    answer = visitor.post(f"/api/stations/{path}/commands/set-threshold", {"threshold": 45.5})
    assert (answer.status, answer.json) == (200, {"ok": True, "error": None, "result": {"threshold": 45.5}})
    [(verb, command)] = spoken.commands
    assert (verb, command["by"], command["threshold"]) == ("set-threshold", "ann", 45.5)
    assert command["expires_at"] > "2024"
    assert visitor.post(f"/api/stations/{path}/commands/reboot").status == 404
    assert visitor.post(f"/api/stations/{path}/commands/pause", {"threshold": 1}).status == 422
    assert visitor.post("/api/stations/mill/3/right/commands/pause").status == 404
    assert len(spoken.commands) == 1


def test_with_mqtt_3_commands_are_told_apart_by_id(tmp_path: Path, broker: Mosquitto) -> None:
    with (
        DashboardProcess(tmp_path, broker.port, "operators = ['ann']", ("ann",), 'protocol = "3.1.1"') as dashboard,
        SpokenStation(broker.port, PATH, protocol=MQTTv311),
    ):
        visitor = Visitor(dashboard)
        visitor.wait_for(f"/api/stations/{PATH}", lambda view: view["state"] == "online")
        visitor.log_in("ann")
        assert visitor.post(f"/api/stations/{PATH}/commands/pause").json["ok"] is True


def test_who_may_not_act(spoken: SpokenStation, visitor: Visitor, path: str) -> None:
    spoken.alert("a1")
    visitor.wait_for(f"/api/alerts/{path}/a1", bool)
    pause, judge = f"/api/stations/{path}/commands/pause", f"/api/alerts/{path}/a1/feedback"
    verdict = {"verdict": "confirmed", "note": ""}
    assert visitor.post(pause).status == 403  # no token
    visitor.csrf = visitor.get("/api/me").json["csrf"]
    assert visitor.post(pause).status == 403  # nobody
    assert visitor.log_in("ann", "wrong horse").status == 401
    assert visitor.log_in("bob").json["may_act"] is False
    for action, body in ((pause, None), (judge, verdict)):
        assert visitor.post(action, body).json["error"] == "not-allowed: only operators may do that"
    assert visitor.get("/api/export.zip").status == 403
    visitor.log_in("ann")
    assert visitor.post(pause, Sec_Fetch_Site="cross-site").status == 403
    assert visitor.post(pause, Origin="http://evil.example").status == 403
    token, visitor.csrf = visitor.csrf, "0" * 64
    assert visitor.post(pause).status == 403
    visitor.csrf = token
    visitor.cookie = ""
    assert visitor.post(pause).status == 403
    assert spoken.commands == []


def test_the_session_s_cookie_is_out_of_reach_of_scripts_and_other_sites(visitor: Visitor) -> None:
    cookie = visitor.log_in("ann").headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "Secure" not in cookie  # the test speaks plain HTTP
    behind_tls = Visitor(visitor._dashboard)
    behind_tls.csrf = behind_tls.get("/api/me").json["csrf"]
    body = {"user": "ann", "password": "correct horse"}
    assert "Secure" in behind_tls.post("/api/login", body, X_Forwarded_Proto="https").headers["set-cookie"]
    assert visitor.get("/api/me").json["user"] == "ann"
    visitor.post("/api/logout")
    assert visitor.get("/api/me").json["user"] is None


def test_every_answer_is_strict(visitor: Visitor, spoken: SpokenStation, path: str) -> None:
    for address in (
        "/",
        "/api/me",
        "/api/stations",
        "/api/nothing",
        f"/api/stations/{path}/picture",
        "/static/nothing",
    ):
        answer = visitor.get(address)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy, address
        assert "unsafe" not in policy, address
        assert answer.headers["x-content-type-options"] == "nosniff", address
    assert visitor.get("/api/nothing").json["error"].startswith("not-found: ")
    assert visitor.get("/api/me").headers["cache-control"] == "no-store"
    assert visitor.get("/api/me", Host="evil.example").status == 421  # a foreign name that points here
    assert visitor.post("/api/login", {"user": "a", "password": "x" * 20_000}).status in (403, 413)
    assert visitor.get("/healthz").body == b"ok\n"
    for address in (
        "/api/alerts?limit=0",
        "/api/alerts?before=x",
        "/api/alerts?state=no",
        "/api/alerts?limit=nan",
        "/api/alerts?before=nan_1",
        f"/api/alerts?before=1_{10**30}",
    ):
        assert visitor.get(address).status == 422, address
    assert visitor.get("/api/stations/..%2f../x/y").status == 404
    assert visitor.get("/static/..%2fapp.py").status == 404


def test_what_is_said_of_alerts_is_published_kept_and_exported(
    spoken: SpokenStation, visitor: Visitor, path: str, shared: tuple[Mosquitto, DashboardProcess]
) -> None:
    broker, dashboard = shared
    visitor.log_in("ann")
    for id_ in ("a1", "b22"):
        spoken.alert(id_)
        spoken.alert(id_, "close")
        visitor.wait_for(f"/api/alerts/{path}/{id_}", lambda alert: alert["frame_url"])
    with Subscriber(broker.port) as subscriber:
        said = visitor.post(f"/api/alerts/{path}/a1/feedback", {"verdict": "confirmed", "note": "a scratch"})
        assert (said.status, said.json["feedback"]["by"], said.json["feedback"]["note"]) == (200, "ann", "a scratch")
        assert visitor.post(f"/api/alerts/{path}/a1/feedback", {"verdict": "perhaps"}).status == 422
        assert visitor.post(f"/api/alerts/{path}/none/feedback", {"verdict": "confirmed"}).status == 404
        visitor.post(f"/api/alerts/{path}/b22/feedback", {"verdict": "false-alarm", "note": ""})
        subscriber.wait_for(lambda _: len(subscriber.on("/feedback")) == 2)
    heard = [Feedback.model_validate_json(payload) for payload in subscriber.on("/feedback")]
    assert [(f.alert, f.verdict, f.by, f.note) for f in heard] == [
        ("a1", "confirmed", "ann", "a scratch"),
        ("b22", "false-alarm", "ann", ""),
    ]
    visitor.wait_for(f"/api/alerts/{path}/b22", lambda alert: alert["feedback"]["published"])
    assert [a["id"] for a in visitor.get(f"/api/alerts?verdict=false-alarm&station={path}").json["alerts"]] == ["b22"]
    with zipfile.ZipFile(io.BytesIO(visitor.get(f"/api/export.zip?station={path}").body)) as exported:
        assert sorted(exported.namelist()) == ["defect/a1.png", "feedback.jsonl", "good/b22.png"]
        lines = [json.loads(line) for line in exported.read("feedback.jsonl").splitlines()]
    assert {(line["file"], line["station"]) for line in lines} == {("good/b22.png", path), ("defect/a1.png", path)}
    while list((dashboard.folder / "dashboard-state").glob("export-*")):  # removed once it is sent
        time.sleep(0.05)
    # Somebody else says so elsewhere; the last one counts.
    spoken.say(Feedback(alert="a1", verdict="withdrawn", by="mes"))
    visitor.wait_for(f"/api/alerts/{path}/a1", lambda alert: alert["feedback"] is None)


@pytest.fixture
def mortal(tmp_path: Path, broker: Mosquitto) -> Iterator[tuple[Mosquitto, DashboardProcess, Visitor, SpokenStation]]:
    """A broker and a dashboard of the test's own, with one station: ``PATH``."""
    with DashboardProcess(tmp_path, broker.port, OPERATED, users=("ann",)) as dashboard:
        visitor = Visitor(dashboard)
        with _spoken(broker, visitor, PATH) as spoken:
            yield broker, dashboard, visitor, spoken


Mortal = tuple[Mosquitto, DashboardProcess, Visitor, SpokenStation]


def test_what_comes_while_the_dashboard_is_killed_is_there_afterwards(mortal: Mortal) -> None:
    _, dashboard, visitor, spoken = mortal
    visitor.log_in("ann")
    spoken.alert("a1")
    visitor.wait_for(f"/api/alerts/{PATH}/a1", lambda alert: alert["image_url"])
    visitor.post(f"/api/alerts/{PATH}/a1/feedback", {"verdict": "confirmed", "note": "kept"})
    dashboard.kill()
    spoken.alert("a1", "close")
    spoken.alert("b1")
    spoken.alert("b1", "update", peak_score=80.0)
    dashboard.start()
    visitor.wait_for(f"/api/alerts/{PATH}/b1", lambda alert: alert["image_url"] and alert["peak_score"] == 80.0)
    closed = visitor.get(f"/api/alerts/{PATH}/a1").json
    assert (closed["state"], closed["feedback"]["note"]) == ("closed", "kept")
    assert visitor.get(closed["frame_url"]).status == 200
    view = visitor.wait_for(f"/api/stations/{PATH}", lambda view: view["state"] == "online")
    assert [alert["id"] for alert in view["open_alerts"]] == ["b1"]
    assert view["alerts_24h"] == 2
    assert visitor.get("/api/me").json["user"] == "ann"  # the session outlives it, too
    assert dashboard.stop() == 0


def test_the_broker_killed_and_started_again(mortal: Mortal) -> None:
    broker, _, visitor, spoken = mortal
    visitor.log_in("ann")
    spoken.alert("a1")
    visitor.wait_for(f"/api/alerts/{PATH}/a1", lambda alert: alert["image_url"])
    with visitor.events() as events:
        broker.kill()
        assert next(data for name, data in events if name == "me")["broker"]["connected"] is False
        view = visitor.station(PATH)
        assert view["state"] == "unknown"  # nobody knows
        assert view["reasons"][0].startswith("broker-away: ")
        assert visitor.post(f"/api/stations/{PATH}/commands/pause").status == 503
        # What is said meanwhile is kept, and published once the broker is back.
        assert visitor.post(f"/api/alerts/{PATH}/a1/feedback", {"verdict": "confirmed", "note": ""}).status == 200
        assert visitor.get(f"/api/alerts/{PATH}/a1").json["feedback"]["published"] is False
        broker.start()
        assert next(data for name, data in events if name == "me" and data["broker"]["connected"])
        visitor.wait_for(f"/api/stations/{PATH}", lambda view: view["state"] == "online")
        visitor.wait_for(f"/api/alerts/{PATH}/a1", lambda alert: alert["feedback"]["published"])
        spoken.alert("b1")
        assert next(data for name, data in events if name == "alert" and data["id"] == "b1" and data["image_url"])


def test_pictures_are_asked_for_only_while_somebody_looks(spoken: SpokenStation, visitor: Visitor, path: str) -> None:
    spoken.score()
    visitor.wait_for(f"/api/stations/{path}", lambda view: view["score"])
    assert spoken.commands == []
    assert visitor.post(f"/api/stations/{path}/watching").status == 403  # not by another page
    visitor.csrf = visitor.get("/api/me").json["csrf"]
    assert visitor.post(f"/api/stations/{path}/watching").status == 204
    view = visitor.wait_for(f"/api/stations/{path}", lambda view: view["picture"])
    assert view["picture"]["kind"] == "snapshot"
    assert visitor.get(view["picture"]["url"]).body == picture(200)
    assert [(verb, command["by"]) for verb, command in spoken.commands] == [("snapshot", "dashboard")]


def test_hidden_from_who_has_not_logged_in(tmp_path: Path, broker: Mosquitto) -> None:
    with DashboardProcess(tmp_path, broker.port, "public = false", ("ann",)) as dashboard:
        visitor = Visitor(dashboard)
        for path in ("/api/stations", "/api/events", "/api/alerts", f"/api/alerts/{PATH}/a/image", "/api/export.zip"):
            assert visitor.get(path).status == 401, path
        me = visitor.get("/api/me").json
        assert (me["may_look"], me["broker"]["where"], me["version"]) == (False, "", "")
        visitor.log_in("ann")
        assert visitor.get("/api/stations").status == 200


def test_the_proxy_s_word_and_nobody_else_s(tmp_path: Path, broker: Mosquitto) -> None:
    section = "user_header = 'X-Remote-User'\noperators = ['ann']"
    with DashboardProcess(tmp_path, broker.port, section) as dashboard:
        visitor = Visitor(dashboard)
        assert visitor.get("/api/me", X_Remote_User="ann").json["may_act"] is True
        assert visitor.get("/api/me", X_Remote_User="eve").json["may_act"] is False
        assert visitor.get("/api/me").json["user"] is None


def test_nothing_that_anybody_publishes_stops_it(spoken: SpokenStation, visitor: Visitor, path: str) -> None:
    big = json.dumps({"reasons": ["x" * 70_000]}).encode()
    for suffix in (
        "status",
        "info",
        "score",
        "health",
        "alert",
        "feedback",
        "reply/x",
        "alert/a/image",
        "alert/a/frame",
    ):
        for payload in (b"\xff\xfe", b"{", b"[]", b"null", b"1" * 5000, b"[" * 5000, b'{"schema": "x"}', big):
            spoken.put(suffix, payload)
    spoken.put("alert/../image", picture())
    spoken.put("alert/nothing-known/image", picture())
    odd = Status(state="online", session="s", reasons=("<img src=x onerror=alert(1)>",))
    spoken.say(odd)
    late = alert_message("z9", opened_at="9999-12-31T23:59:59Z", first_frame=10**30, last_frame=10**30)
    spoken.say(late)
    view = visitor.wait_for(f"/api/stations/{path}", lambda view: view["open_alerts"])
    assert view["reasons"] == ["<img src=x onerror=alert(1)>"]  # as told; the page writes it as text
    visitor.wait_for(f"/api/alerts/{path}/z9", lambda alert: alert["first_frame"] == 10**30)
    spoken.score(30.0)
    visitor.wait_for(f"/api/stations/{path}", lambda view: view["score"])
    log = visitor._dashboard.log
    assert "Traceback" not in log
    assert log.count("messages are left out") < 60


def test_a_real_station_obeys_and_when_killed_is_offline(tmp_path: Path) -> None:
    (tmp_path / "mill").mkdir()
    with (
        run_mill(tmp_path / "mill") as mill,
        DashboardProcess(tmp_path, mill.broker.port, OPERATED, users=("ann",)) as dashboard,
    ):
        visitor = Visitor(dashboard)
        visitor.log_in("ann")
        view = visitor.wait_for(f"/api/stations/{PATH}", lambda view: view["state"] == "online" and view["health"])
        assert view["info"]["bundle_name"] == "toy"
        done = visitor.post(f"/api/stations/{PATH}/commands/set-threshold", {"threshold": 44.5})
        assert done.json == {"ok": True, "error": None, "result": {"threshold": 44.5, "was": 40.0}}
        assert mill.desk.next_score().threshold == 44.5
        refused = visitor.post(f"/api/stations/{PATH}/commands/set-threshold", {"threshold": 2e9})
        assert refused.status == 422
        mill.line.defective = True
        alerted = visitor.wait_for(f"/api/stations/{PATH}", lambda view: view["open_alerts"] and view["picture"])
        alert = alerted["open_alerts"][0]
        mill.line.defective = False
        closed = visitor.wait_for(f"/api/alerts/{PATH}/{alert['id']}", lambda alert: alert["frame_url"])
        assert closed["patches"][0]["score"] == pytest.approx(closed["peak_score"], rel=1e-3)
        snapshot = visitor.post(f"/api/stations/{PATH}/commands/snapshot").json
        assert snapshot["result"]["threshold"] == 44.5
        mill.station.signal(signal.SIGKILL)
        visitor.wait_for(f"/api/stations/{PATH}", lambda view: view["state"] == "offline")
        assert visitor.post(f"/api/stations/{PATH}/commands/pause").json["error"].startswith("offline: ")


def test_a_broker_that_lets_it_only_read(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("user dash\ntopic read station/v1/#\nuser plant\ntopic readwrite #\n")
    users = {"dash": "Secret-1", "plant": "Secret-2"}
    mqtt = 'username = "dash"\npassword = "Secret-1"'
    with (
        Mosquitto(tmp_path, [f"acl_file {tmp_path / 'acl'}"], users) as broker,
        DashboardProcess(tmp_path, broker.port, OPERATED, ("ann",), mqtt) as dashboard,
        SpokenStation(broker.port, PATH, login=("plant", "Secret-2")) as spoken,
    ):
        visitor = Visitor(dashboard)
        visitor.log_in("ann", "Wrong-7-secret")
        visitor.log_in("ann")
        visitor.wait_for(f"/api/stations/{PATH}", lambda view: view["state"] == "online")
        spoken.alert("a1")
        visitor.wait_for(f"/api/alerts/{PATH}/a1", bool)
        refused = visitor.post(f"/api/stations/{PATH}/commands/pause")
        assert refused.json["error"].startswith("broker-refuses: ")
        said = visitor.post(f"/api/alerts/{PATH}/a1/feedback", {"verdict": "confirmed", "note": ""})
        assert said.json["feedback"]["published"] is False  # kept all the same
        me = visitor.wait_for("/api/me", lambda me: me["broker"]["trouble"])
        assert "access list" in me["broker"]["trouble"]
        pages = b"".join(visitor.get(path).body for path in ("/", "/api/me", "/api/stations", "/api/nothing"))
        for secret in ("Secret-1", "Wrong-7-secret", PASSWORD):  # nowhere to be seen
            assert secret not in dashboard.log
            assert secret.encode() not in pages


def test_other_settings_end_the_subscriptions_of_those_before(mortal: Mortal) -> None:
    broker, dashboard, visitor, _ = mortal
    dashboard.stop()
    with dashboard.config.open("a") as config:
        config.write("stations = ['press/+/left']\n")
    broker.forget_log()
    with SpokenStation(broker.port, "press/1/left"), SpokenStation(broker.port, "press/1/right"):
        dashboard.start()
        found = visitor.wait_for("/api/stations", lambda found: found["stations"])
    assert [view["path"] for view in found["stations"]] == ["press/1/left"]
    log = broker.log
    assert "Received UNSUBSCRIBE from station-dashboard" in log
    assert "station/v1/+/+/+/alert" in log
