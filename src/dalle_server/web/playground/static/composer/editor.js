// The mask painter: a dialog with the picture, brush, rectangle and shapes, by mouse, finger, pen and keyboard.

import { $, h } from "../dom.js";
import { fit, onDrag, placeIn } from "../fit.js";
import { Mask, SHAPES } from "./mask.js";

const CANVAS_PX = 1024;
const STEPS = 32; // an arrow key moves by so small a part of the picture
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;

export class Editor {
  constructor() {
    this.dialog = $("editor");
    this.box = $("editor-box");
    $("editor-shapes").replaceChildren(...SHAPES.map((shape) => this.#shapeButton(shape)));
    $("editor-undo").addEventListener("click", () => this.#change(() => this.mask.undo()));
    $("editor-redo").addEventListener("click", () => this.#change(() => this.mask.redo()));
    for (const kind of ["invert", "clear"]) $(`editor-${kind}`).addEventListener("click", () => this.#add({ kind }));
    $("editor-form").addEventListener("input", () => this.#showTools());
    $("editor-form").addEventListener("submit", () => this.done(this.mask.operations));
    this.dialog.addEventListener("close", () => this.done(null));
    for (const name of ["cancel", "close"]) $(`editor-${name}`).addEventListener("click", () => this.dialog.close());
    this.dialog.addEventListener("keydown", (event) => this.#shortcut(event));
    this.box.addEventListener("keydown", (event) => this.#key(event));
    this.box.addEventListener("focus", () => this.#showCursor());
    this.box.addEventListener("blur", () => ($("editor-cursor").hidden = true));
    this.box.addEventListener("pointermove", (event) => this.#hover(placeIn(this.box, event)));
    this.box.addEventListener("pointerleave", () => ($("editor-cursor").hidden = true));
    onDrag(this.box, (place, phase) => this.#drag(place, phase));
    new ResizeObserver(() => this.#fit()).observe(this.box.parentElement);
  }

  /** → the operations of the mask that was painted over picture `{ source, width, height }`; null when it was given up. */
  paint(picture, operations = []) {
    const { width, height, source } = picture;
    this.mask = new Mask(width, height, operations);
    this.cursor = { x: width / 2, y: height / 2 };
    this.area = { width: width / 2, height: height / 2 };
    const scale = CANVAS_PX / Math.max(width, height);
    Object.assign($("editor-canvas"), { width: Math.round(width * scale), height: Math.round(height * scale) });
    $("editor-image").src = source;
    this.dialog.showModal();
    this.#fit();
    this.#showTools();
    this.#show();
    this.box.focus();
    return new Promise((resolve) => (this.done = resolve)); // the first answer counts
  }

  get #erases() {
    return chosen("editor-act") === "erase";
  }

  get #isRectangle() {
    return chosen("editor-tool") === "rectangle";
  }

  /** In pixels of the picture. */
  get #brush() {
    return Math.max(1, (Number($("editor-size").value) / 100) * Math.max(this.mask.width, this.mask.height));
  }

  #add(operation) {
    this.#change(() => this.mask.add(operation));
  }

  #change(action) {
    action();
    this.#show();
  }

  #show() {
    const share = this.mask.share();
    const isEmpty = share < 0.0005;
    this.mask.show($("editor-canvas"));
    $("editor-undo").disabled = !this.mask.operations.length;
    $("editor-redo").disabled = !this.mask.undone.length;
    $("editor-clear").disabled = $("editor-apply").disabled = isEmpty;
    $("editor-meter").style.width = `${share * 100}%`;
    $("editor-share").textContent = isEmpty ? "Nothing painted yet" : `${Math.max(1, Math.round(share * 100))} % of the picture is drawn anew`;
  }

  // Many strokes between two frames are shown once.
  #showSoon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.mask.show($("editor-canvas"));
    });
  }

  #showTools() {
    $("editor-size-field").classList.toggle("off", this.#isRectangle);
    $("editor-size").disabled = this.#isRectangle;
    $("editor-size-text").textContent = `${Math.round(this.#brush)} px`;
    this.#showCursor();
  }

  #drag(place, phase) {
    if (phase === "start") this.box.focus();
    const at = { x: place.x * this.mask.width, y: place.y * this.mask.height };
    this.cursor = at;
    if (this.#isRectangle) this.#dragArea(at, phase);
    else if (phase === "start") this.#add({ kind: "stroke", erase: this.#erases, size: this.#brush, points: [[at.x, at.y]] });
    else if (phase === "move") { this.mask.extend(at.x, at.y); this.#showSoon(); }
    else this.#show();
    this.#showCursor();
  }

  #dragArea(at, phase) {
    if (phase === "start") this.corner = at;
    const area = { x: Math.min(at.x, this.corner.x), y: Math.min(at.y, this.corner.y),
      width: Math.abs(at.x - this.corner.x), height: Math.abs(at.y - this.corner.y) };
    this.cursor = { x: area.x + area.width / 2, y: area.y + area.height / 2 };
    this.area = { width: area.width, height: area.height };
    if (phase === "end" && area.width >= 1 && area.height >= 1) this.#add({ kind: "area", erase: this.#erases, ...area });
  }

  #hover({ x, y }) {
    if (this.#isRectangle) return; // what the keyboard holds stays where it is, until a drag draws another
    this.cursor = { x: x * this.mask.width, y: y * this.mask.height };
    this.#showCursor();
  }

  /** The brush's circle, or the rectangle, at its place. */
  #showCursor() {
    const { width, height } = this.mask;
    const size = this.#isRectangle ? this.area : { width: this.#brush, height: this.#brush };
    const cursor = $("editor-cursor");
    cursor.hidden = !this.box.matches(":hover, :focus-visible");
    cursor.classList.toggle("round", !this.#isRectangle);
    const style = { left: (this.cursor.x - size.width / 2) / width, top: (this.cursor.y - size.height / 2) / height,
      width: size.width / width, height: size.height / height };
    for (const [name, share] of Object.entries(style)) cursor.style[name] = `${share * 100}%`;
  }

  #key(event) {
    const arrow = ARROWS[event.key];
    if (arrow && !event.ctrlKey && !event.metaKey && !event.altKey) this.#move(arrow, event.shiftKey);
    else if (event.key === " " || event.key === "Enter") this.#stamp(this.#erases);
    else if (event.key === "Delete" || event.key === "Backspace") this.#stamp(true);
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.#showCursor();
  }

  #move([right, down], stretch) {
    const { width, height } = this.mask;
    const within = (value, low, high) => Math.min(high, Math.max(low, value));
    const from = this.cursor;
    if (stretch && this.#isRectangle) {
      this.area.width = within(this.area.width + (right * width) / STEPS * 2, width / STEPS, width);
      this.area.height = within(this.area.height + (down * height) / STEPS * 2, height / STEPS, height);
      return;
    }
    this.cursor = { x: within(from.x + (right * width) / STEPS, 0, width), y: within(from.y + (down * height) / STEPS, 0, height) };
    if (stretch) this.#add({ kind: "stroke", erase: this.#erases, size: this.#brush, points: [[from.x, from.y], [this.cursor.x, this.cursor.y]] });
  }

  #stamp(erase) {
    const { x, y } = this.cursor;
    const { width, height } = this.area;
    if (this.#isRectangle) this.#add({ kind: "area", erase, x: x - width / 2, y: y - height / 2, width, height });
    else this.#add({ kind: "stroke", erase, size: this.#brush, points: [[x, y]] });
  }

  #shortcut(event) {
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && (key === "z" || key === "y")) {
      event.preventDefault();
      const redo = key === "y" || event.shiftKey;
      this.#change(() => (redo ? this.mask.redo() : this.mask.undo()));
    } else if (key === "[" || key === "]") {
      $("editor-size").valueAsNumber += key === "[" ? -2 : 2;
      this.#showTools();
    }
  }

  #shapeButton([name, x, y, width, height]) {
    const pictogram = h("i");
    for (const [side, share] of Object.entries({ left: x, top: y, width, height })) pictogram.style[side] = `${share * 100}%`;
    const onclick = () => this.#add({ kind: "area", erase: this.#erases, x: x * this.mask.width, y: y * this.mask.height,
      width: width * this.mask.width, height: height * this.mask.height });
    return h("button", { class: "shape", type: "button", title: name, ariaLabel: name, onclick }, h("span", {}, pictogram));
  }

  #fit() {
    if (this.dialog.open) fit(this.box, this.mask.width, this.mask.height);
  }
}
