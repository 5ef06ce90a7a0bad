"""No way in: the broker of deploy/mosquitto against clients that try what they must not."""

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typing_extensions import Self

from tests.faults.conftest import Fault
from tests.support.mosquitto import HOST
from tests.support.secure_broker import OTHER, PASSWORDS, STATION, Client, SecureBroker, make_certificates, make_expired

pytestmark = pytest.mark.e2e
PREFIX = "station/v1"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[SecureBroker]:
    with SecureBroker(tmp_path) as broker:
        yield broker


@pytest.fixture
def dashboard(broker: SecureBroker) -> Iterator[Client]:
    with person(broker, "dashboard") as dashboard:
        assert dashboard.subscribe("#") == "Granted QoS 1"
        yield dashboard


def person(broker: SecureBroker, name: str) -> Client:
    return Client(broker.password_port, broker.ca, login=(name, PASSWORDS[name]))


def station(broker: SecureBroker, name: str = STATION, **more: str) -> Client:
    return Client(broker.port, broker.ca, certificate=broker.station(name), **more)


def test_a_station_writes_below_its_own_name_only(broker: SecureBroker, dashboard: Client, fault: Fault) -> None:
    forbidden = [
        f"{PREFIX}/{OTHER}/status",
        f"{PREFIX}/{OTHER}/alert",
        f"{PREFIX}/{OTHER}/reply/reload",
        f"{PREFIX}/{OTHER}/cmd/pause",
        f"{PREFIX}/{STATION}/cmd/set-threshold",
        f"{PREFIX}/{STATION}/alert/1/2/image",
        f"{PREFIX}/{STATION}2/alert",
        f"{PREFIX}/plant/alert",
        "elsewhere",
        "$SYS/broker/uptime",
    ]
    allowed = [
        "status",
        "info",
        "score",
        "alert",
        "alert/7/image",
        "alert/7/frame",
        "health",
        "snapshot/3/image",
        "reply/to/a/requester",
    ]
    fault.injected = f"a station publishes on {len(forbidden)} topics that are not its own"
    fault.expected = "each refused and delivered to nobody; its own are delivered"
    with station(broker) as client:
        assert client.refusal is None
        answers = {topic: client.publish(topic) for topic in forbidden}
        assert {client.publish(f"{PREFIX}/{STATION}/{topic}", b"mine") for topic in allowed} == {"Success"}
    dashboard.wait_for("reply/to/a/requester")
    delivered = [topic for topic, payload in dashboard.heard if payload == b"forged"]
    fault.seen = f"{sorted(set(answers.values()))}; delivered {delivered}; own {len(dashboard.heard)} of {len(allowed)}"
    assert set(answers.values()) == {"Not authorized"}
    assert not delivered
    assert [topic for topic, _ in dashboard.heard] == [f"{PREFIX}/{STATION}/{topic}" for topic in allowed]


def test_a_station_reads_its_own_commands_only(broker: SecureBroker, fault: Fault) -> None:
    fault.injected = "a station subscribes to #, to another's commands and to another's alerts"
    fault.expected = "it hears the commands to itself and nothing else"
    with station(broker) as client, person(broker, "operator") as operator, station(broker, OTHER) as other:
        for topic in ("#", f"{PREFIX}/{OTHER}/cmd/+", f"{PREFIX}/{OTHER}/alert", f"{PREFIX}/{STATION}/cmd/+"):
            client.subscribe(topic)
        assert other.publish(f"{PREFIX}/{OTHER}/alert", b"secret") == "Success"
        assert operator.publish(f"{PREFIX}/{OTHER}/cmd/pause", b"secret") == "Success"
        assert operator.publish(f"{PREFIX}/{STATION}/cmd/pause", b"{}") == "Success"
        client.wait_for("cmd/pause")
        fault.seen = f"heard {sorted(set(client.heard))}"
        assert set(client.heard) == {(f"{PREFIX}/{STATION}/cmd/pause", b"{}")}


def test_who_may_command_is_separate_from_who_may_read(broker: SecureBroker, dashboard: Client, fault: Fault) -> None:
    fault.injected = "the dashboard's user sends a command; the operator's forges an alert"
    fault.expected = "both refused; the operator's command is delivered"
    with person(broker, "operator") as operator, station(broker) as client:
        client.subscribe(f"{PREFIX}/{STATION}/cmd/+")
        answers = (
            dashboard.publish(f"{PREFIX}/{STATION}/cmd/pause"),
            operator.publish(f"{PREFIX}/{STATION}/alert"),
            operator.publish(f"{PREFIX}/{STATION}/cmd/pause", b"{}"),
        )
        client.wait_for("cmd/pause")
        fault.seen = f"{answers}; the station heard {client.heard}"
        assert answers == ("Not authorized", "Not authorized", "Success")
        assert client.heard == [(f"{PREFIX}/{STATION}/cmd/pause", b"{}")]


