// Addresses and pages: every page has a permalink, and going between them loads nothing anew.
import { bindHere } from "./keys.js";

const routes = [];
let current = null;
const main = document.getElementById("main");

/** `pattern` with named parts, e.g. `/alerts/:site/:line/:name/:id`; `page(root, parts, signal)` → {title, keys, focus}. */
export function route(pattern, page) {
  const names = [...pattern.matchAll(/:(\w+)/g)].map((found) => found[1]);
  routes.push({ expression: new RegExp(`^${pattern.replace(/:\w+/g, "([^/]+)")}/?$`), names, page });
}

function find(path) {
  for (const { expression, names, page } of routes) {
    const found = expression.exec(path);
    if (!found) continue;
    try {
      return { page, parts: Object.fromEntries(names.map((name, index) => [name, decodeURIComponent(found[index + 1])])) };
    } catch {
      return null; // not an encoding
    }
  }
  return null;
}

let listener = () => {};
export const onRoute = (act) => (listener = act);

/** Shows the page that the address names. */
export function render({ focus = true, y = 0 } = {}) {
  current?.abort();
  current = new AbortController();
  const { signal } = current;
  const found = find(location.pathname);
  main.replaceChildren();
  const shown = (found?.page ?? routes.at(-1).page)(main, found?.parts ?? {}, signal);
  document.title = `${shown.title} · Inspection`;
  bindHere(shown.keys ?? []);
  listener();
  if (focus) {
    // Who reads with a screen reader starts at the top of the new page.
    (main.querySelector("[data-focus]") ?? main).focus({ preventScroll: true });
    scrollTo(0, y);
  }
}

export function go(address, { replace = false } = {}) {
  if (address === location.pathname + location.search) return;
  if (!replace) history.replaceState({ y: scrollY }, "");
  history[replace ? "replaceState" : "pushState"](null, "", address);
  render();
}

// We know better than the browser when a page is as high as it was.
history.scrollRestoration = "manual";
addEventListener("popstate", (event) => render({ y: event.state?.y ?? 0 }));

document.addEventListener("click", (event) => {
  if (event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  const link = event.target.closest?.("a[href]");
  if (!link || link.target || link.hasAttribute("download") || link.origin !== location.origin) return;
  const path = link.pathname;
  if (path.startsWith("/api/") || path.startsWith("/static/") || link.getAttribute("href").startsWith("#")) return;
  event.preventDefault();
  go(path + link.search);
});
