"""Write docs/settings.md from the settings' own descriptions: ``python docs/make_settings.py``."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from station.settings import ENV_PREFIX, Settings

HEAD = f"""\
# Settings

One TOML file describes one station; `station check --config station.toml` says whether it can be used. Only `bundle`,
`camera.url` and one of `calibration` or `judge.threshold` are required. An unknown key or a value out of range ends the
daemon with exit code 78 and says file, key, value and what is allowed.

An environment variable overrides one key; `__` separates section and key: `{ENV_PREFIX}MQTT__HOST=broker.plant` is
`host` in `[mqtt]`. Secrets belong into systemd credentials: `$CREDENTIALS_DIRECTORY/mqtt_password` is `mqtt.password`,
and `camera_url` is a `camera.url` with user name and password in it.

*This page is made from `station/settings.py` by `make docs`.*
"""


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a section; None for a plain key."""
    candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def type_of(schema: dict[str, Any]) -> str:
    """A JSON schema's type in words."""
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(type_of(option) for option in schema["anyOf"] if option.get("type") != "null")
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    words = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "array": "list",
    }
    bounds = [f"{sign} {schema[key]:g}" for key, sign in limits.items() if key in schema]
    return " ".join([words.get(schema.get("type", ""), "text"), ", ".join(bounds)]).strip()


def default_of(field: FieldInfo) -> str:
    """As TOML would have it."""
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return ""
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, tuple):
        return f"`{json.dumps([str(item) for item in field.default])}`"
    return f"`{field.default}`"


def rows(model: type[BaseModel]) -> list[str]:
    """A table row for each plain key."""
    schema = model.model_json_schema()["properties"]
    lines = []
    for name, field in model.model_fields.items():
        if section_of(field) is not None:
            continue
        lines.append(f"| `{name}` | {type_of(schema[name])} | {default_of(field)} | {field.description or ''} |")
    return lines


def page() -> str:
    """The whole page."""
    lines = [HEAD]

    def table(title: str, about: str, model: type[BaseModel]) -> None:
        lines.extend([f"## {title}", "", about, "", "| key | value | default | meaning |", "| --- | --- | --- | --- |"])
        lines.extend([*rows(model), ""])
        for name, field in model.model_fields.items():
            section = section_of(field)
            if section is not None:
                inner = name if title.startswith("Top") else f"{title.strip('`[]')}.{name}"
                table(f"`[{inner}]`", (section.__doc__ or "").strip(), section)

    table("Top level", "Before the first section.", Settings)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(page())
