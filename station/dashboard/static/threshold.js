// The dialog that sets a threshold, and shows before what it would have done to the last frames.
import * as api from "./api.js";
import { openDialog, toast } from "./dialogs.js";
import { h, mark, s, say } from "./dom.js";
import { count, score as number } from "./words.js";

const STEPS = 1000; // of the slider
const BINS = 60;
const [WIDTH, HEIGHT] = [600, 130];

/** Frames that a threshold flags: the station calls a frame anomalous when its score is above it. */
export const flagged = (scores, threshold) => scores.reduce((n, score) => n + (score > threshold), 0);

/** As exact as a slider's step is worth. */
const round = (value) => Number(value.toPrecision(4));

function histogram(scores, top) {
  const bins = new Array(BINS).fill(0);
  for (const score of scores) bins[Math.min(BINS - 1, Math.max(0, Math.floor((BINS * score) / top)))] += 1;
  const most = Math.max(1, ...bins);
  const width = WIDTH / BINS;
  return bins.map((n, index) => {
    // A single frame among a thousand must be seen: it is what this is about.
    const tall = n ? Math.max(3, (HEIGHT - 6) * Math.sqrt(n / most)) : 0;
    return s("rect", { class: "bin", x: (index * width + 0.75).toFixed(2), y: (HEIGHT - tall).toFixed(2), width: (width - 1.5).toFixed(2), height: tall.toFixed(2) });
  });
}

export async function setThreshold(station) {
  let told;
  try {
    told = await api.get(`${api.stationApi(station.path)}/recent-scores`);
  } catch (error) {
    toast(error.message, "bad");
    return;
  }
  const { scores } = told;
  const current = told.threshold ?? station.info?.threshold ?? 1;
  const sorted = [...scores].sort((a, b) => a - b);
  // Most of the scores and twice the threshold; a few far outliers pile up in the last bin.
  const typical = sorted[Math.floor(0.98 * sorted.length)] ?? 0;
  const top = Math.max(2 * current, 1.1 * typical);
  let wanted = current;

  const slider = h("input", { type: "range", min: 1, max: STEPS, step: 1, id: "slide", "aria-label": "Threshold, by slider" });
  const exact = h("input", { type: "number", min: 0, step: "any", id: "exact", inputmode: "decimal" });
  const bars = histogram(scores, top);
  const line = s("path", { class: "limit-new" });
  const was = s("path", { class: "limit-now", d: `M${(WIDTH * current) / top} 0V${HEIGHT}` });
  const picture = s("svg", { class: "histogram", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": "How often which score came, low scores left" }, bars, was, line);
  const would = h("p", { class: "would", role: "status" });
  const does = h("p", { class: "quiet" });

  function draw() {
    const n = flagged(scores, wanted);
    const share = scores.length ? ` (${number((100 * n) / scores.length)} %)` : "";
    say(would, scores.length ? `${number(wanted)} would have flagged ${n} of the last ${count(scores.length, "frame")}${share}` : "No frame was inspected yet: nothing to compare with");
    say(does, `The threshold now is ${number(current)}${scores.length ? `, which flags ${flagged(scores, current)} of them` : ""}. One defect spans several frames, so there are fewer alerts than frames.`);
    mark(line, "d", `M${(WIDTH * Math.min(wanted, top)) / top} 0V${HEIGHT}`);
    bars.forEach((bar, index) => mark(bar, "data-over", ((index + 0.5) * top) / BINS > wanted ? "1" : null));
  }
  slider.value = String(Math.round((STEPS * current) / top));
  exact.value = String(round(current));
  slider.addEventListener("input", () => {
    wanted = round((top * Number(slider.value)) / STEPS);
    exact.value = String(wanted);
    draw();
  });
  exact.addEventListener("input", () => {
    wanted = Number(exact.value);
    slider.value = String(Math.round((STEPS * wanted) / top));
    draw();
  });
  draw();

  openDialog(
    `Threshold of ${station.name}`,
    [
      would,
      picture,
      h("div", { class: "legend" }, h("span", { class: "swatch now" }), "now", h("span", { class: "swatch new" }), "new", h("span", { class: "swatch over" }), "flagged"),
      slider,
      h("label", { for: "exact" }, "Threshold"),
      exact,
      does,
    ],
    [
      {
        word: "Set threshold",
        kind: "primary",
        act: async () => {
          if (!(wanted > 0 && wanted <= 1e9)) throw new Error("A threshold is a number above 0.");
          const answer = await command(station.path, "set-threshold", { threshold: wanted });
          toast(`${station.name}: threshold ${number(answer.threshold ?? wanted)}, was ${number(answer.was ?? current)}`);
        },
      },
    ],
  );
}

/** Sends a command; returns the station's result, or throws what it says. */
export async function command(path, verb, body = {}) {
  const answer = await api.post(`${api.stationApi(path)}/commands/${verb}`, body);
  if (!answer.ok) throw new Error(answer.error ?? "the station refused");
  return answer.result ?? {};
}
