// What the browser knows, kept up to date by server-sent events. Pages listen to it and draw.
import * as api from "./api.js";

const SILENCE = 12000; // ms without a word, after which we ask whether the dashboard is still there
const bus = new EventTarget();

export const store = {
  me: null,
  stations: new Map(), // path → station
  loaded: false,
  link: "connecting", // "up", "down"
};

/** Calls `act` with the detail of every event of that type until `signal` aborts. */
export function on(type, act, signal) {
  bus.addEventListener(type, (event) => act(event.detail), { signal });
}

const emit = (type, detail) => bus.dispatchEvent(new CustomEvent(type, { detail }));

export const openAlerts = () =>
  [...store.stations.values()]
    .flatMap((station) => station.open_alerts)
    .sort((a, b) => (a.opened_at < b.opened_at ? 1 : a.opened_at > b.opened_at ? -1 : 0));

let known = null; // alerts that were open before: only others are news
const MOST_KNOWN = 5000;

function notice(alerts) {
  const first = known === null;
  known ??= new Set();
  const fresh = alerts.filter((alert) => alert.state === "open" && !known.has(alert.url));
  for (const alert of fresh) known.add(alert.url);
  while (known.size > MOST_KNOWN) known.delete(known.values().next().value);
  if (!first && fresh.length) emit("new-alerts", fresh);
}

// --- events ---

let source = null;
let heard = 0;
let retry = 0;
let waiting = null; // events that came while the whole was being loaded

function takeStation(view) {
  const before = store.stations.get(view.path);
  // info, health and spark come only when they have changed.
  store.stations.set(view.path, before ? Object.assign(before, view) : { info: null, health: null, spark: [], ...view });
  if (!before) emit("stations");
  emit("station", view.path);
  notice(view.open_alerts);
}

function takeAlert(alert) {
  const station = store.stations.get(alert.station);
  if (station) {
    const others = station.open_alerts.filter((one) => one.id !== alert.id);
    station.open_alerts = alert.state === "open" ? [...others, alert] : others;
    emit("station", alert.station);
  }
  emit("alert", alert);
  notice([alert]);
}

function takeRemoved({ path }) {
  if (store.stations.delete(path)) emit("stations");
}

function takeMe(told) {
  const version = store.me?.version;
  store.me = { ...store.me, ...told };
  if (version && told.version && told.version !== version) emit("new-version");
  emit("me");
}

const TAKERS = { station: takeStation, alert: takeAlert, removed: takeRemoved, me: takeMe };

function take(name, data) {
  heard = performance.now();
  if (waiting) waiting.push([name, data]);
  else TAKERS[name](data);
}

function setLink(link) {
  if (store.link === link) return;
  store.link = link;
  emit("link");
}

async function loadAll() {
  waiting = [];
  try {
    const [me, { stations }] = [await api.me(), await api.get("/api/stations")];
    takeMe(me);
    store.stations = new Map(stations.map((view) => [view.path, view]));
    store.loaded = true;
    emit("stations");
    for (const path of store.stations.keys()) emit("station", path);
    notice(stations.flatMap((view) => view.open_alerts));
  } finally {
    const late = waiting;
    waiting = null;
    for (const [name, data] of late ?? []) TAKERS[name](data);
  }
  emit("loaded");
}

function again() {
  clearTimeout(retry);
  retry = setTimeout(connect, 1000);
}

/** Opens the stream of events, anew if there is one. */
export function connect() {
  clearTimeout(retry);
  source?.close();
  const mine = new EventSource("/api/events");
  source = mine;
  heard = performance.now();
  mine.onopen = async () => {
    heard = performance.now();
    try {
      await loadAll();
      if (source === mine) setLink("up");
    } catch (error) {
      if (source !== mine) return;
      mine.close();
      lost(error);
    }
  };
  mine.onerror = () => {
    if (source !== mine) return;
    setLink("down");
    // After an answer such as a proxy's 502 the browser gives up; we do not.
    if (mine.readyState === EventSource.CLOSED) probe();
  };
  for (const name of Object.keys(TAKERS)) mine.addEventListener(name, (event) => take(name, JSON.parse(event.data)));
}

function lost(error) {
  if (error.status === 401 || error.status === 403) emit("log-in");
  setLink("down");
  again();
}

async function probe() {
  try {
    takeMe(await api.me());
    if (store.me.may_look === false) emit("log-in");
  } catch {
    // No answer: still away.
  }
  again();
}

// A connection may die without a word, as when a cable is pulled. Stations talk all the time; where none does, we ask.
setInterval(async () => {
  if (!source || store.link !== "up" || performance.now() - heard < SILENCE) return;
  try {
    takeMe(await api.me());
    heard = performance.now();
  } catch {
    setLink("down");
    connect();
  }
}, 4000);

/** Who we are; asked before the first event, so that a page without the right to look can show the log-in. */
export async function whoAmI() {
  takeMe(await api.me());
  return store.me;
}

/** Closes the stream while nobody looks: a browser has six connections to a server, for all of its tabs. */
export function rest() {
  clearTimeout(retry);
  source?.close();
  source = null;
}

export const resting = () => source === null;
