"""Messages in words that a terminal may show."""

from rich.text import Text

from station.messages import Alert, Feedback, Info, Message, Reply, Status

STATE_STYLES = {"online": "green", "degraded": "yellow", "stopped": "dim", "offline": "bold red", "unknown": "dim"}
STATE_MARKS = {"online": "●", "degraded": "▲", "stopped": "■", "offline": "✗", "unknown": "?"}
MAX_WORDS = 500


def clean(text: str, limit: int = MAX_WORDS) -> str:
    """Text from elsewhere as a terminal may show it: no control characters, no escape sequences, bounded."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[:limit])
    return f"{shown}…" if len(text) > limit else shown


def describe(message: Message) -> Text:
    """One message as a line; scores and health have more to say than a line holds and are not told so."""
    match message:
        case Status():
            reasons = f": {'; '.join(message.reasons)}" if message.reasons else ""
            return Text.assemble((message.state, STATE_STYLES[message.state]), clean(reasons))
        case Info():
            return Text(
                clean(
                    f"bundle {message.bundle_name}, {message.engine_backend} on {message.engine_device}, "
                    f"threshold {message.threshold:.4g}, camera {message.camera_url}, version {message.version}"
                )
            )
        case Alert():
            style = {"open": "bold red", "update": "yellow", "close": "green"}[message.event]
            return Text.assemble((f"alert {message.event}", style), clean(f" {message.id}  {alert_words(message)}"))
        case Reply():
            result = ", ".join(f"{key} {value}" for key, value in message.result.items())
            told = f"done {result}".rstrip() if message.ok else message.error
            return Text(clean(f"reply to {message.verb}: {told}"))
        case Feedback():
            note = f": {message.note}" if message.note else ""
            return Text(clean(f"{message.by} says {message.verdict} of alert {message.alert}{note}"))
    return Text(clean(message.schema_))


def alert_words(alert: Alert) -> str:
    """How much, when and where."""
    boxes = ", ".join(f"{box.w}x{box.h} at ({box.x}, {box.y})" for box in alert.boxes)
    return (
        f"peak {alert.peak_score:.4g} of {alert.threshold:.4g}  "
        f"frames {alert.first_frame}-{alert.last_frame}  {boxes}  {alert.name}".rstrip()
    )
