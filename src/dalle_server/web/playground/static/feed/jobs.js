// The jobs this page knows, folded from the API's answers and events. Listeners hear of every change.

import { dataURL, getJSON, request } from "../api.js";
import { JobEvents } from "./events.js";

const TERMINAL = new Set(["done", "failed", "cancelled"]);
export const isOver = (job) => TERMINAL.has(job.status);

const rank = (job) => ({ queued: 0, running: 1 })[job.status] ?? 2;

/** An answer can be overtaken by the events of the same job; then the events know better. */
const isStale = (answer, known) =>
  rank(answer) < rank(known) || (rank(answer) === rank(known) && (answer.tokens_done ?? 0) < (known.tokens_done ?? 0));

export class Jobs extends EventTarget {
  #jobs = new Map();
  #asked = new Set(); // ids of unknown jobs whose answer is on its way
  #ends = new Set(); // ids of jobs that ended before they were known
  #stream = new JobEvents({
    onEvent: (name, data) => this.#fold(name, data),
    onOpen: () => { this.#tell("connected"); this.refresh(); },
    onLost: (error) => { this.#tell("lost", { error }); this.refresh(); },
  });

  get(id) {
    return this.#jobs.get(id);
  }

  get running() {
    return [...this.#jobs.values()].filter((job) => !isOver(job));
  }

  /** fields may hold files, as Blobs: then they go as a form. */
  async submit(fields) {
    const job = await getJSON("/v1/jobs", { method: "POST", body: await bodyOf(fields) });
    this.#put(job, { quiet: true });
    this.#tell("added", { job: this.get(job.id), isOwn: true }); // also where an event has told of it before
    return this.get(job.id);
  }

  /** One page, newest first: { jobs, hasMore }. */
  async page({ search = "", after = "", limit = 24 } = {}) {
    const query = new URLSearchParams({ q: search, after, limit });
    const { data, has_more: hasMore } = await getJSON(`/v1/jobs?${query}`);
    data.forEach((job) => this.#put(job, { quiet: true }));
    this.#watch();
    return { jobs: data.map((job) => this.get(job.id)), hasMore };
  }

  /** Whatever happened meanwhile, the pictures that it has stay. */
  async cancel(job) {
    try {
      this.#put(await getJSON(`/v1/jobs/${job.id}/cancel`, { method: "POST" }));
    } catch (error) {
      if (error.status === 404) this.#forget(job);
      throw error;
    }
  }

  /** Deletes a job with its pictures → whether it is gone. One that still runs is only cancelled (202). */
  async remove(job) {
    const answer = await request(`/v1/jobs/${job.id}`, { method: "DELETE" }).catch((error) => {
      if (error.status !== 404) throw error;
      return error; // it went in another tab
    });
    if (answer.status === 202) this.#put(await answer.json());
    else this.#forget(job);
    return answer.status !== 202;
  }

  /** Ask again about everything unfinished: after a lost connection an end may have been missed. */
  async refresh() {
    for (const job of this.running) {
      try {
        this.#put(await getJSON(`/v1/jobs/${job.id}`));
      } catch (error) {
        if (error.status === 404) {
          this.#forget(job);
        } else if (!error.status) {
          return;
        }
      }
    }
  }

  retryNow() {
    this.#stream.hurry();
  }

  /** With a new key: forget everything, and the stream too. */
  reset() {
    this.#stream.close();
    this.#stream.lastId = "0";
    this.#jobs.clear();
    this.#ends.clear();
  }

  #put(fresh, { quiet = false } = {}) {
    fresh.seed = fresh.seed_text ?? String(fresh.seed); // as text: the number may have been rounded
    const known = this.#jobs.get(fresh.id);
    if (known && isStale(fresh, known)) return;
    const wasOver = known ? isOver(known) : true;
    const job = Object.assign(known ?? { previews: new Map(), receivedAt: 0 }, fresh, { receivedAt: performance.now() });
    this.#jobs.set(job.id, job);
    if (!known && !quiet) this.#tell("added", { job });
    else if (known) this.#tell("changed", { job });
    if (known && !wasOver && isOver(job)) this.#tell("ended", { job });
    this.#watch();
    const wasTold = this.#ends.delete(job.id);
    if (wasTold && !isOver(job)) this.#ask(job.id); // the answer is older than the end, which no event tells again
  }

  #fold(name, data) {
    const job = this.#jobs.get(data.job);
    if (!job) {
      this.#meet(data.job, name);
      return;
    }
    if (isOver(job)) return;
    job.receivedAt = performance.now();
    switch (name) {
      case "queued": Object.assign(job, { status: "queued", position: data.position, tokens_done: 0 }); break;
      case "started": Object.assign(job, { status: "running", position: 0 }); break;
      case "progress": Object.assign(job, { status: "running", tokens_done: data.tokens_done, num_tokens: data.num_tokens, eta_s: data.eta_s }); break;
      case "preview": job.previews.set(data.index, data); break;
      case "image": this.#addImage(job, data); break;
      default: this.#end(job, name, data);
    }
    this.#tell("changed", { job, event: name, index: data.index });
    if (isOver(job)) {
      this.#tell("ended", { job });
      this.#watch();
    }
  }

  #addImage(job, image) {
    job.images = [...job.images.filter((each) => each.index !== image.index), image].sort((a, b) => a.index - b.index);
    job.previews.delete(image.index);
  }

  #end(job, status, data) {
    Object.assign(job, { status, error: data.error ?? null, finished_at: Date.now() / 1000, total_s: data.total_s ?? null });
    if (data.images) job.images = data.images;
    job.previews.clear();
  }

  /** A job of another tab or device appears here too. */
  #meet(id, name) {
    if (TERMINAL.has(name)) this.#ends.add(id);
    else if (id && !this.#asked.has(id)) this.#ask(id);
  }

  async #ask(id) {
    this.#asked.add(id);
    try {
      this.#put(await getJSON(`/v1/jobs/${id}`));
    } catch {
      // It is gone already, or the connection is: the next page load shows what there is.
    } finally {
      this.#asked.delete(id);
    }
  }

  /** The stream is open only while something runs: an idle page costs the server nothing. */
  #watch() {
    if (this.running.length) this.#stream.open();
    else this.#stream.close();
  }

  #forget(job) {
    this.#jobs.delete(job.id);
    this.#tell("removed", { job });
    this.#watch();
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** A large file goes as it is, in a form; JSON would make it a third larger. A mask alone is small. */
async function bodyOf(fields) {
  if (!(fields.image instanceof Blob)) return fields.mask ? { ...fields, mask: await dataURL(fields.mask) } : fields;
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  return form;
}
