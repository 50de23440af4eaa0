// One job on the page: its pictures, as far as they are written, and what it is about.

import { pictureSource } from "../api.js";
import { h, iconButton } from "../dom.js";
import { SMALL_PX } from "../fit.js";
import { ago, countdown, duration, exactTime, plural } from "../format.js";
import { startDrag } from "../composer/incoming.js";
import { isOver } from "./jobs.js";
import { badge } from "../viewer/origin.js";

const columnsFor = (count) => (count <= 1 ? 1 : count <= 4 ? 2 : count <= 9 ? 3 : Math.ceil(Math.sqrt(count)));

export class Card {
  /** actions: { open(job, index), reuse(job), reuseSeed(job), cancel(job), remove(job), retry(job) } */
  constructor(job, model, actions) {
    this.job = job;
    this.actions = actions;
    this.model = model;
    this.cells = Array.from({ length: job.num_images }, (_, index) => this.#cell(index));
    this.mosaic = h("div", { class: "mosaic" }, ...this.cells.map((cell) => cell.element));
    this.mosaic.style.setProperty("--columns", columnsFor(job.num_images));
    this.bar = h("div", { class: "progress", role: "progressbar", ariaLabel: "Progress", ariaValueMin: "0", ariaValueMax: "100" }, h("span"));
    this.status = h("p", { class: "status" });
    this.facts = h("p", { class: "meta" });
    this.buttons = h("div", { class: "card-actions" });
    this.element = h("article", { class: "card", dataset: { job: job.id } },
      h("div", { class: "frame" }, this.mosaic, this.bar),
      h("h3", { class: "card-prompt", title: job.prompt }, job.prompt || "Without words"),
      this.status,
      h("div", { class: "card-foot" }, this.facts, this.buttons));
    this.update();
  }

  update(index) {
    const { job } = this;
    if (this.shownStatus !== job.status) {
      this.shownStatus = job.status;
      this.element.dataset.status = job.status;
      this.#showFacts();
      this.#showButtons();
      this.cells.forEach((_, each) => this.#showPicture(each));
      this.#showGiven();
    } else if (index !== undefined) {
      this.#showPicture(index);
    } else {
      this.#showNew();
    }
    this.tick();
  }

  /** Where no event told of them. The other cells stay as they are: a preview that is set again flickers. */
  #showNew() {
    for (const { index, url } of this.job.images) if (this.cells[index].final.dataset.url !== url) this.#showPicture(index);
  }

  /** The line that changes with time alone: the countdown between two events. */
  tick() {
    const { job } = this;
    this.status.replaceChildren(...this.#statusLine());
    const part = job.num_tokens ? job.tokens_done / job.num_tokens : 0;
    this.bar.hidden = isOver(job);
    this.bar.ariaValueNow = String(Math.round(part * 100));
    this.bar.firstChild.style.width = `${part * 100}%`;
  }

  #statusLine() {
    const { job } = this;
    switch (job.status) {
      case "queued": return [job.position ? `Waiting · ${plural(job.position, "picture")} ahead` : "Next in line"];
      case "running": return this.#runningLine();
      case "failed": return [h("span", { class: "bad" }, job.error?.message ?? "It failed.")];
      case "cancelled": return [job.images.length ? `Cancelled after ${plural(job.images.length, "picture")}` : "Cancelled"];
      default: return [];
    }
  }

  #runningLine() {
    const { job } = this;
    if (!job.num_tokens) return ["Reading the prompt"];
    if (job.tokens_done >= job.num_tokens) return ["Turning tokens into pixels"];
    const tokens = `${job.tokens_done} / ${job.num_tokens} tokens`;
    if (job.eta_s === null || job.eta_s === undefined) return [tokens];
    const passed = (performance.now() - job.receivedAt) / 1000;
    return [tokens, h("span", { class: "eta" }, countdown(Math.max(0, job.eta_s - passed)))];
  }

