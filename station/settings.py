"""Settings of one station: a TOML file, then ``STATION_*`` environment variables, secrets from systemd credentials.

An environment variable overrides one key of the file; ``__`` separates section and key:
``STATION_MQTT__HOST=broker.plant`` is ``[mqtt] host``. Secrets are better kept out of both: with systemd's
``LoadCredential=``, ``mqtt.password`` and ``camera.url`` are read from the files ``mqtt_password`` and
``camera_url`` in ``$CREDENTIALS_DIRECTORY``. Precedence: environment, credentials, file.
"""

import difflib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyAddress,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as EnvironmentParseError

from engines.engine import EngineSettings
from engines.geometry import Box
from station.messages import VERBS, Verb

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pydantic-settings[toml]

ENV_PREFIX = "STATION_"
ENV_DELIMITER = "__"
_TOPIC_LEVEL = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_STATIONS = r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63}|\+)(/([A-Za-z0-9][A-Za-z0-9._-]{0,63}|\+)){2}$"
_LEVEL_RULE = "Letters, digits, '.', '_' and '-', at most 64."


class SettingsError(Exception):
    """The settings cannot be used; the message names file, key, value and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Identity(_Section):
    """Where this station stands; the three names are levels of every MQTT topic."""

    site: str = Field(default="site", pattern=_TOPIC_LEVEL, description=f"Plant or site. {_LEVEL_RULE}")
    line: str = Field(default="line", pattern=_TOPIC_LEVEL, description=f"Production line. {_LEVEL_RULE}")
    name: str = Field(
        default="station", pattern=_TOPIC_LEVEL, description=f"This camera's station on the line. {_LEVEL_RULE}"
    )


class Roi(_Section):
    """Region of interest in camera pixels."""

    x: int = Field(ge=0)
    y: int = Field(ge=0)
    width: int = Field(ge=1)
    height: int = Field(ge=1)

    @property
    def box(self) -> Box:
        """As the tiler takes it."""
        return Box(self.x, self.y, self.width, self.height)


class CameraSettings(_Section):
    """Where frames come from."""

    url: str = Field(
        repr=False,  # may hold a password
        description="v4l2:///dev/video0, rtsp://…, http://… (MJPEG), gstreamer:PIPELINE, file:VIDEO, folder:DIR "
        "or demo:NAME",
    )
    policy: Literal["auto", "latest", "every"] = Field(
        default="auto",
        description="'latest' drops the oldest waiting frame when inspection falls behind, 'every' drops none; "
        "'auto' is 'every' for file:, folder: and demo:, 'latest' for live sources.",
    )
    fps: float | None = Field(
        default=None, gt=0, le=10000, description="Frames per second of file:, folder: and demo:; null: no pace."
    )
    loop: bool = Field(default=False, description="Start file:, folder: or demo: again at its end.")
    roi: Roi | None = Field(default=None, description="Part of the frame to inspect; null inspects all of it.")
    read_timeout: float = Field(
        default=5.0, gt=0, le=600, description="Seconds without a frame after which the camera counts as stalled."
    )
    reconnect_min: float = Field(default=0.5, gt=0, description="Shortest pause before reconnecting, seconds.")
    reconnect_max: float = Field(default=30.0, gt=0, description="Longest pause before reconnecting, seconds.")

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        schemes = ("v4l2", "rtsp", "rtsps", "http", "https", "gstreamer", "file", "folder", "demo")
        scheme, colon, rest = url.partition(":")
        if not colon or scheme not in schemes or not rest:
            raise ValueError(f"must start with one of {', '.join(s + ':' for s in schemes)}")
        return url

    @model_validator(mode="after")
    def _pauses_in_order(self) -> "CameraSettings":
        if self.reconnect_min > self.reconnect_max:
            raise ValueError(f"reconnect_min {self.reconnect_min} is more than reconnect_max {self.reconnect_max}")
        return self

    @model_validator(mode="after")
    def _fits_the_source(self) -> "CameraSettings":
        if self.url.partition(":")[0] not in ("file", "folder", "demo") and (self.fps or self.loop):
            raise ValueError("fps and loop are for file:, folder: and demo:; a live camera sets its own pace")
        return self


class JudgeSettings(_Section):
    """From patch scores to one verdict a frame."""

    threshold: float | None = Field(
        default=None, gt=0, description="Overrides the calibrated threshold; null takes it from calibration.json."
    )
    frame_score: Literal["max", "mean_top_k"] = Field(
        default="max", description="Frame score: the highest patch score (paper, V.B) or the mean of the k highest."
    )
    top_k: int = Field(default=3, ge=1, description="k of mean_top_k.")


class AlertSettings(_Section):
    """Life cycle of an alert."""

    open_hits: int = Field(default=1, ge=1, description="M: frames over the threshold that open an alert ...")
    open_window: int = Field(default=1, ge=1, description="... among N consecutive frames.")
    close_after: int = Field(default=3, ge=1, description="Quiet frames in a row that close an alert.")
    hysteresis: float = Field(
        default=0.25,
        ge=0,
        lt=1,
        description="An open alert lives on while the score stays above threshold - hysteresis x (threshold - median "
        "score of good frames).",
    )
    same_defect_distance: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="How far a defect may move between frames and still be the same one, as a share of the frame's "
        "longer side. 1 joins everything that is visible at once.",
    )
    image_max_side: int = Field(default=1280, ge=64, description="Longest side of the alert's JPEG, pixels.")
    image_quality: int = Field(default=85, ge=1, le=100, description="JPEG quality.")
    frame: bool = Field(
        default=True,
        description="Publish, when an alert closes, the frame with its peak score as the camera gave it (PNG): what "
        "people say of alerts then serves the next calibration and training.",
    )

    @model_validator(mode="after")
    def _window_holds_hits(self) -> "AlertSettings":
        if self.open_hits > self.open_window:
            raise ValueError(f"open_hits {self.open_hits} cannot be reached in open_window {self.open_window} frames")
        return self


class TlsSettings(_Section):
    """TLS to the broker."""

    ca_file: Path | None = Field(default=None, description="CA certificate, PEM; null takes the system's.")
    cert_file: Path | None = Field(default=None, description="Client certificate, PEM.")
    key_file: Path | None = Field(default=None, description="Client key, PEM, without a passphrase.")

    @model_validator(mode="after")
    def _pair(self) -> "TlsSettings":
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together: set both or neither")
        return self


class MqttSettings(_Section):
    """The broker."""

    host: str = Field(default="localhost", min_length=1)
    port: int = Field(default=1883, ge=1, le=65535)
    protocol: Literal["auto", "5", "3.1.1"] = Field(
        default="auto", description="'auto' speaks MQTT 5 and falls back to 3.1.1 when the broker refuses it."
    )
    client_id: str | None = Field(
        default=None, min_length=1, max_length=200, description="Null: station-<site>-<line>-<name>."
    )
    username: str | None = None
    password: SecretStr | None = Field(default=None, description="Better: the credential file mqtt_password.")
    password_file: Path | None = Field(
        default=None,
        description="File that holds the password, read again before every log-in: a password may be changed there "
        "without a restart.",
    )
    tls: TlsSettings | None = Field(default=None, description="Null: no TLS.")
    keepalive: int = Field(default=15, ge=2, le=3600, description="Seconds.")
    prefix: str = Field(
        default="station/v1",
        max_length=200,
        pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$",
        description="First levels of every topic, separated by '/'.",
    )

    @model_validator(mode="after")
    def _one_password(self) -> "MqttSettings":
        if self.password is not None and self.password_file is not None:
            raise ValueError("password (or the credential mqtt_password) and password_file: set one of them")
        return self

    @field_validator("host")
    @classmethod
    def _resolvable(cls, host: str) -> str:
        try:
            host.encode("idna")
        except UnicodeError:
            raise ValueError("must be a host name or an IP address") from None
        return host


class OutboxSettings(_Section):
    """Alerts and pictures on disk until the broker has them."""

    max_mib: int = Field(
        default=256,
        ge=1,
        le=65536,
        description="Bound, MiB. When it is reached frames go first, then pictures, then the oldest alerts.",
    )
    max_age_hours: float = Field(
        default=72,
        gt=0,
        le=8760,
        description="What is older is dropped, and counted. Nothing ages while the station is off.",
    )


CameraRule = Literal[
    "camera-size",
    "camera-truncated",
    "camera-black",
    "camera-dark",
    "camera-saturated",
    "camera-bright",
    "camera-frozen",
    "camera-colours",
    "camera-blurred",
    "camera-moved",
    "camera-flicker",
]


class HealthSettings(_Section):
    """What the station watches itself and its camera for."""

    frozen_after: float | None = Field(
        default=5.0,
        ge=0.2,
        le=3600,
        description="Seconds of the very same picture after which the camera counts as frozen; null: never.",
    )
    recover_after: float = Field(
        default=3.0, ge=0, le=3600, description="Seconds without a faulty frame after which a camera fault is over."
    )
    ignore: tuple[CameraRule, ...] = Field(
        default=(), description="Camera faults not to look for; docs/camera-faults.md explains each."
    )
    interval: float = Field(default=10, ge=0.2, le=3600, description="Seconds between two messages on `health`.")
    drift_window: int = Field(
        default=500, ge=100, le=100_000, description="Late frames whose scores are compared with the calibration's."
    )
    drift_every: float = Field(
        default=5.0,
        ge=0,
        le=3600,
        description="Seconds between two frames of the window, on average; 0 takes every frame. The window should be "
        "several times as long as any run of bad material.",
    )
    drift_effect: float = Field(
        default=0.71,
        gt=0.5,
        lt=1,
        description="Drift is when a late frame outscores a calibration frame with this probability (or is outscored), "
        "provided that it is no accident and lasts. 0.71 is called a large effect.",
    )
    recent_every: float = Field(
        default=30.0, ge=0, le=86_400, description="Seconds between two frames kept for `calibrate --from-recent`."
    )
    recent_mib: int = Field(
        default=512,
        ge=0,
        le=1_048_576,
        description="Bound of the frames kept, MiB; the oldest go. 0 keeps none.",
    )


class CommandSettings(_Section):
    """Commands over MQTT. Who may send them is for the broker's access list (deploy/mosquitto) to say."""

    allow: tuple[Verb, ...] = Field(default=VERBS, description="Commands that are obeyed; [] refuses all.")
    per_minute: int = Field(default=30, ge=1, le=600, description="Commands obeyed per minute; more are refused.")


