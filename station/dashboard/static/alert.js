// One alert: the full picture, what the model saw where, and what people say of it.
import * as api from "./api.js";
import { judge, loadMore, shown } from "./alerts.js";
import { toast } from "./dialogs.js";
import { h, mark, refill, s, say, show } from "./dom.js";
import { icon, redraw } from "./icons.js";
import { outlines, picture } from "./picture.js";
import { go } from "./router.js";
import { on, store } from "./store.js";
import { VERDICTS, clock, fullTime, position, score as number, span, times } from "./words.js";

const PAGES = 5; // of the gallery, looked through for the neighbours of an alert that was opened by its address

export function alertPageOf(root, { site, line, name, id }, signal) {
  const path = `${site}/${line}/${name}`;
  let alert = null;
  let raw = false;

  const flag = h("span", { class: "flag still", hidden: true }, icon("alert"), "Open");
  const newer = h("a", { class: "button step", "aria-label": "Newer alert" }, icon("left"), h("span", {}, "Newer"));
  const older = h("a", { class: "button step", "aria-label": "Older alert" }, h("span", {}, "Older"), icon("right"));
  const shot = picture({ empty: "The picture has not come yet" });
  const spots = s("g", { class: "spots" });
  const frame = s("g", { class: "outlines" });
  shot.overlay.append(spots, frame);
  const tip = h("span", { class: "tip", hidden: true });
  shot.node.append(tip);

  const check = (word, on, act) => {
    const box = h("input", { type: "checkbox", onchange: () => act(box.checked) });
    box.checked = on;
    return { box, node: h("label", { class: "check" }, box, word) };
  };
  const showBoxes = check("Outline", false, (yes) => mark(frame, "data-off", yes ? null : "1"));
  const showSpots = check("Patch scores", true, (yes) => mark(spots, "data-off", yes ? null : "1"));
  const showRaw = check("As the camera saw it", false, (yes) => {
    raw = yes;
    drawPicture();
  });
  mark(frame, "data-off", "1");

  const facts = h("dl", { class: "facts" });
  const rows = h("tbody", {});
  const patchPanel = h(
    "section",
    { class: "panel", "aria-labelledby": "patches-title" },
    h("h2", { id: "patches-title" }, "Patches"),
    h("p", { class: "quiet" }, "The highest-scoring patches of the frame with the peak score. Point at one to see where it is."),
    h("div", { class: "table-box", tabindex: 0, role: "region", "aria-label": "Patch scores" }, h("table", { class: "patches" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "#"), h("th", { scope: "col" }, "Score"), h("th", { scope: "col" }, h("span", { class: "unseen" }, "Share of the highest")), h("th", { scope: "col" }, "At x, y"))), rows)),
  );

  const saidIcon = icon("check");
  const saidWord = h("b", {});
  const saidBy = h("span", { class: "quiet" });
  const saidNote = h("p", { class: "said-note" });
  const said = h("div", { class: "said" }, h("span", { class: "verdict" }, saidIcon, saidWord), saidBy, saidNote);
  const note = h("textarea", { id: "note", rows: 2, maxlength: 500, placeholder: "For instance: oil stain, harmless" });
  const button = (shape, word, verdict, key) => h("button", { class: "button verdict-button", type: "button", "aria-pressed": "false", data: { verdict }, onclick: () => say_(verdict) }, icon(shape), h("span", {}, word), h("kbd", { class: "wide-only" }, key));
  const falseAlarm = button("cross", "False alarm", "false-alarm", "f");
  const confirmed = button("check", "Confirmed", "confirmed", "c");
  const withdraw = h("button", { class: "button", type: "button", onclick: () => say_("withdrawn") }, icon("undo"), "Withdraw");
  const form = h("div", { class: "judge" }, h("label", { for: "note" }, "Note"), note, h("div", { class: "buttons wrap" }, falseAlarm, confirmed, withdraw));
  const only = h("p", { class: "quiet" });
  const copy = h("button", { class: "button", type: "button", onclick: copyLink }, "Copy link");

  const missing = h("p", { class: "none", hidden: true }, "There is no such alert, or it is no longer kept.");
  const body = h(
    "div",
    { class: "alert-page", hidden: true }, // until there is something to show: it shall not grow under one's eyes
    h("section", { class: "panel view", "aria-label": "Picture" }, shot.node, h("div", { class: "checks" }, showSpots.node, showBoxes.node, showRaw.node)),
    h(
      "div",
      { class: "side" },
      h("section", { class: "panel", "aria-labelledby": "judge-title" }, h("h2", { id: "judge-title" }, "Is it a defect?"), said, form, only),
      h("section", { class: "panel", "aria-labelledby": "facts-title" }, h("div", { class: "panel-head" }, h("h2", { id: "facts-title" }, "Facts"), copy), facts),
      patchPanel,
    ),
  );
  root.append(
    h("div", { class: "head" }, h("a", { class: "back", href: "/alerts" }, icon("left"), "Alerts"), h("h1", { tabindex: -1, data: { focus: "1" } }, `Alert at ${name}`), flag, h("span", { class: "steps" }, newer, older)),
    missing,
    body,
  );
  const back = root.querySelector(".back");
  if (shown.query) mark(back, "href", `/alerts?${shown.query}`);

  // --- the picture ---

  let drawn = null; // patches that are on the picture
  function drawPicture() {
    shot.update({
      url: raw && alert.frame_url ? alert.frame_url : alert.image_url,
      width: alert.frame_width,
      height: alert.frame_height,
      alt: `${raw && alert.frame_url ? "Frame" : "Frame with heatmap"}: defect ${position(alert.peak_boxes, alert.frame_width, alert.frame_height)}, ${times(alert.peak_score, alert.threshold)}`,
    });
    showRaw.box.disabled = !alert.frame_url;
    mark(showRaw.node, "title", alert.frame_url ? null : "The frame itself comes when the alert is closed");
  }

  function point(index) {
    for (const one of [...spots.children, ...rows.children]) mark(one, "data-on", Number(one.dataset.index) === index ? "1" : null);
    const patch = alert.patches[index];
    show(tip, Boolean(patch));
    if (!patch) return;
    say(tip, `#${index + 1} · ${number(patch.score)}`);
    const right = patch.x + patch.w / 2 > alert.frame_width / 2;
    tip.style.setProperty("--x", `${(100 * (patch.x + (right ? 0 : patch.w))) / alert.frame_width}%`);
    tip.style.setProperty("--y", `${(100 * (patch.y + patch.h / 2)) / alert.frame_height}%`);
    mark(tip, "data-left", right ? "1" : null);
  }

  function drawPatches() {
    const signature = JSON.stringify(alert.patches);
    if (signature === drawn) return;
    drawn = signature;
    show(patchPanel, alert.patches.length > 0);
    show(showSpots.node, alert.patches.length > 0);
    const most = alert.patches[0]?.score || 1;
    const share = (patch) => Math.max(0, Math.min(1, patch.score / most));
    // The highest comes last, on top of its neighbours.
    spots.replaceChildren(
      ...alert.patches
        .map((patch, index) => {
          const spot = s("rect", { class: "spot", x: patch.x, y: patch.y, width: patch.w, height: patch.h, data: { index }, onpointerenter: () => point(index), onpointerleave: () => point(-1), onclick: () => point(index) });
          spot.style.setProperty("--share", share(patch).toFixed(3));
          return spot;
        })
        .reverse(),
    );
    rows.replaceChildren(
      ...alert.patches.map((patch, index) => {
        const bar = h("span", { class: "share" });
        bar.style.setProperty("transform", `scaleX(${share(patch).toFixed(3)})`);
        return h(
          "tr",
          { data: { index }, onpointerenter: () => point(index), onpointerleave: () => point(-1), onclick: () => point(index) },
          h("td", {}, String(index + 1)),
          h("td", {}, h("b", {}, number(patch.score))),
          h("td", {}, h("span", { class: "share-box" }, bar)),
          h("td", {}, `${patch.x}, ${patch.y}`),
        );
      }),
    );
  }

  // --- the words ---

  function drawFacts() {
    const fact = (label, value, remark) => h("div", {}, h("dt", {}, label), h("dd", {}, value, remark && h("small", {}, remark)));
    const lasted = Date.parse(alert.closed_at ?? alert.updated_at) - Date.parse(alert.opened_at);
    facts.replaceChildren(
      fact("Peak", h("b", {}, times(alert.peak_score, alert.threshold)), `${number(alert.peak_score)}, threshold ${number(alert.threshold)}`),
      fact("Where", position(alert.peak_boxes, alert.frame_width, alert.frame_height), `of ${alert.frame_width} × ${alert.frame_height} pixels`),
      fact("When", h("time", { datetime: alert.opened_at, title: fullTime(alert.opened_at) }, clock(alert.opened_at)), alert.state === "open" ? "still open" : `for ${lasted < 1000 ? "less than 1 s" : span(lasted)}`),
      fact("Frames", alert.first_frame === alert.last_frame ? String(alert.first_frame) : `${alert.first_frame} to ${alert.last_frame}`, alert.name),
      fact("Station", h("a", { href: api.stationPage(path) }, name), `${site} · ${line}`),
      fact("Id", h("code", {}, alert.id)),
    );
  }

  function drawVerdict() {
    const given = VERDICTS[alert.feedback?.verdict];
    mark(said, "data-verdict", given ? alert.feedback.verdict : null);
    redraw(saidIcon, given ? given.icon : "help");
    say(saidWord, given ? given.word : "Nobody has said yet");
    say(saidBy, given ? `${alert.feedback.by}, ${clock(alert.feedback.at)}` : "");
    say(saidNote, given ? alert.feedback.note : "");
    for (const one of [falseAlarm, confirmed]) mark(one, "aria-pressed", String(one.dataset.verdict === alert.feedback?.verdict));
    withdraw.disabled = !given;
    const { me } = store;
    show(form, Boolean(me?.may_act));
    show(only, !me?.may_act);
    if (!me?.may_act) {
      refill(only, ...(me?.user ? [`${me.user} may look, not judge.`] : me?.login ? [h("a", { href: `/login?next=${encodeURIComponent(location.pathname)}` }, "Log in"), " to say what it is."] : ["Nobody is set up to judge here."]));
    }
  }

  function draw() {
    if (!alert) return;
    show(flag, alert.state === "open");
    drawPicture();
    drawPatches();
    frame.replaceChildren(...outlines(alert.peak_boxes));
    drawFacts();
    drawVerdict();
  }

  async function say_(verdict) {
    if (!alert || !store.me?.may_act) return;
    try {
      take(await judge(alert, verdict, verdict === "withdrawn" ? "" : note.value.trim()));
      note.value = "";
      toast(verdict === "withdrawn" ? "Withdrawn" : `${VERDICTS[verdict].word}, noted`);
    } catch (error) {
      toast(error.message, "bad");
    }
  }

  async function copyLink() {
    try {
      await navigator.clipboard.writeText(location.href);
      toast("The link is in the clipboard");
    } catch {
      toast(location.href, "good"); // without TLS a browser gives no clipboard: to be copied by hand
    }
  }

  // --- loading ---

  function take(told) {
    // Lists and events do without the patches.
    alert = { ...told, patches: told.patches.length ? told.patches : alert?.patches ?? [] };
    draw();
    show(missing, false);
    show(body, true);
  }
  async function load() {
    try {
      take(await api.get(api.alertApi(path, id)));
    } catch (error) {
      if (error.status === 404) {
        show(missing, true);
        show(body, false);
      } else if (error.status) toast(error.message, "bad");
    }
  }
  async function neighbours() {
    const url = `/alerts/${path}/${id}`;
    const at = () => shown.alerts.findIndex((one) => one.url === url);
    try {
      if (at() < 0) await loadMore("", true);
      for (let page = 1; page < PAGES && shown.next && (at() < 0 || at() === shown.alerts.length - 1); page++) await loadMore(shown.query, false);
    } catch {
      // Then there are no neighbours.
    }
    if (signal.aborted) return;
    const here = at();
    for (const [button_, other] of [[newer, shown.alerts[here - 1]], [older, here < 0 ? null : shown.alerts[here + 1]]]) {
      mark(button_, "href", other ? api.alertPage(other) : null);
      mark(button_, "aria-disabled", other ? null : "true");
    }
  }
  on("alert", (told) => {
    if (told.station !== path || told.id !== id) return;
    // Another peak has other patches, which only the alert's own address tells.
    if (!alert || told.peak_score !== alert.peak_score || !alert.patches.length) load();
    else take(told);
  }, signal);
  on("me", draw, signal);
  on("loaded", load, signal);
  for (const one of [newer, older]) mark(one, "aria-disabled", "true");
  load();
  neighbours();

  const toggle = ({ box }) => () => !box.disabled && box.click();
  const step = (link) => () => link.hasAttribute("href") && go(link.getAttribute("href"));
  return {
    title: `Alert at ${name}`,
    keys: [
      ["ArrowLeft", "Newer alert", step(newer)],
      ["ArrowRight", "Older alert", step(older)],
      ["f", "False alarm", () => say_("false-alarm")],
      ["c", "Confirmed", () => say_("confirmed")],
      ["u", "Withdraw that", () => say_("withdrawn")],
      ["n", "Write a note", () => note.focus()],
      ["p", "Patch scores", toggle(showSpots)],
      ["o", "Outline", toggle(showBoxes)],
      ["r", "As the camera saw it", toggle(showRaw)],
      ["s", "Its station", () => go(api.stationPage(path))],
    ],
  };
}
