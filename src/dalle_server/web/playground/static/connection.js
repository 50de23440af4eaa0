// The dialog for the API key, and for driving another server.

import { backend, getKey, host, setKey } from "./api.js";
import { $, setError } from "./dom.js";

/** onChange() after a new key. Another server means another address of this page, and a reload. */
export class Connection {
  constructor(onChange) {
    this.onChange = onChange;
    this.dialog = $("connection-dialog");
    $("connection").addEventListener("click", () => this.open());
    $("connection-cancel").addEventListener("click", () => this.dialog.close());
    $("connection-form").addEventListener("submit", (event) => this.#submit(event));
  }

  open(message = "") {
    for (const name of ["api_key-host", "api_key-receiver"]) $(name).textContent = host;
    $("api_key").value = getKey();
    $("backend").value = backend;
    setError($("connection-error"), message);
    if (!this.dialog.open) this.dialog.showModal();
    $("api_key").focus();
    $("api_key").select();
  }

  #submit(event) {
    event.preventDefault();
    const chosen = $("backend").value.trim().replace(/\/+$/, "");
    if (chosen && !/^https?:\/\/[^\s/]+/.test(chosen)) {
      setError($("connection-error"), "The server's address begins with http:// or https://, such as http://localhost:8000.");
      $("backend").focus();
      return;
    }
    if (chosen !== backend) {
      const address = new URL(location.href);
      if (chosen) address.searchParams.set("backendUrl", chosen);
      else address.searchParams.delete("backendUrl");
      location.assign(address);
      return;
    }
    setKey($("api_key").value.trim());
    this.dialog.close();
    this.onChange();
  }
}
