// One picture, large: whole multiples of its own pixels, all its settings, and what can be done with it.

import { getKey, pictureSource } from "./api.js";
import { $, h } from "./dom.js";
import { bytes, duration, exactTime } from "./format.js";
import { snippet } from "./snippets.js";

const FACTS = [
  ["Seed", (job) => job.seed],
  ["Guidance", (job) => job.condition_scale],
  ["Temperature", (job) => job.temperature],
  ["Top k", (job) => job.top_k],
  ["Top p", (job) => job.top_p],
  ["Away from", (job) => job.negative_prompt],
  ["Model", (job) => job.model],
];

const MARGIN_PX = 24;
const MAX_SCALE = 8; // beyond it the squares are all one sees

export class Viewer {
  /** actions as in Card; pictures() gives the row that the arrows walk along. */
  constructor(pictures, actions) {
    Object.assign(this, { pictures, actions, language: "curl" });
    this.dialog = $("viewer");
    $("viewer-close").addEventListener("click", () => this.dialog.close());
    $("viewer-previous").addEventListener("click", () => this.#walk(-1));
    $("viewer-next").addEventListener("click", () => this.#walk(1));
    $("viewer-reuse").addEventListener("click", () => this.#then(actions.reuse));
    $("viewer-seed").addEventListener("click", () => this.#then(actions.reuseSeed));
    $("viewer-delete").addEventListener("click", () => actions.remove(this.job));
    $("copy").addEventListener("click", () => this.#copy());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("keydown", (event) => this.#key(event));
    this.#listenToTabs();
    new ResizeObserver(() => this.#fit()).observe($("viewer-image").parentElement);
  }

  async open(job, index) {
    const image = job.images.find((each) => each.index === index);
    Object.assign(this, { job, index, image });
    this.#describe();
    if (!this.dialog.open) this.dialog.showModal();
    this.#fit();
    const source = await pictureSource(image.url);
    if (this.image !== image) return; // walked on meanwhile
    const name = `${job.seed}-${index}.${job.format}`;
    Object.assign($("viewer-image"), { src: source, alt: job.prompt });
    Object.assign($("viewer-download"), { href: source, download: name });
  }

  closeIfShows(job) {
    if (this.dialog.open && this.job?.id === job.id) this.dialog.close();
  }

  #describe() {
    const { job, image } = this;
    const row = this.pictures();
    const at = this.#place(row);
    $("viewer-prompt").textContent = job.prompt;
    $("viewer-when").textContent = [exactTime(job.created_at), job.total_s && duration(job.total_s)].filter(Boolean).join(" · ");
    const facts = FACTS.map(([name, value]) => [name, value(job)]).filter(([, value]) => value !== "");
    facts.push(["Picture", `${this.index + 1} of ${job.num_images}`]);
    facts.push(["File", `${image.width_px} × ${image.height_px} px, ${bytes(image.size_bytes)}`]);
    $("viewer-facts").replaceChildren(...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value)))));
    $("viewer-previous").disabled = at <= 0;
    $("viewer-next").disabled = at < 0 || at >= row.length - 1;
    this.#showSnippet();
  }

  #place(row) {
    return row.findIndex(({ job, index }) => job.id === this.job.id && index === this.index);
  }

  #walk(by) {
    const row = this.pictures();
    const next = row[this.#place(row) + by];
    if (next) this.open(next.job, next.index);
  }

  #key(event) {
    if (event.target.closest('[role="tablist"], pre')) return;
    if (event.key === "ArrowLeft") this.#walk(-1);
    if (event.key === "ArrowRight") this.#walk(1);
  }

  /** The largest whole multiple that fits; a picture larger than the window shrinks. */
  #fit() {
    if (!this.image || !this.dialog.open) return;
    const { clientWidth, clientHeight } = $("viewer-image").parentElement;
    const room = Math.min(clientWidth, clientHeight) - 2 * MARGIN_PX;
    const { width_px: width, height_px: height } = this.image;
    const scale = Math.min(room / Math.max(width, height), MAX_SCALE);
    const whole = scale >= 1 ? Math.floor(scale) : scale;
    Object.assign($("viewer-image").style, { width: `${width * whole}px`, height: `${height * whole}px` });
    $("viewer-image").classList.toggle("smooth", width > 200);
  }

  #then(action) {
    this.dialog.close();
    action(this.job);
  }

  #showSnippet() {
    $("snippet-text").textContent = snippet(this.language, this.job, Boolean(getKey()));
    $("copy-text").textContent = "Copy";
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText($("snippet-text").textContent);
      $("copy-text").textContent = "Copied";
    } catch {
      // No clipboard outside https and localhost: select the text, so that Ctrl+C takes it.
      getSelection().selectAllChildren($("snippet-text"));
      $("copy-text").textContent = "Press Ctrl+C";
    }
  }

  #listenToTabs() {
    const tabs = [...document.querySelectorAll("#code [role=tab]")];
    const choose = (tab) => {
      for (const each of tabs) {
        each.ariaSelected = String(each === tab);
        each.tabIndex = each === tab ? 0 : -1;
      }
      $("snippet").setAttribute("aria-labelledby", tab.id);
      this.language = tab.dataset.language;
      this.#showSnippet();
    };
    for (const tab of tabs) {
      tab.addEventListener("click", () => choose(tab));
      tab.addEventListener("keydown", (event) => {
        const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!by) return;
        const next = tabs[(tabs.indexOf(tab) + by + tabs.length) % tabs.length];
        choose(next);
        next.focus();
      });
    }
  }
}
