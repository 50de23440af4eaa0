// What serves: the model line, and the banner that says what is wrong and what to do about it.

import { backend, base, getJSON, host } from "./api.js";
import { $, h, icon } from "./dom.js";
import { Models } from "./models.js";

const RETRY_MS = 2_000;
const NANO = "nano is the small model that comes with the server: it draws emoji, alone and in simple scenes, within "
  + "seconds on any computer. For drawings and photographs of anything, start the server with --model_version mini or mega.";

/**
 * Asks until the server is ready. Calls onModel(model) whenever more is known of the one that draws, onReady() every
 * time the server has become ready, onWaiting(text) meanwhile.
 */
export class Status {
  #timer;
  #asking;

  constructor({ onModel, onReady, onWaiting, onUnauthorized }) {
    Object.assign(this, { onModel, onReady, onWaiting, onUnauthorized, host });
    this.models = new Models(() => this.#showModel());
    $("model").addEventListener("toggle", () => $("model").open && this.info && this.refresh().catch((error) => this.#explain(error)));
  }

  check() {
    clearTimeout(this.#timer);
    this.#asking ??= this.#ask().finally(() => (this.#asking = undefined));
    return this.#asking;
  }

  checkIn(seconds) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.check(), seconds * 1000);
  }

  /** → promise of the end of the check that is under way, if one is. */
  asked() {
    return this.#asking;
  }

  /** A request found no server: say so, and go on asking. */
  lost() {
    this.#wait("unreachable", `No answer from ${this.host}. This page tries again every ${RETRY_MS / 1000} seconds; is the server running?`);
  }

  async #ask() {
    try {
      const { model: state } = await getJSON("/health"); // answers whatever the state is, and without a key
      if (state !== "ready") {
        await this.#explainState(state);
        return;
      }
      await this.refresh();
      hideBanner();
      this.onReady();
    } catch (error) {
      this.#explain(error);
    }
  }

  /** What is in memory changes with what is asked for. Rejects with an ApiError. */
  async refresh() {
    this.info = await getJSON("/v1/info");
    const told = JSON.stringify([this.info, await this.models.read(this.info)]);
    if (told === this.told) return; // the list stays as it is under the pointer
    this.told = told;
    this.#showModel();
  }

  #showModel() {
    const { chosen } = this.models;
    this.#show({ loaded: "ready", loading: "loading", failed: "stopped" }[chosen.state] ?? "idle", chosen.line, this.#details(chosen));
    this.onModel(chosen);
  }

  #explain(error) {
    if (error.status === 401) {
      this.told = "";
      this.#show("stopped", "A key is needed");
      this.onUnauthorized(error);
    } else if (error.code === "not_ready") {
      this.#explainState("loading");
    } else if (error.status === 429 || error.status === 503) {
      const seconds = error.retryAfter || (error.status === 429 ? 60 : 5);
      this.#wait("stopped", `${error.message}. This page tries again in ${seconds} s.`, seconds);
    } else if (error.status) {
      this.#wait("stopped", `${error.message} (${error.status})`);
    } else {
      this.lost();
    }
  }

  async #explainState(state) {
    if (state === "failed") this.#wait("stopped", `The model is not available: ${await failureReason()}`);
    else if (state === "draining") this.#wait("loading", "The server is shutting down; what it accepted is finished first.");
    else this.#wait("loading", "The model is loading. Pictures can be drawn as soon as it is ready; this page will notice.");
  }

  #wait(state, text, seconds = RETRY_MS / 1000) {
    this.told = "";
    this.#show(state === "loading" ? "loading" : "stopped", { loading: "Loading the model", unreachable: "No connection" }[state] ?? "Not ready");
    showBanner(text, state, () => this.check());
    this.onWaiting(state);
    this.checkIn(seconds);
  }

  #show(state, line, details = null) {
    $("model-dot").dataset.state = state;
    $("model-line").textContent = line;
    const focused = document.activeElement.id;
    $("model-more").replaceChildren(...(details ?? [h("p", {}, "More is known once the model is ready.")]));
    if (focused !== document.activeElement.id) $(focused)?.focus(); // what had the focus was made again
  }

  #details({ name, known }) {
    const list = this.models.list();
    if (!known) return list;
    const { model, runner } = known;
    const facts = [
      ["Model", `${model.name}, ${model.image_px} × ${model.image_px} px from ${model.image_tokens} tokens`],
      ["Runs on", `${runner.device_name} (${runner.device})`],
      ["With", `${runner.runner}, ${runner.dtype}`],
      ["Why", runner.reason],
      ["Repeatable", model.determinism],
      ["Weights", model.weights_digest.slice(0, 16)],
      ["Server", `${backend || this.host}, version ${this.info.version}`],
    ];
    const told = h("dl", { class: "facts" }, ...facts.filter(([, value]) => value).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
    return [...list, ...(name === "nano" && !this.models.areSeveral ? [h("p", {}, NANO)] : []), told];
  }
}

/** /ready answers 503 with a body that says why. */
async function failureReason() {
  try {
    return (await (await fetch(new URL("ready", base))).json()).reason;
  } catch {
    return "the server's log says why";
  }
}

function showBanner(text, state, retry) {
  const banner = $("banner");
  if (banner.dataset.text === text) return; // an alert that repeats itself would be read out again
  banner.dataset.text = text;
  banner.dataset.state = state;
  banner.replaceChildren(h("span", { class: "spinner", ariaHidden: "true" }), h("span", {}, text),
    h("button", { class: "button small", type: "button", onclick: retry }, icon("reuse"), "Try now"));
  banner.hidden = false;
}

function hideBanner() {
  $("banner").hidden = true;
  delete $("banner").dataset.text;
}
