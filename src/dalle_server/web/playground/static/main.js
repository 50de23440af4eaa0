// Puts the page together.

import { ApiError, getKey, host } from "./api.js";
import { Composer } from "./composer/composer.js";
import { Connection } from "./connection.js";
import { $, announce, notice } from "./dom.js";
import { announceEnd, Feed } from "./feed/feed.js";
import { plural } from "./format.js";
import { Given } from "./composer/given.js";
import { ideasFor } from "./composer/ideas.js";
import { listenForPictures } from "./composer/incoming.js";
import { Jobs } from "./feed/jobs.js";
import { installNotifications, notifyEnd } from "./notify.js";
import { Status } from "./status.js";
import { installTheme } from "./theme-button.js";
import { Viewer } from "./viewer/viewer.js";

const jobs = new Jobs();
let feed;
let viewer;
let isBegun = false; // the feed shows what this server has

const actions = {
  submit,
  use: (job, index) => composer.begin((given) => given.takeFromGallery(job, index), job.prompt),
  paint: async (job, index) => (await actions.use(job, index)) && given.paint(),
  open: (job, index) => viewer.open(job, index),
  reuse: (job) => { status.models.choose(job.model); return composer.reuse(job); },
  reuseSeed: (job) => composer.reuseSeed(job),
  retry: async (job) => (await actions.reuse(job)) && composer.submit(),
  cancel: (job) => attempt(() => jobs.cancel(job)),
  remove: async (job) => {
    if (job.images.length && !(await confirmDeletion(job))) return;
    viewer.closeIfShows(job);
    await attempt(async () => announce((await jobs.remove(job)) ? "Deleted" : "Cancelled; its pictures stay"));
  },
  onError: fail,
  onUnlisted: unlisted,
};

const given = new Given();
const composer = new Composer(given, submit, () => status.asked());

async function submit(fields) {
  try {
    const job = await jobs.submit(fields);
    if (status.models.for(job).state !== "loaded") attempt(() => status.refresh()); // now it is
    announce(job.position ? `Accepted, ${plural(job.position, "picture")} ahead` : "Accepted");
  } catch (error) {
    if (!error.status || error.status === 401) fail(error);
    throw error;
  }
}

const status = new Status({
  onModel: (model) => {
    composer.setModel(model, status.models.areSeveral);
    composer.setIdeas(ideasFor(model.name));
    given.setModel(model);
  },
  onReady: () => begin().catch(unlisted),
  onWaiting: (state) => { isBegun = false; composer.setReady(false, state === "loading" ? "Loading…" : "Waiting…"); },
  onUnauthorized: (error) => {
    isBegun = false;
    composer.setReady(false, "Key needed");
    connection.open(getKey() ? `${host}: ${error.message}` : `${host} asks for an API key.`);
  },
});

const connection = new Connection(() => {
  jobs.reset();
  checkAnew();
});

function checkAnew() {
  isBegun = false;
  status.check();
}

/** The server is ready: for the first time, after a restart, or with another key. A stream that was refused or cut is
    no reason to make all cards again. */
async function begin() {
  composer.setReady(true);
  if (isBegun) return;
  isBegun = true;
  feed ??= new Feed(jobs, status.models, actions);
  viewer ??= new Viewer(status.models, () => feed.pictures(), actions);
  await feed.load().catch((error) => { isBegun = false; throw error; });
}

async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    fail(error);
  }
}

/** What no field can show: no server, no right to use it, or what it says. Everything else is a fault of this page. */
function fail(error) {
  if (!(error instanceof ApiError)) throw error;
  if (!error.status) status.lost();
  else if (error.status === 401) status.check();
  else notice(error.retryAfter ? `${error.message}. Try again in ${error.retryAfter} s.` : error.message);
}

/** The list could not be had. One that is refused for now is asked for again; what stands here stays, and so does Draw. */
function unlisted(error) {
  if (![429, 503].includes(error.status)) {
    fail(error);
    return;
  }
  const seconds = error.retryAfter || 5;
  isBegun = false;
  notice(`${error.message}. This page tries again in ${seconds} s.`);
  status.checkIn(seconds);
}

function confirmDeletion(job) {
  const dialog = $("confirm");
  $("confirm-text").textContent = `${plural(job.images.length, "picture")} of “${job.prompt.slice(0, 120)}”. This cannot be undone.`;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

jobs.addEventListener("lost", ({ detail }) => detail.error && status.check());
jobs.addEventListener("ended", ({ detail: { job } }) => { announceEnd(job); notifyEnd(job); viewer?.ended(job); });
window.addEventListener("online", checkAnew);

listenForPictures({
  onFile: (file) => composer.begin(() => given.takeFile(file)),
  onGallery: ({ job, index }) => jobs.get(job) && actions.use(jobs.get(job), index),
});
installTheme();
installNotifications();
status.check();
