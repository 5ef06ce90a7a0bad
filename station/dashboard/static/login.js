// Log-in and log-out.
import * as api from "./api.js";
import { toast } from "./dialogs.js";
import { h } from "./dom.js";
import { go } from "./router.js";
import { connect, rest, whoAmI } from "./store.js";

/** Where to go after the log-in: a page of ours, nothing else. */
function next() {
  const wanted = new URLSearchParams(location.search).get("next") ?? "/";
  const address = new URL(wanted, location.origin);
  return address.origin === location.origin && address.pathname !== "/login" ? address.pathname + address.search : "/";
}

export function login(root) {
  const user = h("input", { id: "user", name: "username", autocomplete: "username", required: true, maxlength: 100, autocapitalize: "none", spellcheck: "false" });
  const password = h("input", { id: "password", type: "password", name: "password", autocomplete: "current-password", required: true, maxlength: 1000 });
  const trouble = h("p", { class: "trouble", role: "alert" });
  const button = h("button", { class: "button primary", type: "submit" }, "Log in");
  const form = h(
    "form",
    { class: "panel login" },
    h("h1", { tabindex: -1, data: { focus: "1" } }, "Log in"),
    h("label", { for: "user" }, "Name"),
    user,
    h("label", { for: "password" }, "Password"),
    password,
    trouble,
    button,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    trouble.textContent = "";
    button.disabled = true;
    try {
      await api.post("/api/login", { user: user.value, password: password.value });
      await whoAmI();
      connect();
      go(next(), { replace: true });
    } catch (error) {
      trouble.textContent = error.message;
      password.value = "";
      password.focus();
    } finally {
      button.disabled = false;
    }
  });
  root.append(form);
  return { title: "Log in" };
}

export async function logout() {
  try {
    await api.post("/api/logout");
    const me = await whoAmI();
    rest();
    if (me.may_look) connect();
    else go("/login", { replace: true });
  } catch (error) {
    toast(error.message, "bad");
  }
}
