// Elements without a framework. Text always becomes a text node: nothing that a message says can become markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, properties, children) {
  for (const [key, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "data") Object.assign(node.dataset, value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An HTML element: `h("p", {class: "quiet", onclick: f}, "text", child)`. */
export const h = (tag, properties, ...children) => fill(document.createElement(tag), properties, children);

/** An SVG element. */
export const s = (tag, properties, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

/** Sets text only where it differs, so that what stays the same costs no layout and is not read out again. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Replaces the children only where they say something else: a link that is replaced loses focus, and clicks half made. */
export function refill(node, ...children) {
  const told = children.map((child) => child.textContent ?? child).join("");
  if (node.textContent !== told) node.replaceChildren(...children);
}

/** Sets an attribute only where it differs; null takes it away. */
export function mark(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** Shows or hides. */
export function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

/** Puts the nodes of `wanted`, in that order, into `parent`, and moves only what is not in its place. */
export function place(parent, wanted) {
  const keep = new Set(wanted);
  for (const child of [...parent.children]) if (!keep.has(child)) child.remove();
  wanted.forEach((node, index) => {
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
  });
}
