// The frame around the pages: header, banner, shortcuts, news.
import * as api from "./api.js";
import { alertPageOf } from "./alert.js";
import { gallery } from "./alerts.js";
import { announce, toast } from "./dialogs.js";
import { h, mark, say, show } from "./dom.js";
import { icon, redraw } from "./icons.js";
import { bindEverywhere, showHelp } from "./keys.js";
import { login, logout } from "./login.js";
import { overview } from "./overview.js";
import { big, nextTheme, theme, toggleBig } from "./preferences.js";
import { go, onRoute, render, route } from "./router.js";
import { chime, soundOn, toggleSound } from "./sound.js";
import { stationPageOf } from "./station.js";
import { connect, on, openAlerts, rest, resting, store, whoAmI } from "./store.js";
import { times } from "./words.js";

route("/", overview);
route("/stations/:site/:line/:name", stationPageOf);
route("/alerts", gallery);
route("/alerts/:site/:line/:name/:id", alertPageOf);
route("/login", login);
route("/.*", (root) => {
  root.append(h("div", { class: "lost" }, h("h1", { tabindex: -1, data: { focus: "1" } }, "No such page"), h("a", { href: "/" }, "To the stations")));
  return { title: "No such page" };
});

// --- header ---

const badge = h("span", { class: "badge", hidden: true });
const nav = h(
  "nav",
  { "aria-label": "Pages" },
  h("a", { href: "/", class: "tab" }, icon("wall"), h("span", {}, "Stations")),
  h("a", { href: "/alerts", class: "tab" }, icon("bell"), h("span", {}, "Alerts"), badge),
);

function tool(shape, act) {
  const drawn = icon(shape);
  const button = h("button", { class: "tool", type: "button", onclick: act }, drawn);
  return {
    button,
    is(name, label, pressed) {
      redraw(drawn, name);
      mark(button, "aria-label", label);
      mark(button, "title", label);
      if (pressed !== undefined) mark(button, "aria-pressed", String(pressed));
    },
  };
}

const bigTool = tool("type", () => act.big());
const soundTool = tool("mute", () => act.sound());
const themeTool = tool("auto", () => act.theme());
const helpTool = tool("help", showHelp);
helpTool.button.classList.add("wide-only");
helpTool.is("help", "Keyboard shortcuts (?)");
const person = h("span", { class: "person" });

function drawTools() {
  bigTool.is("type", "Large type, for a screen far away (b)", big());
  soundTool.is(soundOn() ? "bell" : "mute", "Sound at new alerts (m)", soundOn());
  themeTool.is({ auto: "auto", light: "sun", dark: "moon" }[theme()], `Colours: ${{ auto: "as the system", light: "light", dark: "dark" }[theme()]} (t)`);
}

const act = {
  big() {
    announce(toggleBig() ? "Large type" : "Normal type");
    drawTools();
  },
  sound() {
    announce(toggleSound() ? "Sound on" : "Sound off");
    drawTools();
  },
  theme() {
    const next = nextTheme();
    announce({ auto: "Colours as the system", light: "Light colours", dark: "Dark colours" }[next]);
    drawTools();
  },
};

document.getElementById("bar").append(
  h("a", { href: "/", class: "brand", "aria-label": "Inspection: stations" }, h("img", { src: "/static/icon.svg", alt: "", width: 28, height: 28 }), h("span", {}, "Inspection")),
  nav,
  h("div", { class: "tools" }, bigTool.button, soundTool.button, themeTool.button, helpTool.button, person),
);
drawTools();

function drawPerson() {
  const { me } = store;
  person.replaceChildren();
  if (me?.user) {
    person.append(
      h("span", { class: "who", title: me.may_act ? "May command stations and judge alerts" : "May look" }, icon("person"), h("span", {}, me.user)),
    );
    if (me.login) person.append(h("button", { class: "tool text", type: "button", onclick: logout }, "Log out"));
  } else if (me?.login) {
    person.append(h("a", { class: "tool text", href: `/login?next=${encodeURIComponent(location.pathname + location.search)}` }, "Log in"));
  }
}

onRoute(() => {
  const path = location.pathname;
  const at = path.startsWith("/alerts") ? "/alerts" : path === "/" || path.startsWith("/stations/") ? "/" : null;
  for (const tab of nav.children) mark(tab, "aria-current", tab.getAttribute("href") === at ? "page" : null);
  drawPerson();
});

bindEverywhere("g", "Stations", () => go("/"));
bindEverywhere("a", "Alerts", () => go("/alerts"));
bindEverywhere("b", "Large type", act.big);
bindEverywhere("t", "Colours: system, light, dark", act.theme);
bindEverywhere("m", "Sound at new alerts", act.sound);
bindEverywhere("?", "These shortcuts", showHelp);

// --- is what is shown true? ---

const banner = document.getElementById("banner");
let doubt = 0;

function drawBanner() {
  const { broker } = store.me ?? {};
  const away = store.link === "down";
  const deaf = broker && !broker.connected;
  const text = away
    ? "No connection to the dashboard. What you see is old. Trying again …"
    : deaf
      ? `The dashboard has no connection to the broker ${broker.where}. What you see is old. Trying again …`
      : broker?.trouble ?? "";
  clearTimeout(doubt);
  const draw = () => {
    if (text) say(banner, text);
    show(banner, Boolean(text));
    if (away || deaf) document.body.dataset.old = "1";
    else delete document.body.dataset.old;
  };
  // A restart takes a moment: no alarm for that.
  if (text && banner.hidden) doubt = setTimeout(draw, 1500);
  else draw();
}

on("link", drawBanner);
on("me", () => {
  drawBanner();
  drawPerson();
});
on("log-in", () => {
  if (location.pathname !== "/login") go(`/login?next=${encodeURIComponent(location.pathname + location.search)}`, { replace: true });
});
on("new-version", () => toast("The dashboard was updated.", "good", { href: location.href, word: "Load it" }));

// --- news ---

const drawBadge = () => {
  const open = openAlerts().length;
  show(badge, open > 0);
  say(badge, open > 99 ? "99+" : String(open));
  mark(badge, "aria-label", `${open} open`);
};
on("alert", drawBadge);
on("station", drawBadge);
on("stations", drawBadge);

on("new-alerts", (alerts) => {
  chime();
  const [first] = alerts;
  const name = first.station.split("/").at(-1);
  const text = alerts.length === 1 ? `Defect at ${name}: ${times(first.peak_score, first.threshold)}` : `${alerts.length} new alerts, the last at ${name}`;
  announce(text);
  if (location.pathname !== "/") toast(text, "alert", { href: api.alertPage(first), word: "Look" });
});

// A tab that nobody sees gives its connection back after a while, unless it is to be heard.
let tired = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(tired);
  if (document.visibilityState === "visible") {
    if (resting()) connect();
  } else {
    tired = setTimeout(() => !soundOn() && rest(), 60000);
  }
});

async function start() {
  try {
    const me = await whoAmI();
    if (!me.may_look && location.pathname !== "/login") {
      history.replaceState(null, "", `/login?next=${encodeURIComponent(location.pathname + location.search)}`);
    }
  } catch {
    // The stream tries again by itself.
  }
  render({ focus: false });
  if (store.me?.may_look !== false) connect();
}

start();