class MetricsSettings(_Section):
    """Prometheus endpoint."""

    port: int | None = Field(default=None, ge=1, le=65535, description="Null: no endpoint.")
    host: str = Field(default="127.0.0.1", description="Address to listen on; it has no log-in, so keep it local.")


class DashboardSection(_Section):
    """The operator's page, `station dashboard`."""

    host: str = Field(
        default="127.0.0.1", description="Address to listen on. Others than this machine: behind a proxy with TLS."
    )
    port: int = Field(default=8080, ge=0, le=65535, description="0: any free one.")
    stations: tuple[Annotated[str, Field(pattern=_STATIONS)], ...] = Field(
        default=("+/+/+",),
        min_length=1,
        description="Which stations to show: `site/line/name`, each level a name or `+` for all.",
    )
    users_file: Path | None = Field(
        default=None,
        description="Names and password hashes, written by `station dashboard --set-password NAME`; who is in it may "
        "log in.",
    )
    user_header: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z][A-Za-z0-9-]*$",
        description="Header in which a reverse proxy names the user it has logged in, for instance `X-Remote-User`.",
    )
    hosts: tuple[str, ...] = Field(
        default=(),
        description="Names by which browsers reach the page, for instance the proxy's. Addresses, names without a dot, "
        "`.local` and this machine's own go without saying; others are refused.",
    )
    proxies: tuple[IPvAnyAddress, ...] = Field(
        default=(IPv4Address("127.0.0.1"), IPv6Address("::1")),
        description="Addresses of the proxies that are believed what they say of a request: user_header, "
        "`X-Forwarded-For` and `X-Forwarded-Proto`.",
    )
    operators: tuple[str, ...] = Field(
        default=(), description="Users that may command stations and judge alerts; all others only look."
    )
    public: bool = Field(default=True, description="Whether one may look without a log-in.")
    preview_every: float = Field(
        default=5.0,
        ge=0,
        le=3600,
        description="Seconds between two snapshots asked of a station that somebody is looking at, at least 3; "
        "0: none.",
    )
    keep_mib: int = Field(
        default=2048, ge=16, le=1_048_576, description="Bound of the pictures and frames kept, MiB; the oldest go."
    )
    keep_days: float = Field(default=90, gt=0, le=3660, description="Alerts that are older go.")
    state: Path | None = Field(
        default=None,
        description="Folder for alerts, pictures and what was said of them. null: $STATE_DIRECTORY under systemd, else "
        "~/.local/state/cbigan-station/dashboard.",
    )

    @property
    def state_folder(self) -> Path:
        """``state``, or where it is by default."""
        return self.state if self.state is not None else _state_home("dashboard")


