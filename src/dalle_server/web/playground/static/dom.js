// Small helpers to build elements. Text is always set as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** h("button", { class: "button", onclick, ariaLabel: "…" }, "text", child) */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "class") element.className = value;
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function iconButton(name, label, onclick) {
  return h("button", { class: "icon-button", type: "button", title: label, ariaLabel: label, onclick }, icon(name));
}

let announced;

/** Says a line to screen readers, without moving anything on the page. */
export function announce(text) {
  clearTimeout(announced);
  $("announcer").textContent = "";
  announced = setTimeout(() => ($("announcer").textContent = text), 50);
}

let noticed;

/** A line that all see, for what has no place of its own; it goes by itself, and with a press on it. */
export function notice(text) {
  clearTimeout(noticed);
  if ($("notice").textContent !== text) setError($("notice"), text); // what repeats itself would be read out again
  $("notice").onclick = () => setError($("notice"), "");
  noticed = setTimeout($("notice").onclick, 12_000);
}

/** Shows `text` in an alert element, or hides it. */
export function setError(element, text) {
  element.hidden = !text;
  element.textContent = text || "";
}
