// The scores of the last minutes or hours, with threshold and alerts; drawn by uPlot (vendor/uPlot).
import * as api from "./api.js";
import { h, say } from "./dom.js";
import { remember, remembered, onColours } from "./preferences.js";
import { go } from "./router.js";
import { store } from "./store.js";
import { clock, count, score as number, times } from "./words.js";

const RANGES = [[15, "15 min"], [60, "1 h"], [480, "8 h"], [1440, "24 h"]];
const HEIGHT = 260;
const NEAR = 14; // pixels that a pointer may miss a mark by
const MOST = 4; // thresholds that the chart is high; peaks above it are cut, or the threshold would lie on the floor

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** `path` of a station. Returns {node, add(score), addAlert(alert), reload()}. */
export function chart(path, signal) {
  let minutes = Number(remembered("range", "15"));
  if (!RANGES.some(([value]) => value === minutes)) minutes = 15;
  let [t, scores, thresholds] = [[], [], []]; // seconds, highest scores, thresholds
  let alerts = new Map();
  let plot = null;
  let asked = 0;

  const buttons = RANGES.map(([value, word]) =>
    h("button", { type: "button", class: "segment", onclick: () => choose(value), data: { minutes: value } }, word),
  );
  const field = h("div", { class: "plot", role: "img" });
  const readout = h("p", { class: "readout" });
  const node = h(
    "section",
    { class: "panel chart", "aria-labelledby": "chart-title" },
    h("div", { class: "panel-head" }, h("h2", { id: "chart-title" }, "Scores"), h("div", { class: "segments", role: "group", "aria-label": "Time shown" }, buttons)),
    field,
    readout,
  );

  function choose(value) {
    minutes = value;
    remember("range", String(value));
    for (const button of buttons) button.setAttribute("aria-pressed", String(Number(button.dataset.minutes) === value));
    load();
  }

  const bucket = () => Math.max(1, (minutes * 60) / 1000); // seconds of one point

  async function load() {
    if (!store.stations.has(path)) return; // not heard of it yet
    const mine = ++asked;
    let told;
    try {
      told = await api.get(`${api.stationApi(path)}/scores?minutes=${minutes}`);
    } catch {
      return; // the banner tells of it
    }
    if (mine !== asked || signal.aborted) return;
    [t, scores, thresholds] = [told.t.map((ms) => ms / 1000), told.max, told.threshold];
    alerts = new Map(told.alerts.map((alert) => [alert.id, alert]));
    draw();
  }

  /** The points with a gap wherever none was measured. */
  function data() {
    const gap = Math.max(3 * bucket(), 65);
    const [x, y, limit] = [[], [], []];
    t.forEach((time, index) => {
      if (index && time - t[index - 1] > gap) {
        x.push(t[index - 1] + bucket());
        y.push(null);
        limit.push(null);
      }
      x.push(time);
      y.push(scores[index]);
      limit.push(thresholds[index]);
    });
    return [x, y, limit];
  }

  const highest = () => scores.reduce((most, value) => (value > most ? value : most), 0);

  function top() {
    const limit = thresholds.at(-1) ?? 0;
    const most = highest();
    if (!limit) return most * 1.1 || 1;
    return Math.max(1.5 * limit, Math.min(1.06 * most, MOST * limit));
  }

  /** Alerts as bands, with a mark above. */
  function drawAlerts(u) {
    const { ctx, bbox } = u;
    const pixel = devicePixelRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top - 12 * pixel, bbox.width, bbox.height + 12 * pixel);
    ctx.clip();
    for (const alert of alerts.values()) {
      const start = u.valToPos(Date.parse(alert.opened_at) / 1000, "x", true);
      const end = u.valToPos((alert.closed_at ? Date.parse(alert.closed_at) : api.now()) / 1000, "x", true);
      const width = Math.max(end - start, 2 * pixel);
      if (start + width < bbox.left || start > bbox.left + bbox.width) continue;
      ctx.fillStyle = colour("--bad-band");
      ctx.fillRect(start, bbox.top, width, bbox.height);
      ctx.fillStyle = colour("--bad");
      const middle = start + width / 2;
      const size = 6 * pixel;
      ctx.beginPath(); // the diamond that stands for alerts everywhere
      ctx.moveTo(middle, bbox.top - size);
      ctx.lineTo(middle + size, bbox.top);
      ctx.lineTo(middle, bbox.top + size);
      ctx.lineTo(middle - size, bbox.top);
      ctx.fill();
    }
    ctx.restore();
  }

  function near(u) {
    const { left } = u.cursor;
    if (left === null || left < 0) return null;
    let best = null;
    let least = NEAR;
    for (const alert of alerts.values()) {
      const start = u.valToPos(Date.parse(alert.opened_at) / 1000, "x");
      const end = u.valToPos((alert.closed_at ? Date.parse(alert.closed_at) : api.now()) / 1000, "x");
      const away = left < start ? start - left : left > end ? left - end : 0;
      if (away < least) [best, least] = [alert, away];
    }
    return best;
  }

  function tell(u) {
    const alert = near(u);
    u.over.style.setProperty("cursor", alert ? "pointer" : "crosshair");
    const { idx } = u.cursor;
    if (alert) {
      say(readout, `Alert at ${clock(alert.opened_at)}, peak ${times(alert.peak_score, thresholds.at(-1))}: click to see it`);
    } else if (idx !== null && idx !== undefined && u.data[1][idx] !== null && u.data[1][idx] !== undefined) {
      say(readout, `${clock(u.data[0][idx] * 1000)} · highest score ${number(u.data[1][idx])} · threshold ${number(u.data[2][idx])}`);
    } else summarize();
  }

  function summarize() {
    const word = RANGES.find(([value]) => value === minutes)[1];
    if (!t.length) {
      say(readout, `No scores in the last ${word}`);
    } else {
      const most = highest();
      const at = t[scores.indexOf(most)];
      const cut = most > top() ? ", above the chart" : "";
      say(readout, `Last ${word}: highest ${number(most)} at ${clock(at * 1000)}${cut} · ${count(alerts.size, "alert")}`);
    }
    field.setAttribute("aria-label", `Scores and threshold over time. ${readout.textContent}`);
  }

  function build() {
    plot?.destroy();
    const axis = { stroke: colour("--ink-2"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    plot = new uPlot(
      {
        width: field.clientWidth || 600,
        height: HEIGHT,
        padding: [14, 14, 0, 0],
        legend: { show: false },
        cursor: { y: false, points: { size: 8 }, drag: { x: false, y: false } },
        scales: {
          x: { range: () => [api.now() / 1000 - minutes * 60, api.now() / 1000] },
          y: { range: () => [0, top()] },
        },
        axes: [
          { ...axis, size: 32, values: (_u, splits) => splits.map((value) => new Date(value * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" })) },
          { ...axis, size: 56, values: (_u, splits) => splits.map(number) },
        ],
        series: [
          {},
          { stroke: colour("--line-score"), width: 1.5, fill: colour("--line-fill"), points: { show: false } },
          { stroke: colour("--bad"), width: 2, dash: [7, 5], points: { show: false }, paths: uPlot.paths.stepped({ align: 1 }) },
        ],
        hooks: { draw: [drawAlerts], setCursor: [tell] },
      },
      data(),
      field,
    );
    plot.over.addEventListener("click", () => {
      const alert = near(plot);
      if (alert) go(api.alertPage({ station: path, id: alert.id }));
    });
  }

  function draw() {
    if (signal.aborted) return;
    if (!plot) build();
    else plot.setData(data());
    if (plot.cursor.left === null || plot.cursor.left < 0) summarize();
  }

  const size = new ResizeObserver(() => plot && field.clientWidth && plot.setSize({ width: field.clientWidth, height: HEIGHT }));
  size.observe(field);
  const moving = setInterval(() => document.visibilityState === "visible" && plot && draw(), 1000);
  const anew = setInterval(load, 60000);
  onColours(() => plot && build(), signal);
  signal.addEventListener("abort", () => {
    size.disconnect();
    clearInterval(moving);
    clearInterval(anew);
    plot?.destroy();
  });
  choose(minutes);

  return {
    node,
    reload: load,
    add(told) {
      const time = api.now() / 1000;
      const last = t.length - 1;
      if (last >= 0 && time - t[last] < bucket()) {
        scores[last] = Math.max(scores[last], told.score);
        thresholds[last] = told.threshold;
      } else {
        t.push(time);
        scores.push(told.score);
        thresholds.push(told.threshold);
      }
      const start = time - minutes * 60;
      while (t.length && t[0] < start) [t, scores, thresholds].forEach((values) => values.shift());
    },
    addAlert: (alert) => alerts.set(alert.id, alert),
  };
}
