import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.settings import Settings, SettingsError, load_broker_settings, load_settings

MINIMAL = 'bundle = "b"\n[judge]\nthreshold = 1\n[camera]\nurl = "demo:brick"\n'
SECRET = "s3cr3t-hunter2"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith("STATION_") or name == "CREDENTIALS_DIRECTORY":
            monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "station.toml"


def load(config: Path, text: str) -> Settings:
    config.write_text(text)
    return load_settings(config)


def refusal(config: Path, text: str) -> str:
    with pytest.raises(SettingsError) as error:
        load(config, text)
    return str(error.value)


def test_minimal_file_and_defaults(config: Path) -> None:
    settings = load(config, MINIMAL)
    assert settings.topic_prefix == "station/v1/site/line/station"
    assert settings.client_id == "station-site-line-station"
    assert (settings.mqtt.port, settings.mqtt.protocol, settings.camera.policy) == (1883, "auto", "auto")


def test_environment_overrides_single_keys_of_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATION_MQTT__HOST", "broker.plant")
    monkeypatch.setenv("STATION_MQTT__TLS__CA_FILE", "/etc/ca.pem")
    monkeypatch.setenv("STATION_STATION__LINE", "line-7")
    monkeypatch.setenv("STATION_CAMERA__ROI", '{"x": 1, "y": 2, "width": 3, "height": 4}')
    settings = load(config, MINIMAL + '[mqtt]\nhost = "elsewhere"\nport = 1884\n')
    assert (settings.mqtt.host, settings.mqtt.port) == ("broker.plant", 1884)
    assert settings.mqtt.tls is not None
    assert settings.mqtt.tls.ca_file == Path("/etc/ca.pem")
    assert settings.topic_prefix == "station/v1/site/line-7/station"
    assert settings.camera.roi is not None
    assert settings.camera.roi.height == 4


