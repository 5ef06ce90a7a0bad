// The gallery of alerts, newest first.
import * as api from "./api.js";
import { announce, toast } from "./dialogs.js";
import { h, mark, place, say, show } from "./dom.js";
import { icon, redraw } from "./icons.js";
import { map, picture } from "./picture.js";
import { go } from "./router.js";
import { on, store } from "./store.js";
import { VERDICTS, clock, count, fullTime, position, times } from "./words.js";

const PAGE = 60;

/** An alert as a picture with few words; `update(alert)`. */
export function alertTile(alert, withStation = true) {
  const shot = picture({ lazy: true, empty: "No picture" });
  const name = h("span", { class: "name" });
  const peak = h("span", { class: "peak" });
  const time = h("time", { class: "quiet" });
  const verdictIcon = icon("check");
  const verdictWord = h("span", {});
  const verdict = h("span", { class: "verdict" }, verdictIcon, verdictWord);
  const open = h("span", { class: "flag" }, icon("alert"), "Open");
  const where = h("span", { class: "quiet place" });
  const place_ = h("span", { class: "place-map" });
  const link = h("a", { class: "tile" }, h("div", { class: "shot" }, shot.node, open, verdict), h("span", { class: "tile-words" }, h("span", {}, name, peak, time, where), place_));
  const tile = {
    alert,
    link,
    node: h("li", {}, link),
    update(told) {
      tile.alert = told;
      mark(link, "href", api.alertPage(told));
      shot.update({ url: told.image_url, width: told.frame_width, height: told.frame_height });
      say(name, withStation ? told.station.split("/").at(-1) : "");
      show(name, withStation);
      say(peak, times(told.peak_score, told.threshold));
      say(time, clock(told.opened_at));
      mark(time, "datetime", told.opened_at);
      mark(time, "title", fullTime(told.opened_at));
      say(where, position(told.peak_boxes, told.frame_width, told.frame_height));
      place_.replaceChildren(map(told.peak_boxes, told.frame_width, told.frame_height));
      show(open, told.state === "open");
      const said = VERDICTS[told.feedback?.verdict];
      show(verdict, Boolean(said));
      if (said) {
        redraw(verdictIcon, said.icon);
        say(verdictWord, said.word);
        mark(verdict, "data-verdict", told.feedback.verdict);
      }
    },
  };
  tile.update(alert);
  return tile;
}

/** What the gallery has loaded; the page of an alert takes its neighbours from it. */
export const shown = { query: null, alerts: [], next: null };

export async function loadMore(query, fresh) {
  const before = fresh || !shown.next ? "" : `&before=${encodeURIComponent(shown.next)}`;
  const told = await api.get(`/api/alerts?${query}${query ? "&" : ""}limit=${PAGE}${before}`);
  shown.alerts = fresh ? told.alerts : [...shown.alerts, ...told.alerts];
  shown.query = query;
  shown.next = told.next;
}

/** Says what somebody thinks of an alert; returns it as it is then. */
export async function judge(alert, verdict, note = "") {
  const told = await api.post(`${api.alertApi(alert.station, alert.id)}/feedback`, { verdict, note });
  const at = shown.alerts.findIndex((one) => one.url === told.url);
  if (at >= 0) shown.alerts[at] = told;
  announce(verdict === "withdrawn" ? "Judgement withdrawn" : VERDICTS[verdict].word);
  return told;
}

const FILTERS = ["station", "state", "verdict"];

