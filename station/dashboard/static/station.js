// One station: its picture, its scores, how it does, and what it can be told.
import * as api from "./api.js";
import { alertTile } from "./alerts.js";
import { chart } from "./chart.js";
import { openDialog, toast } from "./dialogs.js";
import { h, mark, place, refill, say, show } from "./dom.js";
import { gauge, spark } from "./gauge.js";
import { drawHealth } from "./health.js";
import { icon, redraw } from "./icons.js";
import { picture } from "./picture.js";
import { on, store } from "./store.js";
import { command, setThreshold } from "./threshold.js";
import { everySecond, gather, watching } from "./watching.js";
import { ago, clock, condition, fullTime, reason, scoreNow, span } from "./words.js";

const SHOWN = 8; // alerts

function actions(path, look) {
  const station = () => store.stations.get(path);
  const button = (shape, word, act, kind = "") => h("button", { class: `button ${kind}`, type: "button", onclick: act }, icon(shape), h("span", {}, word));

  async function tell(verb, done) {
    try {
      await command(path, verb);
      toast(done);
    } catch (error) {
      toast(error.message, "bad");
    }
  }
  const pause = button("paused", "Pause", () =>
    openDialog(
      `Pause ${station().name}?`,
      h("p", {}, "Nothing is inspected until somebody resumes or the station is started anew. Open alerts are closed."),
      [{ word: "Pause", kind: "primary", act: async () => (await command(path, "pause"), toast(`${station().name} is paused`)) }],
    ),
  );
  const resume = button("ok", "Resume", () => tell("resume", `${station().name} inspects again`), "primary");
  const snapshot = button("photo", "New picture", async () => {
    await tell("snapshot", "The picture is on its way");
    look();
  });
  const threshold = button("slider", "Threshold …", () => setThreshold(station()));
  const reload = button("reload", "Reload settings", () =>
    openDialog(
      `Reload the settings of ${station().name}?`,
      h("p", {}, "Settings, model and calibration are read anew. With an error in them the station goes on as before and says so."),
      [{ word: "Reload", kind: "primary", act: async () => (await command(path, "reload"), toast(`${station().name} has read its settings`)) }],
    ),
  );
  const may = h("div", { class: "buttons wrap" }, resume, pause, snapshot, threshold, reload);
  const only = h("p", { class: "quiet only" });
  const node = h("section", { class: "panel actions", "aria-labelledby": "actions-title" }, h("h2", { id: "actions-title" }, "Actions"), may, only);
  return {
    node,
    pause: () => (station()?.reasons.some((one) => reason(one).code === "paused") ? resume : pause).click(),
    threshold: () => store.me?.may_act && threshold.click(),
    snapshot: () => store.me?.may_act && snapshot.click(),
    update() {
      const { me } = store;
      show(may, Boolean(me?.may_act));
      show(only, !me?.may_act);
      if (!me?.may_act) {
        refill(
          only,
          ...(me?.user ? [`${me.user} may look, not act.`] : me?.login ? ["You may look. ", h("a", { href: `/login?next=${encodeURIComponent(location.pathname)}` }, "Log in"), " to act."] : ["This page only shows; nobody is set up to act here."]),
        );
      }
      const paused = station()?.reasons.some((one) => reason(one).code === "paused");
      show(resume, Boolean(paused));
      show(pause, !paused);
      const there = ["online", "degraded"].includes(station()?.state);
      for (const one of [pause, resume, snapshot, threshold, reload]) one.disabled = !there;
    },
  };
}

