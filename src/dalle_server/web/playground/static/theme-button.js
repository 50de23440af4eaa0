// Light, dark, or as the system is.

import { $, announce } from "./dom.js";

const STORE = "dalle-server.theme";
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

export function installTheme() {
  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : systemIsDark.matches;
    const wanted = dark ? "light" : "dark";
    if ((wanted === "dark") === systemIsDark.matches) {
      delete root.dataset.theme; // the same as the system: follow it again
      localStorage.removeItem(STORE);
    } else {
      root.dataset.theme = wanted;
      localStorage.setItem(STORE, wanted);
    }
    announce(`${wanted} colours`);
  });
}
