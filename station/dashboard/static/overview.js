// The wall: every station at its own place, whatever happens; what needs somebody is gathered above.
import * as api from "./api.js";
import { h, mark, place, say, show } from "./dom.js";
import { gauge, spark } from "./gauge.js";
import { icon, redraw } from "./icons.js";
import { picture } from "./picture.js";
import { on, openAlerts, store } from "./store.js";
import { everySecond, gather, watching } from "./watching.js";
import { ago, condition, count, line, position, scoreNow, span, times, troubled } from "./words.js";

const MOST_TILES = 30;

function card(path) {
  const state = icon("waiting");
  const word = h("span", {});
  const chip = h("span", { class: "chip" }, state, word);
  const name = h("span", { class: "name" });
  const where = h("span", { class: "where" });
  const shot = picture({ empty: "" });
  const meter = gauge();
  const minute = spark();
  const note = h("p", { class: "note" });
  const flagWords = h("span", {});
  const flag = h("span", { class: "flag", hidden: true }, icon("alert"), flagWords);
  const age = h("span", { class: "age" });
  const node = h(
    "li",
    { class: "card", data: { path } },
    h("a", { class: "cover", href: api.stationPage(path) }, name, where),
    h("div", { class: "shot" }, shot.node, chip, flag, age),
    h("div", { class: "reading" }, meter.node, minute.node),
    note,
  );
  return {
    node,
    tick() {
      const station = store.stations.get(path);
      say(age, station?.picture?.captured_at ? ago(station.picture.captured_at) : "");
    },
    update() {
      const station = store.stations.get(path);
      if (!station) return;
      const how = condition(station);
      const open = station.open_alerts.length;
      mark(node, "data-tone", how.tone);
      mark(node, "data-alert", open ? "1" : null);
      redraw(state, how.icon);
      say(word, how.word);
      say(name, station.name);
      say(where, `${station.site} · ${station.line}`);
      show(flag, open > 0);
      say(flagWords, open === 1 ? "Defect" : `${open} defects`);
      const last = station.open_alerts.at(-1);
      shot.update({
        url: station.picture?.url ?? null,
        width: station.info?.frame_width ?? last?.frame_width,
        height: station.info?.frame_height ?? last?.frame_height,
      });
      const current = scoreNow(station);
      mark(node, "data-stale", current ? null : "1");
      meter.update(current);
      minute.update(current ? station.spark : [], current?.threshold);
      say(note, line(station));
      this.tick();
    },
  };
}

function alertTile(alert) {
  const shot = picture({ empty: "" });
  const peak = h("span", { class: "peak" });
  const where = h("span", { class: "quiet" });
  const age = h("span", { class: "quiet" });
  const node = h(
    "a",
    { class: "attention alert", href: api.alertPage(alert) },
    shot.node,
    h("span", { class: "words" }, h("span", { class: "title" }, icon("alert"), h("span", {}, alert.station.split("/").at(-1))), peak, where, age),
  );
  return {
    node,
    tick: () => say(age, `for ${span(api.now() - Date.parse(alert.opened_at))}`),
    update(told) {
      alert = told;
      shot.update({ url: told.image_url, width: told.frame_width, height: told.frame_height });
      say(peak, times(told.peak_score, told.threshold));
      say(where, position(told.boxes, told.frame_width, told.frame_height));
      this.tick();
    },
  };
}

function troubleTile({ path }) {
  const shape = icon("warn");
  const name = h("span", {});
  const word = h("span", { class: "peak" });
  const why = h("span", { class: "quiet" });
  const node = h("a", { class: "attention", href: api.stationPage(path) }, h("span", { class: "words" }, h("span", { class: "title" }, shape, name), word, why));
  return {
    node,
    tick: () => {},
    update(station) {
      const how = condition(station);
      mark(node, "data-tone", how.tone === "ok" ? "warn" : how.tone);
      redraw(shape, how.extra ?? how.icon);
      say(name, station.name);
      say(word, how.extra && how.lead ? how.lead.title : how.word);
      say(why, how.extra && how.lead ? how.lead.advice : how.lead?.title !== how.word ? line(station) : how.lead?.advice ?? "");
    },
  };
}

/**
 * A row of tiles that stay where they are: one that goes leaves its place empty for the next that comes, so that
 * nothing moves away under a finger. `update([[key, told], …], make)`.
 */
