// How a station does, in words.
import { h } from "./dom.js";
import { icon } from "./icons.js";
import { bytes, clock, count, milliseconds, plain, reason, score, span } from "./words.js";

function drift({ state, direction, effect, frames }) {
  if (state === "unknown") return ["Not known", "no calibration, or too few frames yet"];
  if (state === "stable") return ["Stable", `the last ${count(frames, "frame")} score as those of the calibration`];
  const where = { higher: "Drifted higher", lower: "Drifted lower", wider: "Scatter more" }[direction] ?? "Drifted";
  const share = effect === null ? "" : `a frame of late scores higher than one of the calibration ${Math.round(100 * effect)} times of 100 (50: no drift)`;
  return [where, share];
}

function camera({ connected, fault }) {
  if (fault) return [reason(fault).title, reason(fault).advice || fault];
  return connected ? ["Connected", "no fault"] : ["Not connected", ""];
}

const sum = (things) => Object.values(things).reduce((total, n) => total + n, 0);
const told = (things) =>
  Object.entries(things)
    .filter(([, n]) => n)
    .map(([name, n]) => `${name} ${n}`)
    .join(", ");

/** [shape, title, rows]; a row is [label, value, remark, bad]. */
function groups({ health, info, fps }) {
  const found = [];
  if (health) {
    const waiting = { ...health.queued };
    const outbox = waiting.outbox_bytes;
    delete waiting.outbox_bytes;
    const lost = sum(health.dropped);
    found.push(
      ["photo", "Camera", [
        ["State", ...camera(health.camera), Boolean(health.camera.fault) || !health.camera.connected],
        ["Pictures", `${plain(health.camera.fps)} a second`, count(health.camera.frames, "frame") + " since the start"],
        ["Reconnected", count(health.camera.reconnects, "time")],
        ["Brightness", plain(health.camera.brightness), "mean grey value, 0 to 255"],
        ["Sharpness", score(health.camera.sharpness), ""],
        ["Noise", score(health.camera.noise), "grey values"],
      ]],
      ["drift", "Scores", [
        ["Drift", ...drift(health.drift), health.drift.state === "drift"],
        ["Inspected", count(health.inspected, "frame"), `${plain(fps)} a second now`],
        ["Inference", milliseconds(health.stages_ms.infer?.p50), `99 of 100 within ${milliseconds(health.stages_ms.infer?.p99)}`],
        ["Camera to verdict", milliseconds(health.stages_ms.total?.p50), `99 of 100 within ${milliseconds(health.stages_ms.total?.p99)}`],
      ]],
      ["slider", "Device", [
        ["Running for", span(1000 * health.uptime_s)],
        ["Memory", bytes(health.resident_bytes)],
        ["Waiting", sum(waiting) ? told(waiting) : "nothing", outbox ? `${bytes(outbox)} on disk` : ""],
        ["Lost", lost ? told(health.dropped) : "nothing", "since the start", lost > 0],
        ...Object.entries(health.temperatures_c).slice(0, 4).map(([zone, degrees]) => [zone, `${plain(degrees)} °C`]),
      ]],
    );
  }
  if (info) {
    found.push(["wall", "Set up", [
      ["Model", info.bundle_name, info.bundle_sha256?.slice(0, 12) ?? ""],
      ["Threshold", score(info.threshold), info.calibrated_at ? `calibrated ${clock(info.calibrated_at)}` : "not calibrated"],
      ["Engine", info.engine_backend, `${info.engine_device}, ${info.engine_precision}`],
      ["Camera", info.camera_url, info.frame_width ? `${info.frame_width} × ${info.frame_height} pixels` : ""],
      ["Version", info.version],
    ]]);
  }
  return found;
}

/** Fills the panel anew; the last health message may be old, so it says when it came. */
export function drawHealth(body, station) {
  const found = groups(station);
  if (!found.length) {
    body.replaceChildren(h("p", { class: "quiet" }, "The station has not told yet how it does."));
    return;
  }
  body.replaceChildren(
    ...found.map(([shape, title, rows]) =>
      h(
        "div",
        { class: "group" },
        h("h3", {}, icon(shape), title),
        h(
          "dl",
          {},
          rows.map(([label, value, remark, bad]) =>
            h("div", { data: bad ? { bad: "1" } : {} }, h("dt", {}, label), h("dd", {}, bad && icon("warn"), h("b", {}, value), remark && h("small", {}, remark))),
          ),
        ),
      ),
    ),
  );
}