class LogSettings(_Section):
    """The log on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="'auto' is console on a terminal and json otherwise."
    )


class BrokerSettings(BaseSettings):
    """The part of the settings that a subscriber needs; ignores the other sections of the file."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter=ENV_DELIMITER, extra="ignore", frozen=True
    )

    station: Identity = Identity()
    mqtt: MqttSettings = MqttSettings()
    log: LogSettings = LogSettings()

    @property
    def topic_prefix(self) -> str:
        """``station/v1/<site>/<line>/<station>``, without the final slash."""
        identity = self.station
        return f"{self.mqtt.prefix}/{identity.site}/{identity.line}/{identity.name}"

    @property
    def client_id(self) -> str:
        """MQTT client id of this station's daemon; two clients with one id throw each other out."""
        identity = self.station
        return self.mqtt.client_id or f"station-{identity.site}-{identity.line}-{identity.name}"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over what load_settings() passes in: credentials and file."""
        return (env_settings, init_settings)


class DashboardSettings(BrokerSettings):
    """The part of the settings that the operator's page needs; ignores the other sections of the file."""

    dashboard: DashboardSection = DashboardSection()


class Settings(BrokerSettings):
    """All settings of one station."""

    model_config = SettingsConfigDict(extra="forbid")

    bundle: Path = Field(description="Directory of the exported bundle.")
    calibration: Path | None = Field(default=None, description="calibration.json; null needs judge.threshold.")
    camera: CameraSettings
    engine: EngineSettings = EngineSettings()
    judge: JudgeSettings = JudgeSettings()
    alerts: AlertSettings = AlertSettings()
    outbox: OutboxSettings = OutboxSettings()
    health: HealthSettings = HealthSettings()
    commands: CommandSettings = CommandSettings()
    metrics: MetricsSettings = MetricsSettings()
    dashboard: DashboardSection = DashboardSection()
    state: Path | None = Field(
        default=None,
        description="Folder for what must survive a restart: outbox, threshold changes, recent frames. null: "
        "$STATE_DIRECTORY under systemd, else ~/.local/state/cbigan-station/<site>-<line>-<name>.",
    )

    @property
    def state_folder(self) -> Path:
        """``state``, or where it is by default."""
        identity = self.station
        return self.state if self.state is not None else _state_home(f"{identity.site}-{identity.line}-{identity.name}")

    @model_validator(mode="after")
    def _threshold_from_somewhere(self) -> "Settings":
        if self.calibration is None and self.judge.threshold is None:
            raise ValueError("set calibration (the file that `station calibrate` writes) or judge.threshold")
        return self