export function stationPageOf(root, { site, line, name }, signal) {
  const path = `${site}/${line}/${name}`;
  const state = icon("waiting");
  const word = h("span", {});
  const since = h("span", { class: "quiet since" });
  const reasons = h("ul", { class: "reasons" });
  const shot = picture();
  const taken = h("span", {});
  const openList = h("div", { class: "open-now" });
  const meter = gauge();
  const minute = spark();
  const acts = actions(path, () => look());
  const scores = chart(path, signal);
  const tiles = h("ul", { class: "tiles small" });
  const all = h("a", { class: "more", href: `/alerts?station=${encodeURIComponent(path)}` }, "All alerts of this station");
  const none = h("p", { class: "quiet" }, "No alert is kept of this station.");
  const healthAge = h("span", { class: "quiet" });
  const healthBody = h("div", { class: "groups" });
  const missing = h("p", { class: "quiet missing", hidden: true }, "Nothing has been heard of a station of this name.");

  root.append(
    h("div", { class: "head" }, h("a", { class: "back", href: "/" }, icon("left"), "Stations"), h("h1", { tabindex: -1, data: { focus: "1" } }, name), h("span", { class: "where" }, `${site} · ${line}`)),
    missing,
    h(
      "div",
      { class: "station" },
      h("section", { class: "panel view", "aria-label": "Picture" }, shot.node, h("p", { class: "caption" }, taken)),
      h(
        "div",
        { class: "side" },
        h("section", { class: "panel state", "aria-label": "State" }, h("div", { class: "state-head" }, h("span", { class: "chip large" }, state, word), since), reasons, openList),
        h("section", { class: "panel", "aria-label": "Score now" }, meter.node, minute.node),
        acts.node,
      ),
    ),
    scores.node,
    h("section", { class: "panel", "aria-labelledby": "latest-title" }, h("div", { class: "panel-head" }, h("h2", { id: "latest-title" }, "Latest alerts"), all), h("div", { class: "latest" }, tiles, none)),
    h("section", { class: "panel health", "aria-labelledby": "health-title" }, h("div", { class: "panel-head" }, h("h2", { id: "health-title" }, "Health"), healthAge), healthBody),
  );

  let heard = false;
  const seen = { health: null, info: null, frame: null, reasons: "" };
  const known = new Map(); // alerts by id, and their tiles

  function drawReasons(station) {
    const signature = JSON.stringify([station.state, station.reasons]);
    if (signature === seen.reasons) return;
    seen.reasons = signature;
    const told = station.reasons.map((text) => {
      const { code, words, title, advice } = reason(text);
      return h("li", {}, icon(code === "scores-drift" ? "drift" : code.startsWith("camera-") ? "camera" : code === "paused" ? "paused" : "warn"), h("div", {}, h("b", {}, title), advice && h("span", {}, advice), words && words !== title && h("small", {}, code ? `${code}: ${words}` : words)));
    });
    if (!told.length) {
      const calm = { online: "Inspects, and finds nothing wrong with itself.", stopped: "It was stopped on purpose.", offline: "The broker has lost it: power, network or program." }[station.state];
      if (calm) told.push(h("li", { class: "calm-line" }, h("div", {}, calm)));
    }
    reasons.replaceChildren(...told);
  }

  function draw() {
    const station = store.stations.get(path);
    show(missing, store.loaded && !station);
    acts.update();
    if (!station) return;
    if (!heard) {
      heard = true;
      scores.reload();
    }
    const how = condition(station);
    mark(root, "data-tone", how.tone);
    redraw(state, how.icon);
    say(word, how.word);
    say(since, station.since ? `since ${clock(station.since)}` : "");
    mark(since, "title", fullTime(station.since));
    drawReasons(station);
    place(openList, station.open_alerts.slice(-3).map((alert) => {
      const key = `open ${alert.id}`;
      if (!known.has(key)) known.set(key, h("a", { class: "open-alert", href: api.alertPage(alert) }, icon("alert"), h("span", {}, `Defect, open since ${clock(alert.opened_at)}`), icon("right")));
      return known.get(key);
    }));
    const last = station.open_alerts.at(-1);
    const { frame_width: width, frame_height: height } = station.info?.frame_width ? station.info : last ?? {};
    shot.update({ url: station.picture?.url, width, height, alt: `Last picture of ${name}` });
    const current = scoreNow(station);
    meter.update(current);
    minute.update(current ? station.spark : [], current?.threshold);
    if (station.score && station.score.captured_at !== seen.frame) {
      seen.frame = station.score.captured_at;
      scores.add(station.score);
    }
    if (station.health !== seen.health || station.info !== seen.info) {
      Object.assign(seen, { health: station.health, info: station.info });
      drawHealth(healthBody, station);
    }
    tick();
  }

  function tick() {
    const station = store.stations.get(path);
    if (!station) return;
    const at = station.picture?.captured_at;
    const kind = station.picture?.kind === "alert" ? "Picture of the last alert" : "Last picture";
    say(taken, at ? `${kind}, ${ago(at)}` : "Pictures come when the station has sent one.");
    say(healthAge, station.health ? `told ${ago(station.health.at)}` : "");
    mark(healthAge, "title", station.health ? `up ${span(1000 * station.health.uptime_s)}` : null);
  }

  async function latest() {
    try {
      const { alerts } = await api.get(`/api/alerts?station=${encodeURIComponent(path)}&limit=${SHOWN}`);
      if (signal.aborted) return;
      for (const alert of alerts) take(alert);
      drawLatest();
    } catch {
      // The banner tells of it; the stream asks again.
    }
  }
  function take(alert) {
    const key = `tile ${alert.id}`;
    if (!known.has(key)) known.set(key, alertTile(alert, false));
    known.get(key).update(alert);
    scores.addAlert(alert);
  }
  function drawLatest() {
    const shown = [...known].filter(([key]) => key.startsWith("tile ")).map(([, tile]) => tile);
    shown.sort((a, b) => (a.alert.opened_at < b.alert.opened_at ? 1 : -1));
    for (const tile of shown.slice(SHOWN)) known.delete(`tile ${tile.alert.id}`);
    place(tiles, shown.slice(0, SHOWN).map((tile) => tile.node));
    show(none, !shown.length);
  }

  const drawSoon = gather(draw, signal);
  on("station", (changed) => changed === path && drawSoon(path), signal);
  on("stations", () => drawSoon(path), signal);
  on("me", () => drawSoon(path), signal);
  on("alert", (alert) => {
    if (alert.station !== path) return;
    take(alert);
    drawLatest();
  }, signal);
  on("loaded", () => {
    scores.reload();
    latest();
  }, signal);
  everySecond(tick, signal);
  const look = watching(() => (store.stations.has(path) ? [path] : []), signal);
  draw();
  if (store.loaded) latest();
  return {
    title: name,
    keys: [
      ["p", "Pause or resume", () => store.me?.may_act && acts.pause()],
      ["s", "New picture", acts.snapshot],
      ["h", "Threshold", acts.threshold],
      ["l", "All alerts of this station", () => all.click()],
    ],
  };
}
