// Pictograms. Every state has a shape of its own: it must be told apart without its colour.
import { s } from "./dom.js";

const SHAPES = {
  ok: ["M12 2.5a9.5 9.5 0 1 1 0 19 9.5 9.5 0 0 1 0-19z", "m7.5 12.3 3.1 3.1 6-6.4"],
  alert: ["M12 1.8 22.2 12 12 22.2 1.8 12z", "M12 7v6", "M12 16.4v.2"],
  warn: ["M12 2.8 22.3 20.7H1.7z", "M12 9.5v5", "M12 17.4v.2"],
  camera: ["M2.5 7.5h4l1.6-2.6h7.8l1.6 2.6h4v12h-19z", "M9 10.3l6 6", "M15 10.3l-6 6"],
  paused: ["M12 2.5a9.5 9.5 0 1 1 0 19 9.5 9.5 0 0 1 0-19z", "M9.5 8.5v7", "M14.5 8.5v7"],
  stopped: ["M4 4h16v16H4z", "M9 9h6v6H9z"],
  offline: ["M2.5 2.5h19v19h-19z", "m7.5 7.5 9 9", "m16.5 7.5-9 9"],
  waiting: ["M12 2.5a9.5 9.5 0 1 1 0 19 9.5 9.5 0 0 1 0-19z", "M12 6.8V12l3.4 2.2"],
  drift: ["M3 17c3 0 3-6 6-6s3 4 6 4 3-9 6-9", "M17 5.5l4 .5-.6 4"],
  wall: ["M3.5 3.5h7v7h-7z", "M13.5 3.5h7v7h-7z", "M3.5 13.5h7v7h-7z", "M13.5 13.5h7v7h-7z"],
  bell: ["M6 16.5V11a6 6 0 0 1 12 0v5.5l1.5 2h-15z", "M10 21h4"],
  mute: ["M6 16.5V11a6 6 0 0 1 12 0v5.5l1.5 2h-15z", "M10 21h4", "M3 3l18 18"],
  sun: ["M12 7.5a4.5 4.5 0 1 1 0 9 4.5 4.5 0 0 1 0-9z", "M12 1.5v2.3M12 20.2v2.3M1.5 12h2.3M20.2 12h2.3M4.6 4.6l1.6 1.6M17.8 17.8l1.6 1.6M19.4 4.6l-1.6 1.6M6.2 17.8l-1.6 1.6"],
  moon: ["M20.5 14.2A8.8 8.8 0 1 1 9.8 3.5a7 7 0 0 0 10.7 10.7z"],
  auto: ["M12 3a9 9 0 1 1 0 18 9 9 0 0 1 0-18z", "M12 3v18M12 8l7.6-2.6M12 13h9M12 18l6.4 1"],
  type: ["M2 19 7.5 5 13 19M4 14.5h7", "M15 19l3.5-8.5L22 19M16.3 16h4.4"],
  help: ["M12 2.5a9.5 9.5 0 1 1 0 19 9.5 9.5 0 0 1 0-19z", "M9.3 9.3a2.8 2.8 0 1 1 4 2.6c-.9.5-1.3 1-1.3 2", "M12 17.2v.2"],
  person: ["M12 3.5a4 4 0 1 1 0 8 4 4 0 0 1 0-8z", "M4 20.5c.8-4.2 4-6 8-6s7.2 1.8 8 6"],
  left: ["m15 4-8 8 8 8"],
  right: ["m9 4 8 8-8 8"],
  check: ["m4 12.5 5.5 5.500L20 6.5"],
  cross: ["M5 5l14 14M19 5 5 19"],
  undo: ["M4 9h10a6 6 0 0 1 0 12h-4", "m8 4.5-4.5 4.500L8 13.5"],
  photo: ["M2.5 7.5h4l1.6-2.6h7.8l1.6 2.6h4v12h-19z", "M12 9.500a4 4 0 1 1 0 8 4 4 0 0 1 0-8z"],
  slider: ["M3 7h10M17 7h4M3 17h4M11 17h10", "M15 4.500v5M9 14.500v5"],
  reload: ["M20 12a8 8 0 1 1-2.4-5.7", "M20.5 2.500v4.500H16"],
  download: ["M12 3v12", "m7 10.5 5 5 5-5", "M4 20.500h16"],
};

/** An icon for the eye only: what it means must also be there in words. */
export const icon = (name) =>
  s(
    "svg",
    { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true", data: { icon: name } },
    SHAPES[name].map((d) => s("path", { d })),
  );

/** Makes a drawn icon another one. */
export function redraw(svg, name) {
  if (svg.dataset.icon === name) return;
  svg.dataset.icon = name;
  svg.replaceChildren(...SHAPES[name].map((d) => s("path", { d })));
}
