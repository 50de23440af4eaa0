// How likely the model thinks each token of a picture is: a map over it, a legend, and the same in words.

import { dataURL, getJSON, request } from "../api.js";
import { $, h, setError } from "../dom.js";
import { placeIn } from "../fit.js";
import { isReadable } from "./origin.js";

const RAMP = [[27, 16, 68], [107, 29, 129], [200, 62, 115], [251, 136, 97], [252, 253, 191]]; // as .ramp in modes.css
const OPACITY = 205;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const whole = new Intl.NumberFormat("en");

/** A probability for people: "37 %", or "1 in 240". */
export function chance(logprob) {
  const probability = Math.exp(logprob);
  if (probability >= 0.095) return `${Math.round(probability * 100)} %`;
  return `1 in ${whole.format(Number((1 / probability).toPrecision(2)))}`;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const leastOf = (values) => values.reduce((least, value, at) => (value < values[least] ? at : least), 0);

export class Heat {
  #scores = new Map();

  constructor(models) {
    this.models = models;
    const layer = $("heat-layer");
    layer.addEventListener("pointermove", (event) => this.#point(event));
    layer.addEventListener("pointerdown", (event) => this.#point(event));
    layer.addEventListener("keydown", (event) => this.#key(event));
  }

  /** How likely a picture is can be said of words alone. */
  isPossible({ job }) {
    const model = this.models.for(job);
    return Boolean(job.prompt) && model.features.includes("logprobs") && Boolean(model.codebookSize) && isReadable(model, job);
  }

  async open(shown) {
    Object.assign(this, { shown, score: null, model: this.models.for(shown.job) });
    this.#show({ waiting: true });
    try {
      const score = await this.#ask(shown);
      if (this.shown !== shown) return;
      this.score = score;
      this.#place(shown);
      this.#paint();
      this.#describe();
      this.#show({});
    } catch (error) {
      if (this.shown === shown) this.#show({ error: error.message });
    }
  }

  focus() {
    $("heat-layer").focus();
  }

  close() {
    this.shown = null;
  }

  #show({ waiting = false, error = "" }) {
    $("heat-wait").hidden = !waiting;
    setError($("heat-error"), error);
    $("heat-told").hidden = $("heat-layer").hidden = waiting || Boolean(error);
  }

  /** Asked once for each picture; a failed question may be asked again. */
  #ask({ job, image }) {
    if (!this.#scores.has(image.url)) {
      const asked = this.#request(job, image);
      asked.catch(() => this.#scores.delete(image.url));
      this.#scores.set(image.url, asked);
    }
    return this.#scores.get(image.url);
  }

  async #request(job, image) {
    const file = await (await request(image.url)).blob();
    const { name: model } = this.models.for(job);
    return getJSON("/v1/images/score", { method: "POST", body: { model, image: await dataURL(file), prompt: job.prompt } });
  }

  /** 0: certain, 1: no likelier than by chance. */
  #surprise(logprob) {
    return Math.min(1, Math.max(0, -logprob / Math.log(this.model.codebookSize)));
  }

  #paint() {
    const { grid_width: width, grid_height: height, logprobs } = this.score;
    const canvas = Object.assign($("heat-map"), { width, height });
    const pixels = new ImageData(width, height);
    logprobs.forEach((logprob, at) => pixels.data.set([...colour(this.#surprise(logprob)), OPACITY], at * 4));
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  /** The model sees a square, with the picture in its middle: the grid lies there, and what is beyond is not told. */
  #place({ image: { width_px: width, height_px: height } }) {
    const side = Math.max(width, height);
    const [across, down] = [side / width, side / height];
    const style = { left: (1 - across) / 2, top: (1 - down) / 2, width: across, height: down };
    for (const [name, share] of Object.entries(style)) $("heat-square").style[name] = `${share * 100}%`;
    const within = (length, count) => ({ first: Math.floor(((1 - length / side) / 2) * count + 1e-6), last: Math.ceil(((1 + length / side) / 2) * count - 1e-6) - 1 });
    Object.assign(this, { columns: within(width, this.score.grid_width), rows: within(height, this.score.grid_height) });
  }

  /** The picture's own rows of logarithms. */
  #values() {
    const { logprobs, grid_width: width } = this.score;
    const rows = Array.from({ length: this.rows.last - this.rows.first + 1 }, (_, row) => (row + this.rows.first) * width);
    return rows.map((start) => logprobs.slice(start + this.columns.first, start + this.columns.last + 1));
  }

  #describe() {
    const rows = this.#values();
    const all = rows.flat();
    const [least, width] = [leastOf(all), rows[0].length];
    const [row, column] = [Math.floor(least / width), least % width];
    const chanceLevel = whole.format(this.model.codebookSize);
    $("heat-middle").textContent = `1 in ${whole.format(Math.round(Math.sqrt(this.model.codebookSize)))}`;
    $("heat-chance").textContent = `1 in ${chanceLevel}`;
    $("heat-summary").textContent = `On average a token has ${chance(mean(all))}; pure chance is 1 in ${chanceLevel}. `
      + `The least expected is in row ${row + 1}, column ${column + 1}: ${chance(all[least])}.`;
    $("heat-rows").replaceChildren(...rows.map((values, at) => h("tr", {}, h("th", { scope: "row" }, String(at + 1)),
      h("td", {}, chance(mean(values))), h("td", {}, `column ${leastOf(values) + 1}, ${chance(values[leastOf(values)])}`))));
    this.#pointAt(column + this.columns.first, row + this.rows.first);
  }

  #point(event) {
    if (!this.score) return;
    const { x, y } = placeIn($("heat-square"), event);
    this.#pointAt(Math.floor(x * this.score.grid_width), Math.floor(y * this.score.grid_height));
  }

  #key(event) {
    const arrow = ARROWS[event.key];
    if (!arrow || !this.score) return;
    event.preventDefault();
    event.stopPropagation();
    this.#pointAt(this.at.column + arrow[0], this.at.row + arrow[1]);
  }

  #pointAt(anyColumn, anyRow) {
    const within = (value, { first, last }) => Math.min(last, Math.max(first, value));
    const [column, row] = [within(anyColumn, this.columns), within(anyRow, this.rows)];
    this.at = { column, row };
    const { grid_width: width, grid_height: height, logprobs } = this.score;
    const logprob = logprobs[row * width + column];
    const style = { left: column / width, top: row / height, width: 1 / width, height: 1 / height };
    for (const [name, share] of Object.entries(style)) $("heat-cursor").style[name] = `${share * 100}%`;
    $("heat-mark").style.left = `${this.#surprise(logprob) * 100}%`;
    $("heat-at").replaceChildren(h("strong", {}, chance(logprob)), ` row ${row - this.rows.first + 1}, column ${column - this.columns.first + 1}`);
  }
}

function colour(share) {
  const at = share * (RAMP.length - 1);
  const low = Math.min(RAMP.length - 2, Math.floor(at));
  return RAMP[low].map((value, channel) => Math.round(value + (RAMP[low + 1][channel] - value) * (at - low)));
}
