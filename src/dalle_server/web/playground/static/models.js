// The models of the server: what each is, whether it is in memory, and which one draws.

import { base, getJSON } from "./api.js";
import { announce, h } from "./dom.js";
import { bytes } from "./format.js";

const STORE = `dalle-server.model ${base}`;
const STATES = { loaded: "in memory", loading: "loading", on_disk: "on disk", absent: "to be fetched", failed: "cannot be loaded" };

export class Models {
  #all = new Map();
  #chosen = "";

  /** onChoose() after another one was chosen. */
  constructor(onChoose) {
    this.onChoose = onChoose;
  }

  /** Asks what there is. `info` is the answer of /v1/info. → what it was told. */
  async read(info) {
    const { data } = await getJSON("/v1/models");
    const known = new Map((info.models ?? [info]).map((each) => [each.model.name, each]));
    const items = data.filter((item) => !item.alias_of && (item.state || known.has(item.id)));
    this.#all = new Map(items.map((item) => [item.id, describe(item, known.get(item.id), info.limits)]));
    const stored = localStorage.getItem(STORE);
    this.#chosen = this.#all.has(stored) ? stored : info.model.name;
    return items;
  }

  /** The one that draws. What is only known of a model that has been loaded is missing before: imageTokens, defaults. */
  get chosen() {
    return this.#all.get(this.#chosen);
  }

  get areSeveral() {
    return this.#all.size > 1;
  }

  /** The model of a job, if it is still here; else the one that draws. */
  for(job) {
    return this.#all.get(job.model) ?? this.chosen;
  }

  /** The choice, for the popover; nothing where there is none. */
  list() {
    if (!this.areSeveral) return [];
    const choices = [...this.#all.values()].map((model) => this.#choice(model));
    return [h("fieldset", { class: "model-list" }, h("legend", {}, "Drawn by"), ...choices),
      h("p", { class: "hint" }, "A model that is not in memory is loaded with the first picture that asks for it.")];
  }

  #choice({ name, title, state, imagePx, sizeBytes, features, licence }) {
    const facts = [name, imagePx && `${imagePx} px`, sizeBytes && bytes(sizeBytes), features.includes("tokenize") ? "takes pictures" : "", licence];
    const radio = h("input", { type: "radio", name: "model", value: name, id: `model-${name}`, checked: name === this.#chosen, onchange: () => this.choose(name) });
    return h("label", { class: "model-choice" }, radio, h("strong", {}, title),
      h("span", { class: "model-state", dataset: { state } }, STATES[state] ?? state),
      h("span", { class: "hint" }, facts.filter(Boolean).join(" · ")));
  }

  choose(name) {
    if (name === this.#chosen || !this.#all.has(name)) return;
    this.#chosen = name;
    localStorage.setItem(STORE, name);
    announce(`${this.chosen.title} draws`);
    this.onChoose();
  }
}

function describe(item, known, limits) {
  const { id: name, title = name, state = "loaded", features, image_px: imagePx, size_bytes: sizeBytes, licence } = item;
  const model = { name, title, state, imagePx, sizeBytes, licence, features: features ?? known?.runner.features ?? [],
    defaults: {}, maxImages: limits.max_images, maxUploadBytes: limits.max_upload_bytes, line: `${name} · ${STATES[state]}` };
  if (!known) return model;
  const { runner } = known;
  const line = [name, runner.device === "cpu" ? "CPU" : runner.device_name, runner.runner, runner.dtype].join(" · ");
  return { ...model, known, line: state === "loaded" ? line : model.line, features: runner.features, imagePx: known.model.image_px,
    imageTokens: known.model.image_tokens, codebookSize: known.model.codebook_size, defaults: known.model.sampling };
}
