// The form: what to draw, and how. It remembers itself, and reuses what a past job had.

import { ApiError } from "../api.js";
import { $, announce, h, setError } from "../dom.js";
import { PictureFault } from "./given.js";
import { plainSeed, seedFault } from "../seeds.js";

const NUMBERS = ["condition_scale", "temperature", "top_k", "top_p"];
const CHOICES = ["best_of", "size", "fit"]; // empty: nothing was chosen
const SAVED = ["num_images", "format", "negative_prompt", ...CHOICES, ...NUMBERS];
const STORE = "dalle-server.composer";

export class Composer {
  /**
   * onSubmit(fields) → promise; a rejected ApiError is shown at its field. `given` is the picture to begin with.
   * asked() → promise of the end of a question whether the server is ready, if one is under way.
   */
  constructor(given, onSubmit, asked) {
    Object.assign(this, { given, onSubmit, asked });
    this.form = $("composer");
    this.sending = false;
    this.#restore();
    given.addEventListener("change", () => this.#showGiven());
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
    this.form.addEventListener("input", () => { this.#save(); this.#showError(null); });
    $("prompt").addEventListener("keydown", (event) => this.#key(event));
    $("clear-seed").addEventListener("click", () => this.#set("seed", ""));
    $("reset").addEventListener("click", () => this.#reset());
    for (const button of this.form.querySelectorAll("[data-step]")) {
      button.addEventListener("click", () => this.#step(Number(button.dataset.step)));
    }
  }

  /** The checkpoint's own defaults stand in the fields as placeholders; an empty field means them. */
  setModel(model, oneOfSeveral) {
    const { defaults, maxImages, imagePx } = model;
    Object.assign(this, { model, oneOfSeveral });
    for (const name of NUMBERS) $(name).placeholder = String(defaults[name] ?? "");
    $("size").placeholder = imagePx ? `${imagePx}x${imagePx}` : "the model's own";
    $("num_images").max = $("best_of").max = maxImages;
    if (Number($("num_images").value) > maxImages) this.#set("num_images", maxImages);
  }

  setIdeas(ideas) {
    $("ideas").replaceChildren(...ideas.map((idea) =>
      h("button", { class: "idea", type: "button", onclick: () => { this.#set("prompt", idea); $("prompt").focus(); } }, idea)));
  }

  /** ready = false: the button says why it waits. */
  setReady(ready, text = "Draw") {
    $("submit").disabled = !ready;
    $("submit-text").textContent = text;
  }

  /** A picture to begin with: take() is given it. What is wrong with it is told. → whether it is there. */
  begin(take, prompt = "") {
    return this.#come(async () => {
      await take(this.given);
      if (!$("prompt").value.trim()) this.#set("prompt", prompt);
      const isTyping = document.activeElement.matches("input, textarea, select") && this.form.contains(document.activeElement);
      if (!isTyping) this.#focus("");
    });
  }

  /** All of a past request, the picture that it began with too. → whether it could be had. */
  reuse(job) {
    return this.#come(async () => {
      if (job.over) await this.given.takeAgain(job);
      else this.given.clear();
      this.#set("prompt", job.prompt);
      this.#set("negative_prompt", job.negative_prompt);
      for (const name of NUMBERS) this.#set(name, String(job[name]) === $(name).placeholder ? "" : job[name]);
      for (const name of ["num_images", "seed", "format"]) this.#set(name, job[name]);
      for (const name of CHOICES) this.#set(name, job[name] ?? "");
      if (CHOICES.some((name) => job[name])) $("more").open = true;
      $("seamless").checked = Boolean(job.seamless);
      this.#focus("Settings taken over");
    });
  }

  /** What is still on its way, such as a picture that is being read, belongs to the next request: submit waits. */
  async #come(action) {
    const coming = (this.coming = action());
    try {
      await coming;
      this.#showError(null);
      return true;
    } catch (error) {
      if (!(error instanceof PictureFault || error instanceof ApiError)) throw error;
      this.#showError(error);
      return false;
    } finally {
      if (this.coming === coming) this.coming = undefined;
    }
  }

  reuseSeed(job) {
    this.#set("seed", job.seed);
    this.#focus(`Seed ${job.seed} taken over`);
  }

  async submit() {
    if (this.sending) return;
    this.sending = true;
    this.form.ariaBusy = "true";
    try {
      await this.asked(); // typed and sent while the page was still connecting, such as right after a key was given
      if ($("submit").disabled) {
        this.#showError({ message: "The server does not answer requests now. The prompt is kept; try again when it does." });
        return;
      }
      if (this.model?.state !== "loaded") $("submit-text").textContent = "Loading…";
      if (!(await this.#hasCome()) || !this.#valid()) return;
      await this.onSubmit({ ...this.fields(), ...(await this.given.fields()) });
      this.#showError(null);
    } catch (error) {
      this.#showError(error);
    } finally {
      this.sending = false;
      this.form.ariaBusy = "false";
      if (!$("submit").disabled) $("submit-text").textContent = "Draw";
    }
  }

  /** False: it could not be had, which is told already. */
  async #hasCome() {
    try {
      await this.coming;
      return true;
    } catch {
      return false;
    }
  }

  /** The body of POST /v1/jobs: nothing that was left empty. */
  fields() {
    const fields = { prompt: $("prompt").value.trim(), num_images: Number($("num_images").value), format: $("format").value, preview: $("preview").checked };
    for (const name of NUMBERS) if ($(name).value !== "") fields[name] = Number($(name).value);
    for (const name of ["size", "fit"]) if ($(name).value) fields[name] = $(name).value;
    if ($("best_of").value && !$("best_of").disabled) fields.best_of = Number($("best_of").value);
    if ($("seamless").checked) fields.seamless = true;
    if (this.oneOfSeveral) fields.model = this.model.name;
    if (this.#seed()) fields.seed = plainSeed(this.#seed());
    if ($("negative_prompt").value.trim()) fields.negative_prompt = $("negative_prompt").value.trim();
    return fields;
  }

  /** A picture needs no words: without any, those that it was made of count, if it is one of ours. */
  #showGiven() {
    $("prompt").required = !this.given.picture;
    $("best_of").disabled = Boolean(this.given.picture); // over a picture it is `candidates` that choose
    $("prompt").placeholder = this.given.picture ? "What it shall become" : "Describe a picture";
  }

  #seed() {
    return $("seed").value.trim();
  }

  #valid() {
    $("seed").setCustomValidity(seedFault(this.#seed()));
    const wrong = [...this.form.elements].find((element) => element.willValidate && !element.checkValidity());
    if (!wrong) {
      if ($("prompt").value.trim() || this.given.picture) return true;
      this.#showError({ param: "prompt", message: "Describe the picture you want first." });
      return false;
    }
    if (wrong.closest("details")) $("more").open = true;
    const text = wrong.id === "prompt" ? "Describe the picture you want first." : `${wrong.labels[0].textContent}: ${wrong.validationMessage}`;
    this.#showError({ param: wrong.id, message: text });
    return false;
  }

  #showError(error) {
    for (const field of this.form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
    setError($("form-error"), error && explain(error));
    const field = error?.param && $(error.param);
    if (field && this.form.contains(field)) {
      if (field.closest("details")) $("more").open = true;
      field.ariaInvalid = "true";
      field.focus();
    }
  }

  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.submit();
  }

  #step(by) {
    const field = $("num_images");
    this.#set("num_images", Math.min(Number(field.max), Math.max(1, (Number(field.value) || 1) + by)));
  }

  #set(name, value) {
    $(name).value = value;
    this.#save();
    this.#showError(null);
  }

  #reset() {
    for (const name of [...NUMBERS, ...CHOICES, "negative_prompt", "seed"]) this.#set(name, "");
    $("seamless").checked = false;
    announce("Back to the model's own settings");
  }

  #focus(text) {
    if (text) announce(text);
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.form.scrollIntoView({ block: "nearest", behavior: still ? "auto" : "smooth" });
    $("prompt").focus({ preventScroll: true });
  }

  #save() {
    localStorage.setItem(STORE, JSON.stringify(Object.fromEntries(SAVED.map((name) => [name, $(name).value]))));
  }

  #restore() {
    let saved = {};
    try {
      saved = JSON.parse(localStorage.getItem(STORE)) ?? {};
    } catch {
      // Not ours, or cut off: the form's own values stand.
    }
    for (const name of SAVED) if (saved[name]) $(name).value = saved[name];
    $("more").open = [...NUMBERS, ...CHOICES, "negative_prompt"].some((name) => $(name).value !== "");
  }
}

function explain(error) {
  if (error.status === 503 && error.code === "overloaded") {
    return `The queue is full. Try again in ${error.retryAfter || 5} s, or with fewer pictures.`;
  }
  if (error.status === 429) return `${error.message}. Try again in ${error.retryAfter || 60} s.`;
  if (error.status === 0) return `The server does not answer. The prompt is kept; try again when it is back.`;
  return error.message;
}
