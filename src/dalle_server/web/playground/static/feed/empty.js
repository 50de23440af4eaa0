// What stands where there are no pictures yet: a small one, written token by token like the real ones.

import { h } from "../dom.js";

const APPLE = [
  "......bb..",
  ".....b.gg.",
  "..rrrbrrg.",
  ".rprrrrrr.",
  "rpprrrrrrd",
  "rprrrrrrrd",
  "rrrrrrrrrd",
  ".rrrrrrrd.",
  ".rrrrrrdd.",
  "..rrr.rd..",
];
const COLOURS = { r: "#e5484d", p: "#ffa8a3", d: "#b8323b", g: "#3a9d5d", b: "#7a5230" };

export function emptyPicture() {
  const tokens = [...APPLE.join("")].map((colour, position) => {
    const token = h("i");
    token.style.setProperty("--at", position);
    if (COLOURS[colour]) token.style.setProperty("--tint", COLOURS[colour]);
    return token;
  });
  return h("div", { class: "empty-grid", ariaHidden: "true" }, ...tokens);
}
