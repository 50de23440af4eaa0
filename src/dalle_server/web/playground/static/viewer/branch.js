// Redraw from here: the first rows of a finished picture stay, and the model writes the rest anew.

import { $, setError } from "../dom.js";
import { onDrag } from "../fit.js";
import { plural } from "../format.js";
import { plainSeed, seedFault } from "../seeds.js";

const TAKEN = ["top_k", "top_p", "condition_scale", "negative_prompt", "format"]; // as the picture itself was drawn

export class Branch {
  /** onSubmit(fields) → promise; a rejected error is shown in the panel. */
  constructor(models, onSubmit) {
    Object.assign(this, { models, onSubmit, sending: false });
    $("branch-rows").addEventListener("input", () => this.#show());
    $("branch-panel").addEventListener("submit", (event) => { event.preventDefault(); this.#submit(); });
    onDrag($("branch-layer"), ({ y }) => {
      $("branch-rows").value = Math.round(y * this.side);
      this.#show();
    });
  }

  get side() {
    return Math.sqrt(this.models.for(this.job).imageTokens);
  }

  /** Only a picture that is the model's grid and nothing else has rows. */
  isPossible({ job, image }) {
    const { name, imagePx, imageTokens } = this.models.for(job);
    return job.model === name && Boolean(imageTokens) && image.width_px === image.height_px && image.width_px === imagePx;
  }

  async open({ job, index }) {
    Object.assign(this, { job, index });
    Object.assign($("branch-rows"), { min: 1, max: this.side - 1, value: Math.floor(this.side / 2) });
    $("branch-prompt").value = job.prompt;
    $("branch-seed").value = "";
    $("branch-temperature").value = job.temperature;
    $("branch-images").max = this.models.for(job).maxImages;
    setError($("branch-error"), "");
    this.#show();
  }

  focus() {
    $("branch-rows").focus();
  }

  close() {}

  #show() {
    const kept = Number($("branch-rows").value);
    $("branch-layer").style.setProperty("--kept", `${(kept / this.side) * 100}%`);
    $("branch-layer").style.setProperty("--cell", `${100 / this.side}%`);
    $("branch-layer").style.setProperty("--left", this.side - kept);
    $("branch-rows-text").textContent = `${kept} of ${this.side}`;
    $("branch-rows").setAttribute("aria-valuetext", `${plural(kept, "row")} of ${this.side} stay`);
    $("branch-submit-text").textContent = `Draw the other ${plural(this.side - kept, "row")}`;
  }

  /** The body of POST /v1/jobs. */
  #fields() {
    const { job, index } = this;
    const seed = $("branch-seed").value.trim();
    return {
      prompt: $("branch-prompt").value.trim(), num_images: Number($("branch-images").value), preview: true,
      temperature: Number($("branch-temperature").value), ...Object.fromEntries(TAKEN.map((name) => [name, job[name]])),
      ...(job.seamless ? { seamless: true } : {}), ...(this.models.areSeveral ? { model: job.model } : {}), ...(seed ? { seed: plainSeed(seed) } : {}),
      image: { job: job.id, index }, keep_tokens: Number($("branch-rows").value) * this.side,
    };
  }

  async #submit() {
    const fault = seedFault($("branch-seed").value.trim()) || this.#wrongField();
    setError($("branch-error"), fault);
    if (fault || this.sending) return;
    this.sending = true;
    try {
      await this.onSubmit(this.#fields());
    } catch (error) {
      setError($("branch-error"), error.message);
    } finally {
      this.sending = false;
    }
  }

  #wrongField() {
    const wrong = [...$("branch-panel").elements].find((element) => element.willValidate && !element.checkValidity());
    wrong?.focus();
    return wrong ? `${wrong.labels[0].textContent}: ${wrong.validationMessage}` : "";
  }
}