_SectionKind = TypeVar("_SectionKind", bound=_Section)


def with_options(section: _SectionKind, **options: str | int | None) -> _SectionKind:
    """A section in which options of the command line replace keys of the same names; None: was not given.

    Raises:
        SettingsError: a value cannot be used.
    """
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return type(section).model_validate(section.model_dump() | given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SettingsError(f"--{first['loc'][0]} {first['input']}: {first['msg']}") from error


def _state_home(name: str) -> Path:
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "cbigan-station" / name


def load_settings(path: Path) -> Settings:
    """Read the TOML file, the environment and the credentials.

    Relative paths in the file (bundle, calibration, TLS files, ``file:`` and ``folder:`` cameras) are taken from
    the file's folder, those in the environment from the working directory.

    Raises:
        SettingsError: file missing, not TOML, unknown key or value out of range; all that is wrong at once.
    """
    return _load(path, Settings)


def load_broker_settings(path: Path | None) -> BrokerSettings:
    """The same for a subscriber: no bundle and no camera needed, and without a path no file.

    Raises:
        SettingsError: as load_settings().
    """
    return _load(path, BrokerSettings)


def load_dashboard_settings(path: Path | None) -> DashboardSettings:
    """The same for the operator's page.

    Raises:
        SettingsError: as load_settings().
    """
    return _load(path, DashboardSettings)


_Kind = TypeVar("_Kind", bound=BrokerSettings)
_Location = tuple[int | str, ...]
_PATHS: tuple[tuple[str, ...], ...] = (
    ("bundle",),
    ("calibration",),
    ("state",),
    ("engine", "cache"),
    ("dashboard", "users_file"),
    ("dashboard", "state"),
    ("mqtt", "password_file"),
    ("mqtt", "tls", "ca_file"),
    ("mqtt", "tls", "cert_file"),
    ("mqtt", "tls", "key_file"),
)
_CREDENTIALS: dict[str, tuple[str, str]] = {
    "mqtt_password": ("mqtt", "password"),
    "camera_url": ("camera", "url"),
}
_SECRET = frozenset(_CREDENTIALS.values())


def _load(path: Path | None, kind: type[_Kind]) -> _Kind:
    values = _read_toml(path) if path is not None else {}
    where = str(path) if path is not None else "settings"
    credentials = _read_credentials()
    for location, value in credentials.items():
        section = values.setdefault(location[0], {})
        if isinstance(section, dict):  # anything else is reported as what it is, below
            section[location[1]] = value
    problems = _unknown_variables()
    try:
        settings = kind(**values)
    except EnvironmentParseError as error:
        field = re.search(r'field "(\w+)"', str(error))
        name = ENV_PREFIX + (field.group(1).upper() if field else "*")
        problems.append(f"{name} (environment): must be JSON; or set one key of it: {name}{ENV_DELIMITER}KEY=value")
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems += [_problem(detail, frozenset(credentials)) for detail in details]
    if problems:
        count = f"{len(problems)} settings" if len(problems) > 1 else "a setting"
        raise SettingsError("\n".join([f"{where}: {count} cannot be used", *(f"  {line}" for line in problems)]))
    return settings


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # not TOML or not UTF-8
        raise SettingsError(f"{path}: not valid TOML: {error}") from error
    folder = path.absolute().parent
    for *sections, key in _PATHS:
        section: Any = values
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and isinstance(section.get(key), str) and section[key]:
            section[key] = str(folder / section[key])
    camera = values.get("camera")
    if isinstance(camera, dict) and isinstance(camera.get("url"), str):
        scheme, colon, rest = camera["url"].partition(":")
        if scheme in {"file", "folder"} and rest:
            camera["url"] = f"{scheme}{colon}{folder / rest}"
    return values


def _read_credentials() -> dict[tuple[str, str], str]:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    found = {}
    for name, location in _CREDENTIALS.items() if directory else ():
        file = Path(directory or "", name)
        try:
            text = file.read_text(encoding="utf-8").rstrip("\r\n")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file}: the credential cannot be read: {type(error).__name__}") from error
        if text:  # station@.service hands over an empty line where there is no secret
            found[location] = text
    return found


