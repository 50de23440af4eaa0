// Where a job's pictures come from: words alone, or a picture that was given (`over` in the API's answer).

import { h, icon } from "../dom.js";
import { plural } from "../format.js";

const KINDS = { edit: "brush", variation: "variation", branch: "branch" };
const NAMES = { edit: "Edit", variation: "Variation", branch: "Branch" };

/** "edit", "variation", "branch", or "" for words alone. */
export function kindOf({ over }) {
  if (!over) return "";
  if (over.keep_tokens) return "branch";
  return over.mask_url ? "edit" : "variation";
}

export function badge(job) {
  const kind = kindOf(job);
  return kind ? h("span", { class: "origin" }, icon(KINDS[kind]), NAMES[kind]) : null;
}

const manner = ({ strength, candidates }) => `strength ${Math.round(strength * 100)} %, ${plural(candidates, "candidate")}`;

/** [[name, value], …] for the viewer. */
export function factsOf(job, { imageTokens }) {
  const { over } = job;
  const side = Math.sqrt(imageTokens ?? 0); // 0: not known before the model is loaded
  switch (kindOf(job)) {
    case "branch": return [["Branch", `the first ${side ? `${over.keep_tokens / side} of ${side} ` : ""}rows were given`]];
    case "edit": return [["Edit", `of a part, ${manner(over)}`]];
    case "variation": return [["Variation", manner(over)]];
    default: return [];
  }
}

/** Whether the model has the tokens of this job's pictures: it has an encoder, or wrote them itself. */
export const isReadable = ({ features, name }, job) => features.includes("tokenize") || job.model === name;
