// Ways to look at the picture in the viewer: as it is, against the one it came from, its likelihood, its rows.

import { Branch } from "./branch.js";
import { Compare } from "./compare.js";
import { $ } from "../dom.js";
import { Heat } from "./heat.js";

export class Modes {
  #mode = "";

  /** onBranch(fields) → promise. A mode has isPossible, open, focus and close. */
  constructor(models, onBranch) {
    this.modes = { compare: new Compare(), heat: new Heat(models), branch: new Branch(models, onBranch) };
    for (const name of Object.keys(this.modes)) {
      $(`mode-${name}`).addEventListener("click", () => this.choose(this.#mode === name ? "" : name, { focus: true }));
    }
  }

  /** Another picture { job, index, image }: the mode stays if it can. */
  show(shown) {
    this.shown = shown;
    for (const [name, mode] of Object.entries(this.modes)) $(`mode-${name}`).hidden = !mode.isPossible(shown);
    $("viewer-tools").hidden = Object.keys(this.modes).every((name) => $(`mode-${name}`).hidden);
    if (document.activeElement.closest("#viewer-tools [hidden]")) $("viewer-close").focus(); // else the arrow keys are lost
    const stays = this.#mode && !$(`mode-${this.#mode}`).hidden;
    this.choose(stays ? this.#mode : "");
  }

  choose(chosen, { focus = false } = {}) {
    this.modes[this.#mode]?.close();
    this.#mode = chosen;
    $("viewer").dataset.mode = chosen;
    for (const name of Object.keys(this.modes)) {
      $(`mode-${name}`).ariaPressed = String(name === chosen);
      for (const part of [$(`${name}-layer`), $(`${name}-panel`)]) if (part) part.hidden = name !== chosen;
    }
    if (!chosen) return;
    this.modes[chosen].open(this.shown);
    if (focus) this.modes[chosen].focus();
  }
}
