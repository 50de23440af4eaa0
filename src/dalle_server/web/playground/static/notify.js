// Desktop notifications, when asked for: a job has ended while the page is out of sight.

import { $, announce } from "./dom.js";
import { plural } from "./format.js";

const STORE = "dalle-server.notify";
const possible = "Notification" in window && window.isSecureContext;
const wanted = () => possible && Notification.permission === "granted" && localStorage.getItem(STORE) === "yes";

export function installNotifications() {
  const button = $("notify");
  button.hidden = !possible; // browsers allow them on https and localhost only
  button.ariaPressed = String(wanted());
  button.addEventListener("click", async () => {
    const on = !wanted() && (await Notification.requestPermission()) === "granted";
    localStorage.setItem(STORE, on ? "yes" : "no");
    button.ariaPressed = String(wanted());
    if (Notification.permission === "denied") announce("This browser blocks notifications for this page");
    else announce(wanted() ? "Notifications are on" : "Notifications are off");
  });
}

export function notifyEnd(job) {
  if (!wanted() || !document.hidden || job.status === "cancelled") return;
  const title = job.status === "done" ? `${plural(job.images.length, "picture")} finished` : "A request failed";
  const notification = new Notification(title, { body: job.prompt.slice(0, 120), tag: job.id });
  notification.onclick = () => { window.focus(); notification.close(); };
}