function slots(label, shape, words) {
  const calm = h("p", { class: "calm" }, icon(shape), h("span", {}, words));
  const node = h("div", { class: "slots", role: "group", "aria-label": label }, calm);
  let places = []; // {key, tile}; a key that is null: gone
  return {
    node,
    tiles: () => places.filter(({ key }) => key !== null).map(({ tile }) => tile),
    update(wanted, make) {
      const told = new Map(wanted);
      const had = places.length;
      for (const place of places) if (!told.has(place.key)) place.key = null;
      for (const [key, one] of told) {
        let place = places.find((known) => known.key === key);
        if (!place) {
          place = places.find((known) => known.key === null) ?? places[places.push({}) - 1];
          Object.assign(place, { key, tile: make(one) });
        }
        place.tile.update(one);
      }
      while (places.length && places.at(-1).key === null) places.pop();
      for (const { key, tile } of places) mark(tile.node, "data-gone", key === null ? "1" : null);
      const before = node.scrollWidth;
      place(node, places.length ? places.map(({ tile }) => tile.node) : store.loaded ? [calm] : []);
      // What has just come must be seen, unless somebody is about to press something here.
      if (had && node.scrollWidth > before && !node.matches(":hover, :focus-within")) node.scrollLeft = node.scrollWidth;
    },
  };
}

/** What one reads from the door. */
function headline(stations, open) {
  if (!store.loaded) return "Listening …";
  if (!stations.length) return "No station has been heard yet";
  const words = [];
  if (open) words.push(count(open, "open alert"));
  const away = stations.filter((station) => ["offline", "unknown"].includes(station.state)).length;
  const faults = stations.filter((station) => condition(station).tone === "warn").length;
  if (away) words.push(`${away} out of reach`);
  if (faults) words.push(`${faults} with a fault`);
  if (words.length) return words.join(", ");
  const running = stations.filter((station) => station.state === "online").length;
  if (running < stations.length) return `No alerts, ${running} of ${count(stations.length, "station")} running`;
  return stations.length === 1 ? "The station is running, no alerts" : `All ${stations.length} stations running, no alerts`;
}

const TALLY = [
  ["ok", "ok", "running"],
  ["warn", "warn", "faulty"],
  ["idle", "paused", "at rest"],
  ["down", "offline", "away"],
];

export function overview(root, _parts, signal) {
  const title = h("h1", { class: "headline", tabindex: -1, data: { focus: "1" } });
  const tallies = TALLY.map(([tone, shape, word]) => {
    const n = h("b", {}, "0");
    return { tone, n, node: h("li", { data: { tone } }, icon(shape), n, h("span", {}, word)) };
  });
  const alerts = slots("Open alerts", "ok", "No open alerts");
  const troubles = slots("Stations that need somebody", "ok", "Nothing else needs you");
  const rail = h("div", { class: "rail" }, alerts.node, troubles.node);
  const wall = h("ul", { class: "wall", "aria-label": "Stations" });
  const none = h(
    "div",
    { class: "none", hidden: true },
    h("p", {}, "Stations show up here as soon as they say something on the broker."),
    h("p", { class: "quiet" }, "Is the dashboard connected to the broker that they publish to, and does dashboard.stations name them?"),
  );
  root.append(h("div", { class: "summary" }, title, h("ul", { class: "tally", "aria-label": "Stations by state" }, tallies.map(({ node }) => node))), rail, wall, none);

  const cards = new Map();
  const inSight = new Set();
  const sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) inSight[isIntersecting ? "add" : "delete"](target.dataset.path);
  });
  signal.addEventListener("abort", () => sight.disconnect());

  function drawRail(stations) {
    alerts.update(openAlerts().slice(0, MOST_TILES).map((alert) => [alert.url, alert]), alertTile);
    const rank = { down: 0, warn: 1, ok: 2, idle: 3 };
    const inTrouble = stations.filter(troubled).sort((a, b) => rank[condition(a).tone] - rank[condition(b).tone]);
    troubles.update(inTrouble.slice(0, MOST_TILES).map((station) => [station.path, station]), troubleTile);
  }

  function drawAll(changed) {
    const stations = [...store.stations.values()].sort((a, b) => a.path.localeCompare(b.path, "en", { numeric: true }));
    if (changed.has(null)) {
      for (const [path, one] of cards) {
        if (store.stations.has(path)) continue;
        sight.unobserve(one.node);
        inSight.delete(path);
        cards.delete(path);
      }
      for (const { path } of stations) {
        if (cards.has(path)) continue;
        const one = card(path);
        cards.set(path, one);
        sight.observe(one.node);
        one.update();
      }
      mark(wall, "data-many", stations.length > 8 ? "1" : null);
      place(wall, stations.map(({ path }) => cards.get(path).node));
      show(none, store.loaded && !stations.length);
    }
    for (const path of changed) if (path !== null) cards.get(path)?.update();
    drawRail(stations);
    const open = openAlerts().length;
    say(title, headline(stations, open));
    mark(title, "data-alert", open ? "1" : null);
    for (const { tone, n, node } of tallies) {
      const many = stations.filter((station) => condition(station).tone === tone).length;
      say(n, String(many));
      mark(node, "data-zero", many ? null : "1");
    }
  }

  const draw = gather(drawAll, signal);
  on("stations", () => draw(null), signal);
  on("station", draw, signal);
  everySecond(() => {
    for (const one of [...cards.values(), ...alerts.tiles(), ...troubles.tiles()]) one.tick();
  }, signal);
  watching(() => inSight, signal);
  drawAll(new Set([null]));
  return { title: "Stations" };
}
