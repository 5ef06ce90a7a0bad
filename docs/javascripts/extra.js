// What the theme's own script makes and leaves short: wide tables that a keyboard could not scroll, copy buttons in landmarks without a name.
let blocks = 0;

function mend() {
  for (const table of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) table.tabIndex = 0;
  for (const nav of document.querySelectorAll(".md-code__nav:not([aria-label])")) nav.setAttribute("aria-label", `Code ${++blocks}`);
}

new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
mend();
