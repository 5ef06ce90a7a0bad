"""Write deploy/asyncapi.yaml and deploy/schemas/*.json from the message models; ``make docs`` runs it.

Both describe what station/messages.py sends and takes, so that neither can say anything else. What a station sends is
described openly: later releases may add keys, which a subscriber should pass over. What it takes (commands, feedback)
is closed, as the station refuses keys that it does not know.
"""

import json
from pathlib import Path
from typing import Any

import yaml

import station
from station.messages import (
    VERBS,
    Alert,
    Command,
    Feedback,
    Health,
    Info,
    Message,
    Reply,
    Score,
    SetThreshold,
    Status,
    alert_frame_topic,
    alert_image_topic,
    snapshot_topic,
)
from station.settings import MqttSettings

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
SENT: tuple[type[Message], ...] = (Status, Info, Score, Alert, Health, Reply)
TAKEN: dict[str, type[Command | Feedback]] = {"command": Command, "set-threshold": SetThreshold, "feedback": Feedback}
ABOUT = """\
What an inspection station says over MQTT and what it can be told; docs/integration.md explains it with examples.
Described from the station's side: it *sends* scores and alerts, it *receives* commands.
JSON, UTF-8, times in UTC (RFC 3339). Messages with QoS 1 may come twice: skip a `dedupe_key` that you have seen.
Later releases may add keys to what a station sends; pass over those that you do not know."""

Schema = dict[str, Any]


def tidied(node: Any, *, opened: bool) -> Any:  # noqa: ANN401 - JSON
    """Without pydantic's titles, which repeat the keys; where ``opened``, with room for keys to come."""
    if isinstance(node, list):
        return [tidied(item, opened=opened) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {}
    for key, value in node.items():
        if (key == "title" and isinstance(value, str)) or (opened and key == "additionalProperties" and not value):
            continue
        if key == "description":
            kept[key] = " ".join(value.replace("``", "`").split())
        else:
            kept[key] = tidied(value, opened=opened)
    return kept


def schema_of(model: type[Message | Command], references: str) -> Schema:
    """JSON Schema of a model, as it is on the wire: sent with every key, taken with defaults."""
    sent = model in SENT
    schema = model.model_json_schema(
        by_alias=True, mode="serialization" if sent else "validation", ref_template=references + "{model}"
    )
    return dict(tidied(schema, opened=sent))


def models() -> dict[str, type[Message | Command]]:
    """Every model by the name of its schema file."""
    return {model.topic: model for model in SENT} | TAKEN


def schemas() -> dict[str, str]:
    """Text of the schema files by name."""
    return {
        f"{name}.json": json.dumps(
            {"$schema": DIALECT, "$id": f"urn:cbigan-station:{name}:v1", "title": name, **schema_of(model, "#/$defs/")},
            indent=2,
            ensure_ascii=False,
        )
        + "\n"
        for name, model in models().items()
    }


def asyncapi() -> str:
    """Text of the AsyncAPI document."""
    components: dict[str, Schema] = {}
    for name, model in models().items():
        schema = schema_of(model, "#/components/schemas/")
        components |= schema.pop("$defs", {})
        components[name] = schema
    document = {
        "asyncapi": "3.0.0",
        "id": "urn:cbigan-station",
        "info": {
            "title": "CBiGAN inspection station",
            "version": station.__version__,
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "certificates": _server(8883, "X509", "deploy/mosquitto: log-in by client certificate."),
            "passwords": _server(8884, "userPassword", "deploy/mosquitto: log-in by name and password, in TLS."),
        },
        "channels": _channels(),
        "operations": _operations(),
        "components": {
            "messages": _messages(),
            "schemas": components,
            "parameters": _parameters(),
            "securitySchemes": {"certificate": {"type": "X509"}, "password": {"type": "userPassword"}},
        },
    }
    head = "# Made from station/messages.py by docs/make_asyncapi.py (`make docs`); do not edit.\n"
    return head + yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Paragraphs as they are."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _server(port: int, kind: str, about: str) -> Schema:
    name = {"X509": "certificate", "userPassword": "password"}[kind]
    return {
        "host": f"broker.plant.example:{port}",
        "protocol": "secure-mqtt",
        "protocolVersion": "5.0",
        "description": f"{about} MQTT 3.1.1 works too, without expiry, user properties and response topics.",
        "security": [{"$ref": f"#/components/securitySchemes/{name}"}],
    }


# Channel → topic below the station's prefix, messages, what it is.
CHANNELS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "status": ("status", ("status",), "Retained: how the station is. `offline` comes from the broker, as last will."),
    "info": ("info", ("info",), "Retained: what runs there."),
    "score": ("score", ("score",), "One for every inspected frame."),
    "alert": ("alert", ("alert",), "`open`, `update` and `close` of one defect."),
    "alertImage": (alert_image_topic("{id}"), ("picture",), "Frame with heatmap and boxes."),
    "alertFrame": (
        alert_frame_topic("{id}"),
        ("frame",),
        "After `close`: the frame with the peak score, as the camera gave it.",
    ),
    "health": ("health", ("health",), "How camera, scores, queues and the device do."),
    "command": ("cmd/{verb}", ("command",), "Commands without arguments of their own. Never retained."),
    "setThreshold": ("cmd/set-threshold", ("set-threshold",), "The command with an argument. Never retained."),
    "reply": ("reply/{verb}", ("reply",), "Answers to commands that name no response topic (MQTT 5)."),
    "snapshotImage": (snapshot_topic("{id}"), ("picture",), "What `snapshot` asked for."),
    "feedback": (
        Feedback.topic,
        ("feedback",),
        "What people say of alerts. From whoever shows alerts, for whoever keeps them; the station does not listen.",
    ),
}
PATH = ("site", "line", "station")


