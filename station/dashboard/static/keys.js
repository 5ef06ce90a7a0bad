// Keyboard shortcuts: those of the whole application, and those of the page that is shown.
import { h } from "./dom.js";
import { remember, remembered } from "./preferences.js";
import { openDialog } from "./dialogs.js";

const everywhere = new Map();
let here = new Map();
// Whoever speaks to their computer says letters all the time: shortcuts of one letter can be switched off.
let enabled = remembered("keys", "1") === "1";

/** `key` as KeyboardEvent.key tells it. */
export const bindEverywhere = (key, label, act) => everywhere.set(key, { label, act });

/** The shortcuts of a page: [[key, label, act], …]; they replace those of the page before. */
export function bindHere(shortcuts) {
  here = new Map(shortcuts.map(([key, label, act]) => [key, { label, act }]));
}

const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Escape: "Esc" };

function typing(target) {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
  if (typing(event.target) || document.querySelector("dialog[open]")) return;
  const found = here.get(event.key) ?? everywhere.get(event.key);
  if (!found || (!enabled && event.key !== "?")) return;
  event.preventDefault();
  found.act();
});

export function showHelp() {
  const rows = (shortcuts) =>
    [...shortcuts].map(([key, { label }]) => h("tr", {}, h("td", {}, h("kbd", {}, NAMES[key] ?? key)), h("td", {}, label)));
  const sheet = (title, shortcuts) =>
    shortcuts.size ? h("div", {}, h("h3", {}, title), h("table", { class: "keys" }, h("tbody", {}, rows(shortcuts)))) : null;
  const onoff = h("input", {
    type: "checkbox",
    onchange: () => {
      enabled = onoff.checked;
      remember("keys", enabled ? "1" : "0");
    },
  });
  onoff.checked = enabled;
  openDialog("Keyboard", [
    h("div", { class: "sheets" }, sheet("This page", here), sheet("Everywhere", everywhere)),
    h("label", { class: "check" }, onoff, "Shortcuts of one letter are on"),
  ]);
}
