// Before and after, one over the other, with a line to pull between them.

import { pictureSource } from "../api.js";
import { $, setError } from "../dom.js";
import { onDrag } from "../fit.js";

export class Compare {
  constructor() {
    const range = $("compare-at");
    range.addEventListener("input", () => this.#show());
    onDrag($("compare-layer"), ({ x }, phase) => {
      range.value = Math.round(x * 100);
      this.#show();
      if (phase === "start") range.focus();
    });
  }

  isPossible({ job }) {
    return Boolean(job.over);
  }

  async open({ job }) {
    $("compare-at").value = 50;
    this.#show();
    this.job = job;
    try {
      const source = await pictureSource(job.over.image_url);
      if (this.job === job) $("compare-before").src = source; // else walked on meanwhile
    } catch (error) {
      if (this.job === job) setError($("viewer-error"), `The picture before cannot be had: ${error.message}`);
    }
  }

  focus() {
    $("compare-at").focus();
  }

  close() {
    this.job = null;
    $("compare-before").removeAttribute("src");
  }

  #show() {
    const at = Number($("compare-at").value);
    $("compare-layer").style.setProperty("--at", `${at}%`);
    $("compare-at").setAttribute("aria-valuetext", at <= 0 ? "all after" : at >= 100 ? "all before" : `before up to ${at} %, then after`);
  }
}
