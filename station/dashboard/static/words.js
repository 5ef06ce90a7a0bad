// What states, faults and figures are called. Codes come from docs/reliability.md and docs/camera-faults.md.
import { now } from "./api.js";

/** code → [what it is, what to do]. */
const REASONS = {
  "camera-unplugged": ["Camera not connected", "Check its cable, power and log-in, and whether another program uses it."],
  "camera-stalled": ["Camera sends no pictures", "It is there but silent. Check trigger, network and power."],
  "camera-failed": ["Camera sends unusable pictures", "Restart the camera; check its format and the cable."],
  "camera-size": ["Picture has another size", "Set the camera's resolution back, or calibrate again."],
  "camera-truncated": ["Pictures arrive incomplete", "Data gets lost on the way: check network, cable and load."],
  "camera-black": ["Picture is black", "Is the lens cap on? Is the light on?"],
  "camera-dark": ["Too dark", "Check lamps, exposure and aperture; clean the lens."],
  "camera-saturated": ["Picture is overexposed", "Check lamps, exposure and aperture."],
  "camera-bright": ["Too bright", "Check lamps, exposure and aperture, and for stray light."],
  "camera-flicker": ["Light flickers", "Check the lamps' supply and the exposure time."],
  "camera-frozen": ["Picture is frozen", "The very same picture again and again. Restart the camera."],
  "camera-colours": ["Colours are exchanged", "Red and blue have changed places: check the camera's format."],
  "camera-blurred": ["Out of focus", "Focus and clean the lens; check for vibration."],
  "camera-moved": ["Camera has moved", "Point it back, or calibrate again."],
  paused: ["Paused", "Nothing is inspected until somebody resumes."],
  reloading: ["Taking over new settings", "Wait a moment."],
  "scores-drift": ["Scores have drifted", "They are no longer those of the calibration: look at light, lens and material, or calibrate again."],
  "outbox-memory": ["Alerts are kept in memory only", "The station's disk does not take them: make room, look at the disk."],
  "outbox-corrupt": ["A damaged alert store was moved aside", "Keep or delete the file that the message names."],
  "outbox-full": ["Alert store is full", "Alerts were dropped. Bring the broker back, or raise outbox.max_mib."],
  "outbox-newer": ["Alert store of a newer version", "Go back to the newer version to send what is in it."],
  "broker-refuses": ["Broker refuses messages", "Check the broker's access list."],
  "recent-frames": ["Recent frames are not kept", "Look at the station's disk."],
  "metrics-port": ["No metrics", "The port is taken by another program."],
  "threshold-corrupt": ["Set threshold was lost", "The base threshold is in force: set it again."],
  "threshold-unreadable": ["Set threshold cannot be read", "The base threshold is in force: set it again."],
  "broker-away": ["State unknown", "The dashboard has no connection to the broker."],
  "no-status": ["State unknown", "The station has not said how it is."],
  "not-confirmed": ["State unknown", "Nothing was heard since the dashboard came back."],
  silent: ["Silent", "Nothing was heard for a while. Is the station running? Is the network up?"],
};

/** `code: words` → {code, title, advice, words}; of a code that is not known, its own words are the title. */
export function reason(text) {
  const [, code, words] = /^([a-z][a-z0-9-]*): ?(.*)$/s.exec(text) ?? [null, "", text];
  const known = Object.hasOwn(REASONS, code) ? REASONS[code] : null;
  return { code, words, title: known ? known[0] : words || code, advice: known ? known[1] : "" };
}

/** How a station is, apart from its alerts: {word, tone, icon, lead: its first reason or null}. */
export function condition(station) {
  const reasons = station.reasons.map(reason);
  const drift = reasons.find((one) => one.code === "scores-drift");
  const lead = reasons.find((one) => one !== drift) ?? null;
  switch (station.state) {
    case "online":
      return drift
        ? { word: "Running", tone: "ok", icon: "ok", lead: drift, extra: "drift" }
        : { word: "Running", tone: "ok", icon: "ok", lead };
    case "degraded":
      if (lead?.code === "paused") return { word: "Paused", tone: "idle", icon: "paused", lead };
      if (lead?.code.startsWith("camera-")) return { word: "Camera fault", tone: "warn", icon: "camera", lead };
      return { word: "Degraded", tone: "warn", icon: "warn", lead };
    case "stopped":
      return { word: "Stopped", tone: "idle", icon: "stopped", lead };
    case "offline":
      return { word: "Offline", tone: "down", icon: "offline", lead };
    default:
      return { word: lead?.code === "silent" ? "Silent" : "Unknown", tone: "down", icon: "waiting", lead };
  }
}

