// A score beside its threshold: a bar whose threshold always stands at the same place, and the last minute as a line.
import { h, mark, s, say } from "./dom.js";
import { ratio, score as number } from "./words.js";

const TOP = 1.5; // thresholds that the bar is long

/** The figure and the bar. `update(score)` takes a station's `score`, or null. */
export function gauge() {
  const part = h("span", { class: "part" }, "–");
  const exact = h("span", { class: "exact" });
  const fill = h("span", { class: "gauge-fill" });
  const bar = h(
    "div",
    { class: "gauge", role: "meter", "aria-label": "Score in parts of the threshold", "aria-valuemin": 0, "aria-valuemax": 100 * TOP },
    fill,
    h("span", { class: "gauge-mark" }),
  );
  const node = h("div", { class: "score" }, h("div", { class: "figures" }, part, h("span", { class: "of" }, "of the threshold"), exact), bar);
  return {
    node,
    update(told) {
      const share = told ? told.score / told.threshold : 0;
      say(part, told ? ratio(told.score, told.threshold) : "–");
      say(exact, told ? `${number(told.score)} / ${number(told.threshold)}` : "no score now");
      fill.style.setProperty("transform", `scaleX(${Math.max(0, Math.min(1, (share || 0) / TOP)).toFixed(4)})`);
      mark(node, "data-over", told?.anomalous ? "1" : null);
      const value = Math.round(Math.max(0, Math.min(TOP, share || 0)) * 100);
      mark(bar, "aria-valuenow", value);
      mark(bar, "aria-valuetext", told ? `${ratio(told.score, told.threshold)} of the threshold` : "no score now");
    },
  };
}

const WIDTH = 120;
const HEIGHT = 30;
const GAP = 8000; // ms that the line bridges

/** The last minute. `update(points, threshold)` takes [[ms, score or null], …]. */
export function spark() {
  const path = s("path", { class: "spark-line" });
  const limit = s("path", { class: "spark-limit" });
  const over = s("path", { class: "spark-over" });
  const node = s(
    "svg",
    { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": "Scores of the last minute" },
    limit,
    path,
    over,
  );
  return {
    node,
    update(points, threshold) {
      if (!points?.length || !threshold) {
        for (const one of [path, limit, over]) mark(one, "d", "");
        return;
      }
      const start = points[0][0];
      const length = Math.max(1, points[points.length - 1][0] - start);
      const y = (value) => (HEIGHT - 1.5 - (HEIGHT - 3) * Math.min(1, Math.max(0, value / threshold / TOP))).toFixed(1);
      let line = "";
      let peaks = "";
      let last = -Infinity;
      for (const [time, value] of points) {
        if (value === null) continue; // a second without a frame
        const x = ((WIDTH * (time - start)) / length).toFixed(1);
        // A dot where nothing came for long: a slow line's frames must be seen, too.
        line += time - last > GAP ? `M${x} ${y(value)}h.01` : `L${x} ${y(value)}`;
        last = time;
        if (value > threshold) peaks += `M${x} ${y(threshold)}V${y(value)}`;
      }
      mark(path, "d", line);
      mark(over, "d", peaks);
      mark(limit, "d", `M0 ${y(threshold)}H${WIDTH}`);
    },
  };
}
