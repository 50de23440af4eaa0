// What is to be drawn anew: a list of strokes and shapes over a picture, and the canvas that they give.

const SIDE_PX = 1024; // of the canvas that is painted on; the file has the picture's own size
const SAMPLES = 64;

const canvasOf = (width, height) => Object.assign(document.createElement("canvas"), { width, height });

/** Lengths are pixels of the picture. An operation is plain data, so that undoing is painting the rest again. */
export class Mask {
  constructor(width, height, operations = []) {
    Object.assign(this, { width, height, operations: [...operations], undone: [] });
    const scale = SIDE_PX / Math.max(width, height);
    this.canvas = canvasOf(Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale)));
    this.context = this.canvas.getContext("2d");
    this.#repaint();
  }

  /** { kind: "stroke", erase, size, points: [[x, y], …] }, { kind: "area", erase, x, y, width, height }, { kind: "file", file, canvas },
   * or { kind: "invert" }, "clear". */
  add(operation) {
    this.operations.push(operation);
    this.undone = [];
    this.#paint(operation);
  }

  /** The last stroke goes on to (x, y). */
  extend(x, y) {
    const stroke = this.operations.at(-1);
    stroke.points.push([x, y]);
    this.#paint({ ...stroke, points: stroke.points.slice(-2) });
  }

  undo() {
    if (!this.operations.length) return;
    this.undone.push(this.operations.pop());
    this.#repaint();
  }

  redo() {
    if (!this.undone.length) return;
    this.operations.push(this.undone.pop());
    this.#paint(this.operations.at(-1));
  }

  /** The painted share of the picture, 0…1. */
  share() {
    const small = canvasOf(SAMPLES, SAMPLES).getContext("2d", { willReadFrequently: true });
    small.drawImage(this.canvas, 0, 0, SAMPLES, SAMPLES);
    const { data } = small.getImageData(0, 0, SAMPLES, SAMPLES);
    let sum = 0;
    for (let at = 3; at < data.length; at += 4) sum += data[at];
    return sum / (255 * SAMPLES * SAMPLES);
  }

  /** A PNG of the picture's size: white is drawn anew, black stays. */
  async file() {
    if (this.operations.length === 1 && this.operations[0].file) return this.operations[0].file; // as it was sent before
    const canvas = canvasOf(this.width, this.height);
    const context = canvas.getContext("2d");
    context.fillRect(0, 0, this.width, this.height);
    context.drawImage(this.canvas, 0, 0, this.width, this.height);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  /** On a canvas over the picture: hatched, in the canvas's own colour. */
  show(canvas) {
    const context = canvas.getContext("2d");
    context.globalCompositeOperation = "copy";
    context.drawImage(this.canvas, 0, 0, canvas.width, canvas.height);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = hatching(context, getComputedStyle(canvas).color, Math.max(6, Math.round(Math.max(canvas.width, canvas.height) / 64)));
    context.fillRect(0, 0, canvas.width, canvas.height);
  }

  #repaint() {
    this.#paint({ kind: "clear" });
    this.operations.forEach((operation) => this.#paint(operation));
  }

  #paint(operation) {
    const { context, width, height } = this;
    context.setTransform(this.canvas.width / width, 0, 0, this.canvas.height / height, 0, 0);
    context.globalCompositeOperation = operation.erase ? "destination-out" : "source-over";
    context.fillStyle = context.strokeStyle = "#fff";
    switch (operation.kind) {
      case "stroke": strokeLine(context, operation); break;
      case "area": context.fillRect(operation.x, operation.y, operation.width, operation.height); break;
      case "file":
        context.imageSmoothingEnabled = false;
        context.drawImage(operation.canvas, 0, 0, width, height);
        context.imageSmoothingEnabled = true;
        break;
      case "invert":
        context.globalCompositeOperation = "source-out";
        context.fillRect(0, 0, width, height);
        break;
      default: context.clearRect(0, 0, width, height);
    }
  }
}

function strokeLine(context, { size, points: [first, ...rest] }) {
  Object.assign(context, { lineWidth: size, lineCap: "round", lineJoin: "round" });
  context.beginPath();
  context.moveTo(...first);
  for (const point of rest.length ? rest : [[first[0] + 0.01, first[1]]]) context.lineTo(...point); // a line of no length has no caps
  context.stroke();
}

function hatching(context, colour, step) {
  const tile = canvasOf(step, step);
  const pen = tile.getContext("2d");
  Object.assign(pen, { fillStyle: colour, strokeStyle: colour, globalAlpha: 0.45 });
  pen.fillRect(0, 0, step, step);
  Object.assign(pen, { globalAlpha: 0.9, lineWidth: step / 4 });
  for (const at of [-step, 0, step]) {
    pen.beginPath();
    pen.moveTo(at - 1, step + 1);
    pen.lineTo(at + step + 1, -1);
    pen.stroke();
  }
  return context.createPattern(tile, "repeat");
}

/** A mask file as an operation: white is drawn anew; where it has transparency, what is transparent. */
export async function maskOperation(file, { width, height }) {
  const canvas = canvasOf(width, height);
  const context = canvas.getContext("2d");
  context.drawImage(await createImageBitmap(file), 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  const { data } = pixels;
  let hasHoles = false;
  for (let at = 3; at < data.length; at += 4) hasHoles ||= data[at] < 255;
  for (let at = 0; at < data.length; at += 4) data[at + 3] = hasHoles ? 255 - data[at + 3] : data[at];
  context.putImageData(pixels, 0, 0);
  return { kind: "file", file, canvas };
}

/** The shapes one can choose, as shares of the picture: [name, x, y, width, height]. */
export const SHAPES = [
  ["Top half", 0, 0, 1, 0.5],
  ["Bottom half", 0, 0.5, 1, 0.5],
  ["Left half", 0, 0, 0.5, 1],
  ["Right half", 0.5, 0, 0.5, 1],
  ["Centre", 0.25, 0.25, 0.5, 0.5],
  ["Top left quarter", 0, 0, 0.5, 0.5],
  ["Top right quarter", 0.5, 0, 0.5, 0.5],
  ["Bottom left quarter", 0, 0.5, 0.5, 0.5],
  ["Bottom right quarter", 0.5, 0.5, 0.5, 0.5],
  ["Everything", 0, 0, 1, 1],
];