def _unknown_variables() -> list[str]:
    """pydantic-settings ignores variables that fit no field; a misspelt one must not pass in silence."""
    known = list(Settings.model_fields)
    problems = []
    for name in sorted(os.environ):
        if name.upper().startswith(ENV_PREFIX):
            head = name[len(ENV_PREFIX) :].split(ENV_DELIMITER)[0].lower()
            if head not in known:
                nearest = difflib.get_close_matches(head, known, n=1)
                hint = f"did you mean {ENV_PREFIX}{nearest[0].upper()}?" if nearest else _listing(known)
                problems.append(f"{name} (environment): unknown variable; {hint}")
    return problems


def _problem(error: ErrorDetails, credentials: frozenset[tuple[str, str]]) -> str:
    location = error["loc"]
    key = ".".join(map(str, location))
    if error["type"] == "extra_forbidden":
        return f"{key}{_origin(location, credentials)}: unknown key; {_suggestion(location)}"
    if error["type"] == "model_type":
        section = _section_at(location)
        listing = f"; {_listing(list(section.model_fields))}" if section else ""
        return f"{key}{_origin(location, credentials)}: must be a section, [{key}]{listing}"
    field = _field_description(location)
    if error["type"] == "missing":
        return f"{key}: missing. {field}"
    said = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # our own rules say all themselves
        field = ""
    if not key:  # a rule about the whole file
        return said
    return f"{key}{_shown(location, error['input'])}{_origin(location, credentials)}: {said}. {field}".rstrip()