  #showFacts() {
    const { job } = this;
    const seed = h("button", { class: "seed", type: "button", title: "Use this seed", ariaLabel: `Use seed ${job.seed}`,
      onclick: () => this.actions.reuseSeed(job) }, `#${job.seed}`);
    this.time = h("time", { title: exactTime(job.created_at) });
    this.showAge();
    const took = job.status === "done" && job.total_s ? h("span", {}, duration(job.total_s)) : null;
    this.facts.replaceChildren(...[badge(job), seed, took, this.time].filter(Boolean));
  }

  showAge() {
    this.time.textContent = ago(this.job.created_at);
  }

  #showButtons() {
    const { job, actions } = this;
    const reuse = iconButton("reuse", "Use these settings", () => actions.reuse(job));
    const remove = iconButton("trash", "Delete", () => actions.remove(job));
    const cancel = h("button", { class: "button small cancel", type: "button", onclick: () => actions.cancel(job) }, "Cancel");
    const again = h("button", { class: "button small", type: "button", onclick: () => actions.retry(job) }, "Try again");
    const shown = { done: [reuse, remove], failed: [again, reuse, remove], cancelled: [again, reuse, remove] }[job.status];
    this.buttons.replaceChildren(...(shown ?? [cancel]));
  }

  #cell(index) {
    const preview = h("img", { class: "preview", alt: "", hidden: true, draggable: false });
    const final = h("img", { class: "final", alt: `Picture ${index + 1} of ${this.job.num_images}: ${this.job.prompt}`, hidden: true, loading: "lazy", decoding: "async", draggable: false });
    const under = this.job.over ? h("img", { class: "under", alt: "", hidden: true, draggable: false }) : null;
    const element = h("button", { class: "cell", type: "button", disabled: true, ariaLabel: `Picture ${index + 1}, not drawn yet`,
      onclick: () => this.actions.open(this.job, index), ondragstart: (event) => startDrag(event, this.job, index) }, under, preview, final);
    return { element, preview, final };
  }

  #showPicture(index) {
    const { element, preview, final } = this.cells[index];
    const image = this.job.images.find((each) => each.index === index);
    const shown = this.job.previews.get(index);
    if (image) this.#showFinal(index, image);
    else if (shown) this.#showPreview(index, shown);
    else if (isOver(this.job)) preview.hidden = true;
    element.classList.toggle("written", Boolean(image));
    element.classList.toggle("given-up", !image && isOver(this.job));
    final.parentElement.classList.toggle("writing", !image && Boolean(shown) && !isOver(this.job));
  }

  /** While it is drawn over, the given picture stands beneath. */
  async #showGiven() {
    const { job, element } = this;
    if (!job.over) return;
    const under = [...element.querySelectorAll(".under")];
    if (isOver(job)) under.forEach((image) => image.remove());
    else if (under.some((image) => !image.src)) {
      const source = await pictureSource(job.over.image_url).catch(() => "");
      if (source) under.forEach((image) => Object.assign(image, { src: source, hidden: false }));
    }
  }

  async #showFinal(index, image) {
    const { element, preview, final } = this.cells[index];
    if (final.dataset.url === image.url) return;
    final.dataset.url = image.url;
    element.disabled = false;
    element.draggable = true;
    element.ariaLabel = `Open picture ${index + 1}`;
    try {
      final.src = await pictureSource(image.url);
      final.hidden = false;
      await final.decode();
      preview.hidden = true;
    } catch {
      final.hidden = true;
      element.classList.add("missing");
    }
  }

  /** Only whole rows are shown; the rest of the preview is paint that means nothing yet. */
  #showPreview(index, { image, tokens_done: tokensDone }) {
    const { element, preview } = this.cells[index];
    const side = Math.sqrt(this.model.imageTokens ?? this.job.num_tokens / this.job.num_images);
    const rows = Math.min(1, Math.floor(tokensDone / side) / side); // more: it is painted in windows, and one is full
    preview.src = image;
    preview.hidden = false;
    element.style.setProperty("--written", `${rows * 100}%`);
  }

  /** Square pixels for a small picture that is shown at twice its size and more; smooth otherwise. */
  chooseScaling() {
    const { images, num_images: count } = this.job;
    const cell = this.cells[0].element.clientWidth * devicePixelRatio;
    const width = images[0]?.width_px ?? this.model.imagePx;
    if (cell && width && count) this.element.classList.toggle("crisp", width <= SMALL_PX && cell / width >= 1.75);
  }
}