export function gallery(root, _parts, signal) {
  const asked = new URLSearchParams(location.search);
  const query = new URLSearchParams(FILTERS.flatMap((key) => (asked.get(key) ? [[key, asked.get(key)]] : []))).toString();

  const select = (key, label, options) => {
    const box = h("select", { id: `by-${key}`, onchange: () => filter(key, box.value) }, options.map(([value, word]) => h("option", { value, selected: (asked.get(key) ?? "") === value }, word)));
    return { box, node: h("div", { class: "filter" }, h("label", { for: `by-${key}` }, label), box) };
  };
  function filter(key, value) {
    const wanted = new URLSearchParams(query);
    if (value) wanted.set(key, value);
    else wanted.delete(key);
    go(`/alerts${wanted.size ? `?${wanted}` : ""}`, { replace: true });
    document.getElementById(`by-${key}`)?.focus();
  }
  const paths = () => [...new Set([...store.stations.keys(), asked.get("station")].filter(Boolean))].sort();
  const stationOptions = () => [["", "All stations"], ...paths().map((path) => [path, path.split("/").join(" · ")])];
  const byStation = select("station", "Station", stationOptions());
  const byState = select("state", "State", [["", "Open and closed"], ["open", "Open"], ["closed", "Closed"]]);
  const byVerdict = select("verdict", "Judged", [["", "Judged or not"], ["none", "Not judged"], ["confirmed", "Confirmed"], ["false-alarm", "False alarm"]]);
  const newer = h("button", { class: "button news", type: "button", onclick: () => load(true) }, icon("bell"), h("span", {}));
  const download = h("a", { class: "button", href: "/api/export.zip", download: "feedback.zip", title: "Frames that were judged, as folders for station calibrate" }, icon("download"), h("span", {}, "Judged frames"));
  const list = h("ul", { class: "tiles" });
  const none = h("p", { class: "none", hidden: true }, query ? "No alert is like that." : "No alert yet.");
  const older = h("button", { class: "button older", type: "button", onclick: () => load(false) }, "Older ones");
  const title = h("h1", { tabindex: -1, data: { focus: "1" } }, "Alerts");
  root.append(
    h("div", { class: "gallery-head" }, title, h("div", { class: "filters" }, byStation.node, byState.node, byVerdict.node), h("div", { class: "gallery-tools" }, newer, download)),
    list,
    none,
    h("div", { class: "older-row" }, older),
  );

  const tiles = new Map();
  const fresh = new Set();

  function draw() {
    for (const alert of shown.alerts) {
      if (!tiles.has(alert.url)) tiles.set(alert.url, alertTile(alert));
      else if (tiles.get(alert.url).alert !== alert) tiles.get(alert.url).update(alert);
    }
    place(list, shown.alerts.map((alert) => tiles.get(alert.url).node));
    show(none, !shown.alerts.length);
    show(older, Boolean(shown.next));
    mark(newer, "data-quiet", fresh.size ? null : "1");
    newer.disabled = !fresh.size;
    say(newer.querySelector("span"), fresh.size ? count(fresh.size, "new alert") : "Up to date");
    show(download, Boolean(store.me?.may_act));
  }

  async function load(again) {
    older.disabled = true;
    try {
      await loadMore(query, again);
      if (signal.aborted) return;
      // What came while the answer was under way may not be in it.
      for (const { url } of shown.alerts) fresh.delete(url);
      draw();
    } catch (error) {
      toast(error.message, "bad");
    } finally {
      older.disabled = false;
    }
  }

  on("alert", (alert) => {
    const at = shown.alerts.findIndex((one) => one.url === alert.url);
    if (at >= 0) shown.alerts[at] = alert;
    // A new one waits above the list: nothing may jump away under a finger.
    else if (alert.state === "open" && (!asked.get("station") || asked.get("station") === alert.station) && asked.get("state") !== "closed" && !["confirmed", "false-alarm"].includes(asked.get("verdict"))) fresh.add(alert.url);
    draw();
  }, signal);
  on("me", draw, signal);
  on("loaded", () => load(true), signal);
  on("stations", () => {
    const options = stationOptions();
    if (options.length !== byStation.box.options.length) {
      byStation.box.replaceChildren(...options.map(([value, word]) => h("option", { value, selected: (asked.get("station") ?? "") === value }, word)));
    }
  }, signal);

  // --- keyboard ---

  const links = () => [...list.querySelectorAll("a.tile")];
  function move(step) {
    const all = links();
    if (!all.length) return;
    const at = all.indexOf(document.activeElement);
    const columns = all.filter((link) => link.offsetTop === all[0].offsetTop).length;
    const next = at < 0 ? 0 : at + (step === "row" ? columns : step === "-row" ? -columns : step);
    if (next >= 0 && next < all.length) {
      all[next].focus();
      all[next].scrollIntoView({ block: "nearest" });
    }
  }
  async function judgeFocused(verdict) {
    const tile = [...tiles.values()].find(({ link }) => link === document.activeElement);
    if (!tile || !store.me?.may_act) return;
    try {
      tile.update(await judge(tile.alert, verdict));
    } catch (error) {
      toast(error.message, "bad");
    }
  }
  if (shown.query === query) draw();
  if (store.loaded) load(true); // else "loaded" is still to come
  return {
    title: "Alerts",
    keys: [
      ["ArrowRight", "Next", () => move(1)],
      ["ArrowLeft", "Previous", () => move(-1)],
      ["ArrowDown", "Next row", () => move("row")],
      ["ArrowUp", "Previous row", () => move("-row")],
      ["Enter", "Open", () => document.activeElement?.click()],
      ["f", "The chosen one is a false alarm", () => judgeFocused("false-alarm")],
      ["c", "The chosen one is confirmed", () => judgeFocused("confirmed")],
      ["u", "Withdraw that", () => judgeFocused("withdrawn")],
    ],
  };
}
