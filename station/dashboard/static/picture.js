// Pictures in a frame of fixed proportions, so that nothing moves when they come.
// The station's pictures have a caption below the frame; the box shows the frame alone, whose proportions are known.
import { h, mark, s, say, show } from "./dom.js";
import { icon } from "./icons.js";

/** `update({url, width, height, alt, boxes, label})`; the next picture replaces the last once it is decoded. */
export function picture({ lazy = false, empty = "No picture yet" } = {}) {
  const image = h("img", { alt: "", decoding: "async", loading: lazy ? "lazy" : null, hidden: true });
  const words = h("span", {}, empty);
  const none = h("div", { class: "no-picture" }, icon("photo"), words);
  const overlay = s("svg", { class: "overlay", preserveAspectRatio: "none", "aria-hidden": "true" });
  const node = h("div", { class: "picture" }, none, image, overlay);
  let wanted = null;
  let frame = [0, 0];

  function put(url, alt) {
    image.src = url;
    mark(image, "alt", alt);
    show(image, true);
    show(none, false);
  }
  image.addEventListener("load", () => {
    // How much taller than the frame it is: the caption, which the box then cuts off.
    const [width, height] = frame;
    const cut = width && height ? (image.naturalHeight * width) / (image.naturalWidth * height) : 1;
    node.style.setProperty("--cut", String(cut > 1 && cut < 1.6 ? cut : 1));
  });
  image.addEventListener("error", () => {
    show(image, false);
    show(none, true);
    say(words, "Picture no longer kept");
  });

  return {
    node,
    image,
    overlay,
    update({ url, width, height, alt = "" }) {
      if (width && height) {
        frame = [width, height];
        node.style.setProperty("--ratio", `${width} / ${height}`);
        node.style.setProperty("--wide", String(width / height));
        mark(overlay, "viewBox", `0 0 ${width} ${height}`);
      }
      if (url === wanted) return;
      wanted = url;
      if (!url) {
        show(image, false);
        show(none, true);
        say(words, empty);
        return;
      }
      if (image.hidden || lazy) {
        put(url, alt);
        return;
      }
      const next = new Image();
      next.src = url;
      next.decode().then(
        () => wanted === url && put(url, alt),
        () => {}, // the one before stays: it is at least a picture
      );
    },
  };
}

/** Rectangles of a defect, as SVG over a frame; lines keep their width whatever the picture's scale. */
export const outlines = (boxes) =>
  boxes.flatMap(({ x, y, w, h: height }) =>
    ["box-rim", "box"].map((kind) => s("rect", { class: kind, x, y, width: w, height })),
  );

/** Where in the frame the boxes lie, as a small map. */
export function map(boxes, width, height) {
  return s(
    "svg",
    { class: "map", viewBox: `0 0 ${width || 1} ${height || 1}`, "aria-hidden": "true" },
    s("rect", { class: "map-frame", x: 0, y: 0, width: width || 1, height: height || 1 }),
    boxes.map(({ x, y, w, h: tall }) => {
      // At least so large that it can be seen.
      const least = Math.max(width, height) / 12;
      const [bw, bh] = [Math.max(w, least), Math.max(tall, least)];
      return s("rect", { class: "map-box", x: x + w / 2 - bw / 2, y: y + tall / 2 - bh / 2, width: bw, height: bh });
    }),
  );
}
