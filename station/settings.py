"""Settings of one station: a TOML file, then ``STATION_*`` environment variables, secrets from systemd credentials.

An environment variable overrides one key of the file; ``__`` separates section and key:
``STATION_MQTT__HOST=broker.plant`` is ``[mqtt] host``. A secret such as ``mqtt.password`` is read from the file
``$CREDENTIALS_DIRECTORY/mqtt_password`` when systemd's ``LoadCredential=`` provides it.
"""

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from engines.engine import EngineSettings

ENV_PREFIX = "STATION_"
_TOPIC_LEVEL = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class SettingsError(Exception):
    """The settings cannot be used; the message names file, key, value and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Identity(_Section):
    """Where this station stands; the three names are levels of every MQTT topic."""

    site: str = Field(default="site", pattern=_TOPIC_LEVEL, description="Plant or site.")
    line: str = Field(default="line", pattern=_TOPIC_LEVEL, description="Production line.")
    name: str = Field(default="station", pattern=_TOPIC_LEVEL, description="This camera's station on the line.")


class Roi(_Section):
    """Region of interest in camera pixels."""

    x: int = Field(ge=0)
    y: int = Field(ge=0)
    width: int = Field(ge=1)
    height: int = Field(ge=1)


class CameraSettings(_Section):
    """Where frames come from."""

    url: str = Field(
        description="v4l2:///dev/video0, rtsp://…, http://… (MJPEG), gstreamer:PIPELINE, file:VIDEO, folder:DIR, demo:NAME"
    )
    policy: Literal["auto", "latest", "every"] = Field(
        default="auto",
        description="'latest' drops the oldest waiting frame when inspection falls behind, 'every' drops none; "
        "'auto' is 'every' for file: and folder:, 'latest' for live sources.",
    )
    fps: float | None = Field(
        default=None, gt=0, le=10000, description="Pace of file:, folder: and demo: in frames per second; null: no pace."
    )
    loop: bool = Field(default=False, description="Start file: and folder: again at their end.")
    roi: Roi | None = Field(default=None, description="Part of the frame to inspect; null inspects all of it.")
    read_timeout: float = Field(
        default=5.0, gt=0, le=600, description="Seconds without a frame after which the camera counts as stalled."
    )
    reconnect_min: float = Field(default=0.5, gt=0, description="First pause before reconnecting, seconds.")
    reconnect_max: float = Field(default=30.0, gt=0, description="Longest pause before reconnecting, seconds.")

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        schemes = ("v4l2", "rtsp", "rtsps", "http", "https", "gstreamer", "file", "folder", "demo")
        scheme, colon, rest = url.partition(":")
        if not colon or scheme not in schemes or not rest:
            raise ValueError(f"must start with one of {', '.join(s + ':' for s in schemes)}")
        return url


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

    @model_validator(mode="after")
    def _window_holds_hits(self) -> "AlertSettings":
        if self.open_hits > self.open_window:
            raise ValueError(f"open_hits {self.open_hits} cannot be reached in open_window {self.open_window} frames")
        return self


class TlsSettings(_Section):
    """TLS to the broker."""

    ca_file: Path | None = Field(default=None, description="CA certificate, PEM; null takes the system's.")
    cert_file: Path | None = Field(default=None, description="Client certificate, PEM.")
    key_file: Path | None = Field(default=None, description="Client key, PEM.")


class MqttSettings(_Section):
    """The broker."""

    host: str = Field(default="localhost", min_length=1)
    port: int = Field(default=1883, ge=1, le=65535)
    protocol: Literal["auto", "5", "3.1.1"] = Field(
        default="auto", description="'auto' speaks MQTT 5 and falls back to 3.1.1 when the broker refuses it."
    )
    client_id: str | None = Field(default=None, description="Null: station-<site>-<line>-<name>.")
    username: str | None = None
    password: SecretStr | None = Field(default=None, description="Better: the credential file mqtt_password.")
    tls: TlsSettings | None = Field(default=None, description="Null: no TLS.")
    keepalive: int = Field(default=15, ge=2, le=3600, description="Seconds.")
    prefix: str = Field(default="station/v1", pattern=r"^[A-Za-z0-9._/-]+$", description="First levels of every topic.")


class LogSettings(_Section):
    """The log on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="'auto' is console on a terminal and json otherwise."
    )


class Settings(BaseSettings):
    """All settings of one station."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, nested_model_default_partial_update=True
    )
    _toml_file: ClassVar[Path | None] = None

    station: Identity = Identity()
    bundle: Path = Field(description="Directory of the exported bundle.")
    calibration: Path | None = Field(default=None, description="calibration.json; null needs judge.threshold.")
    camera: CameraSettings
    engine: EngineSettings = EngineSettings()
    judge: JudgeSettings = JudgeSettings()
    alerts: AlertSettings = AlertSettings()
    mqtt: MqttSettings = MqttSettings()
    log: LogSettings = LogSettings()

    @property
    def topic_prefix(self) -> str:
        """``station/v1/<site>/<line>/<station>``, without the final slash."""
        return "/".join((self.mqtt.prefix.strip("/"), self.station.site, self.station.line, self.station.name))

    @model_validator(mode="after")
    def _threshold_from_somewhere(self) -> "Settings":
        if self.calibration is None and self.judge.threshold is None:
            raise ValueError("set calibration (the file that `station calibrate` writes) or judge.threshold")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - signature is pydantic-settings'
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order of precedence: environment, systemd credentials, TOML file."""
        return (env_settings, init_settings, TomlConfigSettingsSource(settings_cls, cls._toml_file))


def _credentials() -> dict[str, Any]:
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return {}
    password = Path(directory) / "mqtt_password"
    return {"mqtt": {"password": password.read_text().strip()}} if password.is_file() else {}


Key = Annotated[str, "dotted path of a setting"]


def load_settings(path: Path) -> Settings:
    """Read the TOML file, the environment and the credentials.

    Relative paths (bundle, calibration, TLS files) are taken from the settings file's folder.

    Raises:
        SettingsError: file missing, not TOML, unknown key or value out of range.
    """
    raise NotImplementedError
