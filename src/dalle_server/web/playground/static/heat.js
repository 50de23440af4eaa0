// How likely the model thinks each token of a picture is: a map over it, a legend, and the same in words.

import { dataURL, getJSON, request } from "./api.js";
import { $, h, setError } from "./dom.js";
import { placeIn } from "./fit.js";
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

  isPossible({ job }) {
    const model = this.models.for(job);
    return model.features.includes("logprobs") && Boolean(model.codebookSize) && isReadable(model, job);
  }

  async open(shown) {
    Object.assign(this, { shown, score: null, model: this.models.for(shown.job) });
    this.#show({ waiting: true });
    try {
      const score = await this.#ask(shown);
      if (this.shown !== shown) return;
      this.score = score;
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

  #describe() {
    const { grid_width: width, grid_height: height, logprobs } = this.score;
    const least = leastOf(logprobs);
    const chanceLevel = whole.format(this.model.codebookSize);
    $("heat-middle").textContent = `1 in ${whole.format(Math.round(Math.sqrt(this.model.codebookSize)))}`;
    $("heat-chance").textContent = `1 in ${chanceLevel}`;
    $("heat-summary").textContent = `On average a token has ${chance(mean(logprobs))}; pure chance is 1 in ${chanceLevel}. `
      + `The least expected is in row ${Math.floor(least / width) + 1}, column ${(least % width) + 1}: ${chance(logprobs[least])}.`;
    const rows = Array.from({ length: height }, (_, row) => logprobs.slice(row * width, (row + 1) * width));
    $("heat-rows").replaceChildren(...rows.map((row, at) => h("tr", {}, h("th", { scope: "row" }, String(at + 1)),
      h("td", {}, chance(mean(row))), h("td", {}, `column ${leastOf(row) + 1}, ${chance(row[leastOf(row)])}`))));
    this.#pointAt(least % width, Math.floor(least / width));
  }

  #point(event) {
    if (!this.score) return;
    const { x, y } = placeIn($("heat-layer"), event);
    const { grid_width: width, grid_height: height } = this.score;
    this.#pointAt(Math.min(width - 1, Math.floor(x * width)), Math.min(height - 1, Math.floor(y * height)));
  }

  #key(event) {
    const arrow = ARROWS[event.key];
    if (!arrow || !this.score) return;
    event.preventDefault();
    event.stopPropagation();
    const within = (value, length) => Math.min(length - 1, Math.max(0, value));
    this.#pointAt(within(this.at.column + arrow[0], this.score.grid_width), within(this.at.row + arrow[1], this.score.grid_height));
  }

  #pointAt(column, row) {
    this.at = { column, row };
    const { grid_width: width, grid_height: height, logprobs } = this.score;
    const logprob = logprobs[row * width + column];
    const style = { left: column / width, top: row / height, width: 1 / width, height: 1 / height };
    for (const [name, share] of Object.entries(style)) $("heat-cursor").style[name] = `${share * 100}%`;
    $("heat-mark").style.left = `${this.#surprise(logprob) * 100}%`;
    $("heat-at").replaceChildren(h("strong", {}, chance(logprob)), ` row ${row + 1}, column ${column + 1}`);
  }
}

function colour(share) {
  const at = share * (RAMP.length - 1);
  const low = Math.min(RAMP.length - 2, Math.floor(at));
  return RAMP[low].map((value, channel) => Math.round(value + (RAMP[low + 1][channel] - value) * (at - low)));
}
