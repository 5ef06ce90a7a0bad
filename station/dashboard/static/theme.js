// A classic script in the head: the page's first paint already has the colours and the type size that were chosen.
// A screen on a wall, which nobody sits at, takes them from its address: /?theme=dark&big=1
"use strict";
(() => {
  const root = document.documentElement;
  const asked = new URLSearchParams(location.search);
  const chosen = (key, allowed) => {
    let value = asked.get(key);
    try {
      if (allowed.includes(value)) localStorage.setItem(key, value);
      else value = localStorage.getItem(key);
    } catch {
      // Storage is blocked: nothing is remembered.
    }
    return allowed.includes(value) ? value : null;
  };
  const theme = chosen("theme", ["auto", "light", "dark"]);
  if (theme && theme !== "auto") root.dataset.theme = theme;
  if (chosen("big", ["0", "1"]) === "1") root.dataset.big = "1";
})();
