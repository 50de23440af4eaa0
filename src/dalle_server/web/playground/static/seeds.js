// Seeds go up to 2⁶³ − 1, which no JavaScript number holds: on this page a seed is text, a string of digits.

const MAX_SEED = 2n ** 63n - 1n;

/** What is wrong with a typed seed, or "". */
export function seedFault(text) {
  if (text === "") return "";
  if (!/^[0-9]+$/.test(text)) return "A seed is a whole number, of digits only.";
  return BigInt(text) > MAX_SEED ? `A seed is at most ${MAX_SEED}.` : "";
}

/** Without zeros in front, which JSON does not allow. */
export const plainSeed = (text) => BigInt(text).toString();

/** JSON with the seed as a number, digit by digit. Inside a string a quote has a backslash before it: never this. */
export function toJSON(fields, indent) {
  return JSON.stringify(fields, null, indent).replace(/"seed":( ?)"(\d+)"/, '"seed":$1$2');
}
