// What this browser's user has chosen; theme.js applies colours and type size before the first paint.

const root = document.documentElement;

export function remembered(key, otherwise) {
  try {
    return localStorage.getItem(key) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // Storage is blocked: it holds until the page is left.
  }
}

const changes = new EventTarget();

/** Calls `act` when the colours have changed, by hand or by the system. */
export const onColours = (act, signal) => changes.addEventListener("colours", act, { signal });

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => changes.dispatchEvent(new Event("colours")));

const THEMES = ["auto", "light", "dark"];
export const theme = () => root.dataset.theme ?? "auto";

export function nextTheme() {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  if (next === "auto") delete root.dataset.theme;
  else root.dataset.theme = next;
  remember("theme", next);
  changes.dispatchEvent(new Event("colours"));
  return next;
}

export const big = () => root.dataset.big === "1";

export function toggleBig() {
  if (big()) delete root.dataset.big;
  else root.dataset.big = "1";
  remember("big", big() ? "1" : "0");
  return big();
}
