// The pictures: running jobs and past ones in one list, newest first, with search and paging.

import { forgetPicture } from "../api.js";
import { Card } from "./card.js";
import { $, announce, h } from "../dom.js";
import { emptyPicture } from "./empty.js";
import { plural } from "../format.js";
import { isOver } from "./jobs.js";

const PAGE = 24;

export class Feed {
  #cards = new Map();
  #search = "";
  #load = 0;
  #arrived = []; // what was told since the last load began: its answer may be older

  constructor(jobs, models, actions) {
    Object.assign(this, { jobs, models, actions });
    this.element = $("feed");
    jobs.addEventListener("added", ({ detail }) => { this.#arrived.push(detail); this.#place(detail); });
    jobs.addEventListener("changed", ({ detail }) => this.#change(detail));
    jobs.addEventListener("removed", ({ detail }) => this.#remove(detail.job));
    $("more-pictures").addEventListener("click", () => this.#more().catch(this.actions.onError));
    this.#listenToSearch();
    new ResizeObserver(() => this.#cards.forEach((card) => card.chooseScaling())).observe(this.element);
    setInterval(() => this.jobs.running.forEach((job) => this.#cards.get(job.id)?.tick()), 500);
    setInterval(() => this.#cards.forEach((card) => card.showAge()), 60_000);
  }

  /** The first page again. Rejects with an ApiError. */
  async load() {
    const load = ++this.#load;
    this.#arrived = [];
    const page = await this.jobs.page({ search: this.#search, limit: PAGE }).catch((error) => {
      if (load === this.#load) throw error;
    });
    if (load !== this.#load) return; // a newer search has overtaken this one
    const { jobs, hasMore } = page;
    this.#cards.clear();
    this.element.replaceChildren();
    jobs.forEach((job) => this.#append(job));
    this.#paged(hasMore);
    this.#arrived.filter(({ job }) => this.jobs.get(job.id)).forEach((each) => this.#place(each));
  }

  /** Finished pictures in the order they are shown: [{ job, index }]. */
  pictures() {
    return [...this.element.children].flatMap((element) => {
      const job = this.jobs.get(element.dataset.job);
      return job ? job.images.map((image) => ({ job, index: image.index })) : [];
    });
  }

  focusCard(job) {
    this.#cards.get(job.id)?.cells[0].element.focus();
  }

  async #more() {
    const last = this.element.lastElementChild?.dataset.job ?? ""; // the one that is there now: another may be deleted
    const page = await this.jobs.page({ search: this.#search, after: last, limit: PAGE }).catch((error) => {
      if (error.status !== 404) throw error;
    });
    if (!page) return this.load(); // `last` is gone, and others may be: what stands here is old
    const { jobs, hasMore } = page;
    const before = this.element.children.length;
    jobs.forEach((job) => this.#append(job));
    this.#paged(hasMore);
    announce(`${plural(jobs.length, "older request")} shown`);
    this.element.children[before]?.querySelector("button:enabled")?.focus();
  }

  #paged(hasMore) {
    $("more-pictures").hidden = !hasMore;
    this.#showEmpty();
  }

  #makeCard(job) {
    const card = new Card(job, this.models.for(job), this.actions);
    this.#cards.set(job.id, card);
    return card;
  }

  #append(job) {
    if (this.#cards.has(job.id)) return;
    this.element.append(this.#makeCard(job).element);
    this.#cards.get(job.id).chooseScaling();
  }

  /** A job of this page comes first; one of another tab or device goes where it belongs. */
  #place({ job, isOwn }) {
    if (this.#cards.has(job.id) || (!isOwn && this.#search)) return; // whether it is looked for, only the server knows
    const cards = [...this.element.children];
    const next = isOwn ? cards[0] : cards.find((card) => this.jobs.get(card.dataset.job)?.created_at <= job.created_at);
    if (!isOwn && !next && !$("more-pictures").hidden) return; // it comes with the older ones
    const { element } = this.#makeCard(job);
    element.classList.add("arriving");
    this.element.insertBefore(element, next ?? null);
    this.#cards.get(job.id).chooseScaling();
    this.#showEmpty();
  }

  #change({ job, index }) {
    this.#cards.get(job.id)?.update(index);
  }

  #remove(job) {
    [...job.images.map((image) => image.url), job.over?.image_url].forEach(forgetPicture);
    const card = this.#cards.get(job.id);
    this.#cards.delete(job.id);
    card?.element.remove();
    this.#showEmpty();
  }

  #listenToSearch() {
    let timer;
    $("search").addEventListener("input", ({ target }) => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        this.#search = target.value.trim();
        this.load().then(() => announce(`${plural(this.#cards.size, "request")} found`), this.actions.onUnlisted);
      }, 200);
    });
    document.addEventListener("keydown", (event) => {
      const typing = event.target.closest?.("input, textarea, select, dialog");
      if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      $("search").focus();
    });
  }

  #showEmpty() {
    const empty = this.#cards.size === 0;
    $("empty").hidden = !empty;
    this.element.hidden = empty;
    if (!empty) return;
    const [title, text] = this.#search
      ? [`Nothing for “${this.#search}”`, "Search looks for every word in prompts and seeds."]
      : ["Nothing drawn yet", "Type what you would like to see, or take one of the ideas. Each picture appears row by row while it is written. Or begin with a picture of your own: drop it onto the prompt, paste it, or choose it."];
    $("empty").replaceChildren(...(this.#search ? [] : [emptyPicture()]), h("p", { class: "empty-title" }, title), h("p", {}, text));
  }
}

/** Says to a screen reader what just happened to a job. */
export function announceEnd(job) {
  const what = `“${job.prompt.slice(0, 60)}”`;
  if (job.status === "done") announce(`${plural(job.images.length, "picture")} finished: ${what}`);
  else if (isOver(job)) announce(`${job.status}: ${what}`);
}