def _channels() -> Schema:
    channels = {}
    for name, (topic, messages, about) in CHANNELS.items():
        parameters = [*PATH, *(key for key in ("id", "verb") if f"{{{key}}}" in topic)]
        of = {"id": "snapshotId" if name == "snapshotImage" else "alertId", "verb": _verbs(name)}
        channels[name] = {
            "address": f"{MqttSettings().prefix}/{'/'.join(f'{{{level}}}' for level in PATH)}/{topic}",
            "description": about,
            "messages": {message: {"$ref": f"#/components/messages/{message}"} for message in messages},
            "parameters": {key: {"$ref": f"#/components/parameters/{of.get(key, key)}"} for key in parameters},
        }
    return channels


def _verbs(channel: str) -> str:
    return "anyVerb" if channel == "reply" else "verb"


def _parameters() -> Schema:
    level = "letters, digits, `.`, `_` and `-`, at most 64."
    return {
        "site": {"description": f"`[station] site`: {level}"},
        "line": {"description": f"`[station] line`: {level}"},
        "station": {"description": f"`[station] name`: {level}"},
        "alertId": {"description": "Id of the alert."},
        "snapshotId": {"description": "As in the answer to `snapshot`."},
        "verb": {"enum": [verb for verb in VERBS if verb != "set-threshold"]},
        "anyVerb": {"enum": list(VERBS)},
    }


def _operations() -> Schema:
    operations: Schema = {}
    for channel, model in (
        ("status", Status),
        ("info", Info),
        ("score", Score),
        ("alert", Alert),
        ("alertImage", Alert),
        ("alertFrame", Alert),
        ("health", Health),
        ("reply", Reply),
        ("snapshotImage", Reply),
    ):
        operations[f"send{channel[0].upper()}{channel[1:]}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{channel}"},
            "bindings": {"mqtt": _binding(model)},
        }
    for channel in ("command", "setThreshold"):
        operations[f"receive{channel[0].upper()}{channel[1:]}"] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{channel}"},
            "bindings": {"mqtt": {"qos": 1, "bindingVersion": "0.2.0"}},
            "reply": {"channel": {"$ref": "#/channels/reply"}},
        }
    return operations


def _binding(model: type[Message]) -> Schema:
    binding: Schema = {"qos": model.qos, "retain": model.retain}
    if model.expiry is not None:
        binding["messageExpiryInterval"] = int(model.expiry.total_seconds())
    return binding | {"bindingVersion": "0.2.0"}


def _messages() -> Schema:
    messages: Schema = {}
    for name, model in models().items():
        messages[name] = {
            "name": name,
            "title": name,
            "contentType": "application/json",
            "payload": {"$ref": f"#/components/schemas/{name}"},
        }
        if model in SENT:
            messages[name]["headers"] = _user_properties("schema", *(["dedupe_key"] if model is Alert else []))
    answered = {"responseTopic": {"type": "string"}, "bindingVersion": "0.2.0"}
    for name in ("command", "set-threshold"):
        messages[name]["bindings"] = {"mqtt": answered}
    for name, content_type in (("picture", "image/jpeg"), ("frame", "image/png")):
        messages[name] = {
            "name": name,
            "title": name,
            "contentType": content_type,
            "payload": {"type": "string", "format": "binary"},
        }
    messages["frame"]["headers"] = _user_properties("alert", "dedupe_key")
    return messages


def _user_properties(*names: str) -> Schema:
    return {
        "type": "object",
        "description": "MQTT 5 user properties.",
        "properties": {name: {"type": "string"} for name in names},
    }


def files() -> dict[Path, str]:
    """Everything that is made, by path."""
    return {DEPLOY / "asyncapi.yaml": asyncapi()} | {
        DEPLOY / "schemas" / name: text for name, text in schemas().items()
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
