// Puts the page together.

import { ApiError, getKey, host } from "./api.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { $, announce } from "./dom.js";
import { announceEnd, Feed } from "./feed.js";
import { plural } from "./format.js";
import { ideasFor } from "./ideas.js";
import { Jobs } from "./jobs.js";
import { installNotifications, notifyEnd } from "./notify.js";
import { Status } from "./status.js";
import { installTheme } from "./theme-button.js";
import { Viewer } from "./viewer.js";

const jobs = new Jobs();
let feed;
let viewer;

const actions = {
  open: (job, index) => viewer.open(job, index),
  reuse: (job) => composer.reuse(job),
  reuseSeed: (job) => composer.reuseSeed(job),
  retry: (job) => { composer.reuse(job); composer.submit(); },
  cancel: (job) => attempt(() => jobs.cancel(job)),
  remove: async (job) => {
    if (job.images.length && !(await confirmDeletion(job))) return;
    viewer.closeIfShows(job);
    await attempt(() => jobs.remove(job));
    announce("Deleted");
  },
  onError: fail,
};

const composer = new Composer(async (fields) => {
  try {
    const job = await jobs.submit(fields);
    announce(job.position ? `Accepted, ${plural(job.position, "picture")} ahead` : "Accepted");
  } catch (error) {
    if (!error.status || error.status === 401) fail(error);
    throw error;
  }
});

const status = new Status({
  onReady: (model) => attempt(() => begin(model)),
  onWaiting: (state) => composer.setReady(false, state === "loading" ? "Loading…" : "Waiting…"),
  onUnauthorized: (error) => {
    composer.setReady(false, "Key needed");
    connection.open(getKey() ? `${host}: ${error.message}` : `${host} asks for an API key.`);
  },
});

const connection = new Connection(() => {
  jobs.reset();
  status.check();
});

/** The model is there: for the first time, after a restart, or with another key. */
async function begin(model) {
  composer.setModel(model);
  composer.setIdeas(ideasFor(model.name));
  composer.setReady(true);
  if (feed) feed.model = model;
  feed ??= new Feed(jobs, model, actions);
  viewer ??= new Viewer(() => feed.pictures(), actions);
  await feed.load();
}

async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    fail(error);
  }
}

/** What no field can show: no server, or no right to use it. Everything else is a fault of this page. */
function fail(error) {
  if (!(error instanceof ApiError)) throw error;
  if (!error.status || error.status === 503) status.lost();
  else if (error.status === 401) status.check();
  else announce(error.message);
}

function confirmDeletion(job) {
  const dialog = $("confirm");
  $("confirm-text").textContent = `${plural(job.images.length, "picture")} of “${job.prompt.slice(0, 120)}”. This cannot be undone.`;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

jobs.addEventListener("lost", ({ detail }) => detail.error && status.check());
jobs.addEventListener("ended", ({ detail: { job } }) => { announceEnd(job); notifyEnd(job); });
window.addEventListener("online", () => status.check());

installTheme();
installNotifications();
status.check();