def _shown(location: _Location, value: object) -> str:
    """`` = value``; nothing of what is or may hold a secret, and nothing of whole sections."""
    if location in _SECRET or not isinstance(value, str | int | float | bool) or len(location) < 2:
        return ""
    return f" = {value!r}"


def _origin(location: _Location, credentials: frozenset[tuple[str, str]]) -> str:
    variables = {name.upper(): name for name in os.environ}
    for end in range(len(location), 0, -1):
        name = ENV_PREFIX + ENV_DELIMITER.join(map(str, location[:end])).upper()
        if name in variables:
            return f" (environment, {variables[name]})"
    return " (credential)" if location in credentials else ""


def _suggestion(location: _Location) -> str:
    *sections, unknown = map(str, location)
    keys = _known_keys(Settings)
    here = [key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == ".".join(sections)]
    nearest = difflib.get_close_matches(unknown, here, n=1)
    if nearest:
        return f"did you mean {'.'.join([*sections, nearest[0]])}?"
    elsewhere = {key.rpartition(".")[2]: key for key in reversed(keys)}  # right key, wrong section
    nearest = difflib.get_close_matches(unknown, elsewhere, n=1, cutoff=0.75)
    return f"did you mean {elsewhere[nearest[0]]}?" if nearest else _listing(here)


def _listing(keys: Sequence[str]) -> str:
    return f"known here: {', '.join(keys)}"


def _sections(model: type[BaseModel]) -> Mapping[str, type[BaseModel]]:
    """Fields of the model that are models themselves, ``Section`` or ``Section | None``."""
    found = {}
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found[name] = kind
    return found


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    sections = _sections(model)
    keys = []
    for name in model.model_fields:
        keys.append(prefix + name)
        if name in sections:
            keys += _known_keys(sections[name], f"{prefix}{name}.")
    return keys


def _section_at(location: _Location) -> type[BaseModel] | None:
    model: type[BaseModel] | None = Settings
    for name in location:
        model = _sections(model).get(str(name)) if model else None
    return model


def _field_description(location: _Location) -> str:
    parent = _section_at(location[:-1])
    field = parent.model_fields.get(str(location[-1])) if parent and location else None
    section = _section_at(location)
    return (field.description if field else None) or (section.__doc__ if section else None) or ""
