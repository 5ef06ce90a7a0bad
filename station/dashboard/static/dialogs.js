// Dialogs and the short notes at the screen's edge.
import { h } from "./dom.js";
import { icon } from "./icons.js";

/**
 * A modal dialog. `actions`: [{word, kind, act}]; `act` may be async: its error is shown and the dialog stays.
 * Returns the dialog; "close" is fired when it is gone.
 */
export function openDialog(title, body, actions = []) {
  const trouble = h("p", { class: "trouble", role: "alert" });
  const close = h("button", { class: "button", type: "button", onclick: () => dialog.close() }, actions.length ? "Cancel" : "Close");
  const buttons = actions.map(({ word, kind, act }) => {
    const button = h("button", { class: `button ${kind ?? ""}`, type: "button" }, word);
    button.addEventListener("click", async () => {
      trouble.textContent = "";
      for (const one of [button, close]) one.disabled = true;
      button.setAttribute("aria-busy", "true");
      try {
        await act();
        dialog.close();
      } catch (error) {
        trouble.textContent = error.message;
      } finally {
        for (const one of [button, close]) one.disabled = false;
        button.removeAttribute("aria-busy");
      }
    });
    return button;
  });
  const heading = h("h2", { id: "dialog-title" }, title);
  const dialog = h(
    "dialog",
    { "aria-labelledby": "dialog-title" },
    heading,
    h("div", { class: "dialog-body" }, body),
    trouble,
    h("div", { class: "buttons" }, close, buttons),
  );
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => {
    // On the backdrop, which belongs to the dialog's element but lies outside its box.
    const box = dialog.getBoundingClientRect();
    const outside = event.clientX < box.left || event.clientX > box.right || event.clientY < box.top || event.clientY > box.bottom;
    if (event.target === dialog && outside) dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** A note that goes by itself; `kind`: "good", "bad" or "alert". `link`: {href, word}. */
export function toast(text, kind = "good", link = null) {
  const shape = { good: "check", bad: "warn", alert: "alert" }[kind];
  const note = h(
    "div",
    { class: `toast ${kind}`, role: kind === "bad" ? "alert" : null },
    icon(shape),
    h("span", {}, text),
    link && h("a", { href: link.href, onclick: () => note.remove() }, link.word),
    h("button", { class: "plain", type: "button", "aria-label": "Dismiss", onclick: () => note.remove() }, icon("cross")),
  );
  const all = document.getElementById("toasts");
  while (all.children.length >= 3) all.firstElementChild.remove();
  all.append(note);
  let left = setTimeout(() => note.remove(), 9000);
  note.addEventListener("pointerenter", () => clearTimeout(left));
  note.addEventListener("pointerleave", () => (left = setTimeout(() => note.remove(), 4000)));
}

/** Tells those who listen instead of looking. */
export function announce(text) {
  document.getElementById("said").textContent = text;
}
