// The picture that is given to the composer: what it is, which part is drawn anew, and how far it may go.

import { pictureSource, request } from "../api.js";
import { $, announce } from "../dom.js";
import { SMALL_PX } from "../fit.js";
import { bytes } from "../format.js";
import { Mask, maskOperation } from "./mask.js";

const READ = ["image/png", "image/jpeg", "image/webp", "image/gif"]; // the server's; what else a browser shows becomes a PNG
const MAX_PIXELS = 50_000_000;
const ROOM_BYTES = 256 * 1024; // for what is sent beside the picture
const START = { whole: { strength: 0.5, candidates: 1 }, part: { strength: 1, candidates: 4 } };

/** What is wrong with a picture; shown at the form like an answer of the server. */
export class PictureFault extends Error {}

export class Given extends EventTarget {
  picture = null; // { source, width, height, name, blob } or { …, job, index }
  operations = [];
  takesPictures = true; // until the model is known; the server has the last word
  maxBytes = Infinity;
  #loading = 0;

  constructor() {
    super();
    $("given-remove").addEventListener("click", () => { this.clear(); $("prompt").focus(); announce("Picture removed"); });
    $("given-paint").addEventListener("click", () => this.paint());
    $("given-unmask").addEventListener("click", () => { this.#setMask([]); $("given-paint").focus(); });
    for (const name of ["strength", "candidates"]) $(name).addEventListener("input", () => this.#showValues());
  }

  setModel({ features, maxUploadBytes, imageTokens }) {
    Object.assign(this, { takesPictures: features.includes("tokenize"), maxBytes: maxUploadBytes - ROOM_BYTES, side: Math.sqrt(imageTokens ?? 0) });
  }

  /** Throws PictureFault for what is no picture, is too large, or for a model that takes none. */
  async takeFile(file) {
    if (!this.takesPictures) throw new PictureFault("The model that is loaded cannot take pictures from outside: its checkpoint has no encoder.");
    if (!file.type.startsWith("image/")) throw new PictureFault(`${file.name} is not a picture. Choose a PNG, JPEG, WebP or GIF file.`);
    const load = ++this.#loading;
    const picture = await measured(URL.createObjectURL(file), file.name || "Pasted picture");
    const blob = READ.includes(file.type) ? file : await asPNG(picture);
    if (blob.size > this.maxBytes) {
      throw new PictureFault(`${picture.name} has ${bytes(blob.size)}; the server takes ${bytes(this.maxBytes)}. Choose a smaller one.`);
    }
    await requireWhole(blob, picture.name);
    if (load === this.#loading) this.#take({ ...picture, blob });
  }

  /** A picture of the gallery stays where it is: the server is told its place. */
  async takeFromGallery(job, index) {
    const load = ++this.#loading;
    const { url } = job.images.find((image) => image.index === index);
    const picture = await measured(await pictureSource(url), `“${job.prompt}”`);
    if (load === this.#loading) this.#take({ ...picture, job: job.id, index });
  }

  /** What a past job began with, as it was sent, to send it again. */
  async takeAgain({ over, prompt }) {
    const load = ++this.#loading;
    const [blob, mask] = await Promise.all([over.image_url, over.mask_url].map((url) => url && request(url).then((answer) => answer.blob())));
    const picture = await measured(URL.createObjectURL(blob), `Given for “${prompt}”`);
    const operations = mask ? [await maskOperation(mask, picture)] : [];
    if (load !== this.#loading) return;
    this.#take({ ...picture, blob, keepTokens: over.keep_tokens });
    this.#setMask(operations);
    for (const name of ["strength", "candidates"]) $(name).value = over[name];
    this.#showValues();
  }

  clear() {
    this.#loading++;
    if (this.picture?.blob) URL.revokeObjectURL(this.picture.source);
    this.picture = null;
    this.operations = [];
    this.#show();
  }

  async paint() {
    const { Editor } = await import("./editor.js");
    this.editor ??= new Editor();
    const operations = await this.editor.paint(this.picture, this.operations);
    if (operations) this.#setMask(operations);
    $("given-paint").focus();
  }

  /** What goes into the request beside the form's own fields: { image, mask, strength, candidates }; files are Blobs. */
  async fields() {
    if (!this.picture) return {};
    const { blob, job, index, keepTokens } = this.picture;
    const image = blob ?? { job, index };
    if (keepTokens) return { image, keep_tokens: keepTokens };
    const fields = { image, strength: Number($("strength").value), candidates: Number($("candidates").value) };
    return this.operations.length ? { ...fields, mask: await this.#mask().file() } : fields;
  }

  #take(picture) {
    this.clear();
    this.picture = picture;
    this.#setMask([]);
    announce(`${picture.name} added`);
  }

  #setMask(operations) {
    this.operations = operations;
    const start = operations.length ? START.part : START.whole;
    for (const [name, value] of Object.entries(start)) $(name).value = value;
    this.#show();
  }

  #mask() {
    return new Mask(this.picture.width, this.picture.height, this.operations);
  }

  #show() {
    const { picture } = this;
    $("given").hidden = !picture;
    this.dispatchEvent(new Event("change"));
    if (!picture) return;
    const isPart = this.operations.length > 0;
    $("given-image").src = picture.source;
    $("given-title").textContent = $("given-title").title = picture.name;
    $("given-paint-text").textContent = isPart ? "Change mask" : "Paint a mask";
    $("given-unmask").hidden = $("given-mask").hidden = !isPart;
    $("given-settings").hidden = $("given-paint").hidden = Boolean(picture.keepTokens);
    $("given").classList.toggle("crisp", Math.max(picture.width, picture.height) <= SMALL_PX);
    $("given-what").textContent = `${picture.width} × ${picture.height} px · ${this.#whatChanges()}`;
    this.#showValues();
  }

  #whatChanges() {
    if (this.picture.keepTokens) return `its first ${this.side ? `${this.picture.keepTokens / this.side} ` : ""}rows stay`;
    if (!this.operations.length) return "all of it may change";
    const mask = this.#mask();
    const canvas = Object.assign($("given-mask"), { width: mask.canvas.width / 4, height: mask.canvas.height / 4 });
    mask.show(canvas);
    return `${Math.max(1, Math.round(mask.share() * 100))} % anew`;
  }

  #showValues() {
    const percent = Math.round(Number($("strength").value) * 100);
    $("strength-text").textContent = `${percent} %`;
    $("strength").setAttribute("aria-valuetext", `${percent} %`);
    $("candidates-text").textContent = $("candidates").value;
  }
}

const unreadable = (name) =>
  new PictureFault(`${name} cannot be read as a picture: it is damaged, or of a kind that this browser does not know.`);

/** { source, width, height, name }, before anything is decoded: a small file may hold a very large picture. */
async function measured(source, name) {
  const image = await loaded(source).catch(() => { throw unreadable(name); });
  const { naturalWidth: width, naturalHeight: height } = image;
  if (!width || !height) throw new PictureFault(`${name} has no size of its own. Choose a PNG, JPEG, WebP or GIF file.`);
  if (width * height > MAX_PIXELS) throw new PictureFault(`${name} has ${width} × ${height} pixels; 50 million in all are the most. Choose a smaller one.`);
  return { source, width, height, name };
}

function loaded(source) {
  const image = new Image();
  return new Promise((resolve, reject) => Object.assign(image, { onload: () => resolve(image), onerror: reject, src: source }));
}

async function requireWhole(blob, name) {
  const bitmap = await createImageBitmap(blob).catch(() => { throw unreadable(name); });
  bitmap.close();
}

async function asPNG({ source, width, height }) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").drawImage(await loaded(source), 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