def test_relative_paths_are_taken_from_the_files_folder(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = (
        'bundle = "b"\ncalibration = "c.json"\n[camera]\nurl = "folder:frames"\n[mqtt.tls]\nca_file = "/abs/ca.pem"\n'
    )
    settings = load(config, text)
    assert settings.bundle == tmp_path / "b"
    assert settings.calibration == tmp_path / "c.json"
    assert settings.camera.url == f"folder:{tmp_path / 'frames'}"
    assert settings.mqtt.tls is not None
    assert settings.mqtt.tls.ca_file == Path("/abs/ca.pem")
    config.write_text(text)
    assert load_settings(Path("../station.toml")).bundle == tmp_path / "elsewhere" / ".." / "b"


def test_secrets_come_from_credentials_and_the_environment_still_wins(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mqtt_password").write_text(SECRET + "\n")
    (tmp_path / "camera_url").write_text(f"rtsp://u:{SECRET}@cam/1")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    settings = load(config, MINIMAL + '[mqtt]\npassword = "of the file"\n')
    assert settings.mqtt.password is not None
    assert settings.mqtt.password.get_secret_value() == SECRET
    assert settings.camera.url == f"rtsp://u:{SECRET}@cam/1"
    assert SECRET not in repr(settings) + str(settings)
    monkeypatch.setenv("STATION_MQTT__PASSWORD", "of the environment")
    password = load(config, MINIMAL).mqtt.password
    assert password is not None
    assert password.get_secret_value() == "of the environment"


def test_an_empty_credential_is_none(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What station@.service hands over where there is no secret."""
    for name in ("mqtt_password", "camera_url"):
        (tmp_path / name).write_text("\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    settings = load(config, MINIMAL)
    assert settings.mqtt.password is None
    assert settings.camera.url


def test_all_errors_at_once_each_with_key_value_and_what_is_allowed(config: Path) -> None:
    message = refusal(
        config,
        'bundle = "b"\n[judge]\nthreshold = -1\n[camera]\nurl = "demo:x"\npolicy = "newest"\n[mqtt]\nport = 99999\n'
        '[log]\nlevel = "loud"\n',
    )
    first, *lines = message.splitlines()
    assert first == f"{config}: 4 settings cannot be used"
    lines = sorted(line.strip() for line in lines)
    assert [line.split(" = ")[0] for line in lines] == ["camera.policy", "judge.threshold", "log.level", "mqtt.port"]
    assert "'newest'" in lines[0]
    assert "'latest' or 'every'" in lines[0]
    assert "= -1: Input should be greater than 0" in lines[1]
    assert "'debug', 'info', 'warning' or 'error'" in lines[2]
    assert "99999: Input should be less than or equal to 65535" in lines[3]


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ('[mqtt]\nhots = "x"', "mqtt.hots: unknown key; did you mean mqtt.host?"),
        ('[mqqt]\nhost = "x"', "mqqt: unknown key; did you mean mqtt?"),
        ('[mqtt.tls]\ncafile = "x"', "mqtt.tls.cafile: unknown key; did you mean mqtt.tls.ca_file?"),
        ('[log]\nthreshold = "x"', "log.threshold: unknown key; did you mean judge.threshold?"),
        ("mqtt = 3", "mqtt: must be a section, [mqtt]; known here: host, port,"),
        ('[log]\nzzz = "x"', "log.zzz: unknown key; known here: level, format"),
    ],
)
def test_unknown_keys_suggest_the_nearest_known_one(config: Path, text: str, suggestion: str) -> None:
    assert suggestion in refusal(config, text + "\n" + MINIMAL if text.startswith("mqtt") else MINIMAL + text)


def test_errors_name_the_environment_variable_they_come_from(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATION_MQTT__PORT", "many")
    monkeypatch.setenv("STATION_MQTTT__HOST", "x")
    message = refusal(config, MINIMAL)
    assert "mqtt.port = 'many' (environment, STATION_MQTT__PORT)" in message
    assert "STATION_MQTTT__HOST (environment): unknown variable; did you mean STATION_MQTT?" in message


def test_a_section_in_the_environment_must_be_json(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATION_MQTT", SECRET)
    message = refusal(config, MINIMAL)
    assert "STATION_MQTT (environment): must be JSON" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "text",
    [
        f'[mqtt]\npassword = ["{SECRET}"]',
        f'[mqtt]\npasswort = "{SECRET}"',
        f'mqtt = "{SECRET}"',
        f'[mqtt]\npassword = "{SECRET}"\nport = 0',
        f'[mqtt.tls]\npassword = "{SECRET}"',
        f'[mqtt]\ntls = "{SECRET}"',
        f'[judge]\nthreshold = 1\n[camera]\nurl = "rtps://user:{SECRET}@camera/1"',
        f'[judge]\nthreshold = 1\n[camera]\nurl = "{SECRET}:x"',
    ],
)
def test_no_error_shows_a_secret(config: Path, text: str) -> None:
    message = refusal(config, text if "judge" in text else f"{text}\n[judge]\nthreshold = -1\n")
    assert SECRET not in message


def test_threshold_must_come_from_somewhere(config: Path) -> None:
    message = refusal(config, 'bundle = "b"\n[camera]\nurl = "demo:x"\n')
    assert "set calibration (the file that `station calibrate` writes) or judge.threshold" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[camera]\nreconnect_min = 9\nreconnect_max = 1", "reconnect_min 9.0 is more than reconnect_max 1.0"),
        ('[mqtt.tls]\ncert_file = "c.pem"', "cert_file and key_file go together"),
        ("[alerts]\nopen_hits = 3", "open_hits 3 cannot be reached"),
        ('[mqtt]\nhost = "a..b"', "must be a host name or an IP address"),
        ('[station]\nsite = "plant/one"', "Letters, digits"),
        ('[mqtt]\nprefix = "station/#"', "separated by '/'"),
    ],
)
def test_rules_between_keys_and_on_names(config: Path, text: str, words: str) -> None:
    minimal = 'bundle = "b"\n[judge]\nthreshold = 1\n'
    camera = "" if "[camera]" in text else '[camera]\nurl = "demo:x"\n'
    assert words in refusal(config, minimal + camera + text.replace("[camera]", '[camera]\nurl = "demo:x"'))


def test_file_missing_or_no_toml(config: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"station\.toml: cannot be read: No such file"):
        load_settings(config)
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(tmp_path)
    assert "not valid TOML" in refusal(config, "bundle = \n")
    config.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_settings(config)


@given(st.text(max_size=200))
def test_whatever_the_file_holds_is_loaded_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    config = tmp_path_factory.getbasetemp() / "any.toml"
    config.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError):  # no text of this kind is a whole configuration
        load_settings(config)


def test_a_subscriber_needs_neither_bundle_nor_camera(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATION_MQTT__PORT", "1999")
    assert load_broker_settings(None).mqtt.port == 1999
    config.write_text('[camera]\nurl = 3\n[mqtt]\nhost = "b"\n')
    assert load_broker_settings(config).mqtt.host == "b"
    config.write_text('[mqtt]\nhots = "b"\n')
    with pytest.raises(SettingsError, match=r"did you mean mqtt\.host"):
        load_broker_settings(config)