def test_a_last_will_is_not_a_way_around(broker: SecureBroker, dashboard: Client, fault: Fault) -> None:
    fault.injected = "a station with a last will on another's status vanishes; then one with a will on its own"
    fault.expected = "the second will is published, the first is not"
    for name in (OTHER, STATION):
        with station(broker, will=f"{PREFIX}/{name}/status") as client:
            assert client.refusal is None
            client.vanish()
    dashboard.wait_for(f"{STATION}/status")
    fault.seen = f"heard {dashboard.heard}"
    assert dashboard.heard == [(f"{PREFIX}/{STATION}/status", b"forged")]


def test_a_station_cannot_throw_out_another(broker: SecureBroker, fault: Fault) -> None:
    fault.injected = "a station logs in with the client id, and as the user, of another"
    fault.expected = "it is itself to the broker; the other stays connected"
    with station(broker, client_id="station-1") as victim:
        for client_id in ("station-1", STATION):
            thief = Client(
                broker.port, broker.ca, certificate=broker.station(OTHER), client_id=client_id, login=(STATION, "x")
            )
            with thief:
                assert thief.refusal is None
                assert thief.publish(f"{PREFIX}/{STATION}/status") == "Not authorized"
        stays = victim.publish(f"{PREFIX}/{STATION}/status", b"mine")
        fault.seen = f"victim {'disconnected' if victim.disconnected.is_set() else 'connected'}, publishes: {stays}"
        assert not victim.disconnected.is_set()
        assert stays in ("Success", "No matching subscribers")


@pytest.mark.parametrize(
    ("who", "words"),
    [
        ("nobody, by password port", "Not authorized"),
        ("nobody, by certificate port", "certificate"),
        ("wrong password", "Not authorized"),
        ("wrong user", "Not authorized"),
        ("certificate of another authority", "certificate"),
        ("expired certificate", "certificate"),
        ("revoked certificate", "certificate"),
        ("server's certificate as a client", "certificate"),
        ("TLS 1.1", "unsupported protocol"),
        ("no TLS", "no answer"),
    ],
)
def test_strangers_are_refused(tmp_path: Path, broker: SecureBroker, who: str, words: str, fault: Fault) -> None:
    fault.injected = f"log-in with: {who}"
    fault.expected = "refused"
    foreign = tmp_path / "foreign"
    if who == "certificate of another authority":
        make_certificates(foreign, "ca")
        make_certificates(foreign, "station", STATION)
    if who == "revoked certificate":
        make_certificates(broker.certificates, "revoke", str(broker.station()[0]))
        broker.kill()
        broker.take_list_of_revoked()
        broker.start()
    folder = foreign / "stations" / STATION
    port, ca, password_port = broker.port, broker.ca, broker.password_port
    clients = {
        "nobody, by password port": lambda: Client(password_port, ca),
        "nobody, by certificate port": lambda: Client(port, ca, login=("operator", PASSWORDS["operator"])),
        "wrong password": lambda: Client(password_port, ca, login=("operator", "operator")),
        "wrong user": lambda: Client(password_port, ca, login=("root", PASSWORDS["operator"])),
        "certificate of another authority": lambda: Client(
            port, ca, certificate=(folder / "client.crt", folder / "client.key")
        ),
        "expired certificate": lambda: Client(
            port, ca, certificate=make_expired(broker.certificates, "old", STATION, "extendedKeyUsage = clientAuth\n")
        ),
        "revoked certificate": lambda: station(broker),
        "server's certificate as a client": lambda: Client(
            port,
            ca,
            certificate=(broker.certificates / "server/server.crt", broker.certificates / "server/server.key"),
        ),
        "TLS 1.1": lambda: Client(
            password_port, ca, login=("operator", PASSWORDS["operator"]), tls=ssl.TLSVersion.TLSv1_1
        ),
        "no TLS": lambda: _Plain(password_port, ca, login=("operator", PASSWORDS["operator"])),
    }
    with clients[who]() as client:
        fault.seen = client.refusal or "let in"
    assert client.refusal is not None
    assert words in client.refusal or said_by(broker, words)
    with station(broker, OTHER) as honest:  # the same door, open to who belongs there
        assert honest.refusal is None


def said_by(broker: SecureBroker, words: str) -> bool:
    deadline = time.monotonic() + 10
    while words not in broker.log:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class _Plain(Client):
    """The same without TLS."""

    def __enter__(self) -> Self:
        self._client._ssl_context = None
        self._client._ssl = False
        self._client.connect(HOST, self._port)
        self._client.loop_start()
        self._settled.wait(20)
        self._client.loop_stop()
        return self


def test_passwords_are_kept_as_hashes_and_not_logged(broker: SecureBroker, fault: Fault) -> None:
    fault.injected = "log-ins by password, right and wrong"
    fault.expected = "neither password in the broker's log or its password file"
    with person(broker, "operator") as client, Client(broker.password_port, broker.ca, login=("operator", "Wrong-1-s")):
        assert client.refusal is None
    text = broker.log + (Path(broker._folder) / "passwords").read_text()
    found = [word for word in (*PASSWORDS.values(), "Wrong-1-s") if word in text]
    fault.seen = f"found {found}"
    assert not found
    assert "operator" in text
