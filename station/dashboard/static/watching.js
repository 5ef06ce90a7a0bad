// Tells the server which stations somebody looks at, so that it asks only those for pictures.
import * as api from "./api.js";

const EVERY = 10000; // ms

/** `paths()` → those that are in sight now; asked until `signal` aborts. */
export function watching(paths, signal) {
  const tell = () => {
    if (document.visibilityState !== "visible") return;
    for (const path of paths()) api.post(`${api.stationApi(path)}/watching`).catch(() => {}); // no picture then
  };
  const timer = setInterval(tell, EVERY);
  const soon = setTimeout(tell, 300);
  signal.addEventListener("abort", () => {
    clearInterval(timer);
    clearTimeout(soon);
  });
  return tell;
}

/** Calls `act` every second until `signal` aborts. */
export function everySecond(act, signal) {
  const timer = setInterval(act, 1000);
  signal.addEventListener("abort", () => clearInterval(timer));
}

/** Collects what has changed and calls `draw(changed)` once, before the next frame is painted. */
export function gather(draw, signal) {
  const changed = new Set();
  let asked = 0;
  signal.addEventListener("abort", () => cancelAnimationFrame(asked));
  return (what) => {
    changed.add(what);
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      const all = new Set(changed);
      changed.clear();
      draw(all);
    });
  };
}