/** The score that a station gives now; null while it gives none: the last one from before a fault says nothing. */
export function scoreNow(station) {
  const { lead } = condition(station);
  const inspects = station.state === "online" || (station.state === "degraded" && lead?.code !== "paused" && !lead?.code.startsWith("camera-"));
  return inspects ? station.score : null;
}

/** Whether somebody should look after it. */
export const troubled = (station) => station.state !== "online" || station.reasons.length > 0;

/** One line on how a station is, for its card. */
export function line(station) {
  const { lead } = condition(station);
  if (lead) return lead.title;
  if (station.state === "offline") return station.since ? `No contact since ${clock(station.since)}` : "No contact";
  if (station.state === "stopped") return station.since ? `Stopped at ${clock(station.since)}` : "Stopped on purpose";
  const rate = station.fps === null ? "" : `${plain(station.fps)} fps`;
  return [rate, `${count(station.alerts_24h, "alert")} in 24 h`].filter(Boolean).join(" · ");
}

export const VERDICTS = {
  "false-alarm": { word: "False alarm", icon: "cross" },
  confirmed: { word: "Confirmed", icon: "check" },
};

// --- figures ---

const formats = [0, 1, 2].map((digits) => new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
const few = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const loose = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

/** A score in about three digits. */
export function score(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e7) return value.toExponential(2);
  if (size >= 100) return formats[0].format(value);
  if (size >= 10) return formats[1].format(value);
  return size >= 1 ? formats[2].format(value) : few.format(value);
}

export const plain = (value) => (value === null || value === undefined ? "–" : loose.format(value));

/** A score in parts of its threshold: "62 %", "9.7 ×". */
export function ratio(value, threshold) {
  const part = value / threshold;
  if (!Number.isFinite(part)) return "–";
  if (part < 9.995) return `${Math.round(100 * part)} %`;
  return part < 1000 ? `${formats[part < 99.95 ? 1 : 0].format(part)} ×` : "> 999 ×";
}

/** How many times its threshold an alert's peak was. */
export function times(value, threshold) {
  const part = value / threshold;
  return Number.isFinite(part) ? `${part < 10 ? formats[1].format(part) : score(part)} × threshold` : "–";
}

export const count = (n, thing) => `${formats[0].format(n)} ${thing}${n === 1 ? "" : "s"}`;

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let at = 0;
  while (n >= 1024 && at < units.length - 1) [n, at] = [n / 1024, at + 1];
  return `${loose.format(n)} ${units[at]}`;
}

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 1000 ? `${few.format(value)} ms` : `${loose.format(value / 1000)} s`;
}

// --- times; shown by the viewer's clock ---

const timeOfDay = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dayAndTime = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });
const whole = new Intl.DateTimeFormat("en-GB", { dateStyle: "full", timeStyle: "long" });

/** Time of day, with the date if it is not today. */
export function clock(stamp) {
  const time = new Date(stamp);
  if (Number.isNaN(time.getTime())) return "–";
  return new Date(now()).toDateString() === time.toDateString() ? timeOfDay.format(time) : dayAndTime.format(time);
}

export const fullTime = (stamp) => (Number.isNaN(Date.parse(stamp)) ? "" : whole.format(new Date(stamp)));

/** How long: "8 s", "3 min", "2 h 5 min", "4 days". */
export function span(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} days`;
}

export const ago = (stamp) => `${span(now() - Date.parse(stamp))} ago`;

/** Where in the frame something is: "upper left". */
export function position(boxes, width, height) {
  if (!boxes.length || !width || !height) return "–";
  const left = Math.min(...boxes.map((box) => box.x));
  const right = Math.max(...boxes.map((box) => box.x + box.w));
  const top = Math.min(...boxes.map((box) => box.y));
  const bottom = Math.max(...boxes.map((box) => box.y + box.h));
  if (right - left > 0.7 * width && bottom - top > 0.7 * height) return "everywhere";
  const third = (low, high, size) => (high - low > 0.7 * size ? 1 : Math.max(0, Math.min(2, Math.floor((1.5 * (low + high)) / size))));
  const row = ["upper", "middle", "lower"][third(top, bottom, height)];
  const column = ["left", "centre", "right"][third(left, right, width)];
  if (row === "middle" && column === "centre") return "centre";
  return row === "middle" ? column : `${row} ${column}`;
}
