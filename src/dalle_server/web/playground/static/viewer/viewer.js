// One picture, large: whole multiples of its own pixels, all its settings, and what can be done with it.

import { getKey, pictureSource } from "../api.js";
import { $, h, setError } from "../dom.js";
import { isOver } from "../feed/jobs.js";
import { fit } from "../fit.js";
import { bytes, duration, exactTime } from "../format.js";
import { Modes } from "./modes.js";
import { factsOf, isReadable } from "./origin.js";
import { snippet } from "./snippets.js";

const FACTS = [
  ["Seed", (job) => job.seed],
  ["Guidance", (job) => job.condition_scale],
  ["Temperature", (job) => job.temperature],
  ["Top k", (job) => job.top_k],
  ["Top p", (job) => job.top_p],
  ["Seamless", (job) => (job.seamless ? "opposite edges meet" : "")],
  ["Away from", (job) => job.negative_prompt],
  ["Model", (job) => job.model],
];


export class Viewer {
  /** actions as in Card, and more; pictures() gives the row that the arrows walk along. */
  constructor(models, pictures, actions) {
    Object.assign(this, { models, pictures, actions, language: "curl" });
    this.modes = new Modes(models, async (fields) => { await actions.submit(fields); this.dialog.close(); });
    this.dialog = $("viewer");
    $("viewer-close").addEventListener("click", () => this.dialog.close());
    $("viewer-previous").addEventListener("click", () => this.#walk(-1));
    $("viewer-next").addEventListener("click", () => this.#walk(1));
    $("viewer-use").addEventListener("click", () => this.#then((job) => actions.use(job, this.index)));
    $("viewer-paint").addEventListener("click", () => this.#then((job) => actions.paint(job, this.index)));
    $("viewer-reuse").addEventListener("click", () => this.#then(actions.reuse));
    $("viewer-seed").addEventListener("click", () => this.#then(actions.reuseSeed));
    $("viewer-delete").addEventListener("click", () => actions.remove(this.job));
    $("copy").addEventListener("click", () => this.#copy());
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("keydown", (event) => this.#key(event));
    this.#listenToTabs();
    new ResizeObserver(() => this.#fit()).observe($("viewer-box").parentElement);
  }

  async open(job, index) {
    const image = job.images.find((each) => each.index === index);
    Object.assign(this, { job, index, image });
    this.#describe();
    if (!this.dialog.open) this.modes.choose("");
    this.modes.show({ job, index, image }); // first: the dialog gives the focus to what is there when it opens
    if (!this.dialog.open) this.dialog.showModal();
    this.#fit();
    await this.#showPicture();
  }

  /** Until the picture is there, nothing of the one before stands beside its facts. */
  async #showPicture() {
    const { job, index, image } = this;
    const link = $("viewer-download");
    const wasFocused = document.activeElement === link;
    if (wasFocused) $("viewer-close").focus(); // a link to nothing loses the focus, and with it the arrow keys
    Object.assign($("viewer-image"), { alt: "" }).removeAttribute("src");
    link.removeAttribute("href");
    setError($("viewer-error"), "");
    try {
      const source = await pictureSource(image.url);
      if (this.image !== image) return; // walked on meanwhile
      Object.assign($("viewer-image"), { src: source, alt: job.prompt });
      Object.assign(link, { href: source, download: `${job.seed}-${index}.${job.format}` });
      if (wasFocused && document.activeElement === $("viewer-close")) link.focus();
    } catch (error) {
      if (this.image === image) setError($("viewer-error"), `The picture cannot be had: ${error.message}`);
    }
  }

  closeIfShows(job) {
    if (this.dialog.open && this.job?.id === job.id) this.dialog.close();
  }

  /** The job ended while it is looked at. */
  ended(job) {
    if (this.job?.id === job.id) this.#showDelete();
  }

  /** Of a job that still runs nothing can be deleted: the server would only cancel it and keep its pictures. */
  #showDelete() {
    $("viewer-delete").hidden = !isOver(this.job);
  }

  #describe() {
    const { job, image } = this;
    const row = this.pictures();
    const at = this.#place(row);
    $("viewer-prompt").textContent = job.prompt || "Without words";
    $("viewer-when").textContent = [exactTime(job.created_at), job.total_s && duration(job.total_s)].filter(Boolean).join(" · ");
    const facts = FACTS.map(([name, value]) => [name, value(job)]).filter(([, value]) => value !== "");
    facts.push(["Picture", `${this.index + 1} of ${job.num_images}`]);
    facts.push(...factsOf(job, this.models.for(job)));
    facts.push(["File", `${image.width_px} × ${image.height_px} px, ${bytes(image.size_bytes)}`]);
    $("viewer-facts").replaceChildren(...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value)))));
    $("viewer-previous").disabled = at <= 0;
    $("viewer-next").disabled = at < 0 || at >= row.length - 1;
    $("viewer-use").hidden = $("viewer-paint").hidden = !isReadable(this.models.for(job), job);
    this.#showDelete();
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
    if (event.target.closest('[role="tablist"], pre, input, textarea')) return;
    if (event.key === "ArrowLeft") this.#walk(-1);
    if (event.key === "ArrowRight") this.#walk(1);
  }

  #fit() {
    if (this.image && this.dialog.open) fit($("viewer-box"), this.image.width_px, this.image.height_px);
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
