// Ways for a picture into the page: chosen, dropped, pasted, or dragged over from the gallery.

import { $ } from "../dom.js";

const GALLERY = "application/x-dalle-server-picture";

/** What is dragged out of the gallery: the picture's job and place, not its pixels. */
export function startDrag(event, job, index) {
  event.dataTransfer.setData(GALLERY, JSON.stringify({ job: job.id, index }));
  event.dataTransfer.effectAllowed = "copy";
}

const fileOf = ({ files }) => [...files].find((file) => file.type.startsWith("image/")) ?? files[0];
const carries = (event) => ["Files", GALLERY].find((type) => event.dataTransfer.types.includes(type));

/** onFile(file), onGallery({ job, index }). Files may be dropped anywhere; a gallery picture onto the composer. */
export function listenForPictures({ onFile, onGallery }) {
  const composer = $("composer");
  $("add-picture").addEventListener("click", () => $("picture-file").click());
  $("picture-file").addEventListener("change", ({ target }) => {
    if (target.files[0]) onFile(target.files[0]);
    target.value = ""; // the same file may be chosen again
  });
  document.addEventListener("paste", (event) => {
    const { files, types } = event.clipboardData;
    if (!files.length || types.includes("text/plain") || event.target.closest?.("dialog")) return;
    event.preventDefault();
    onFile(fileOf(event.clipboardData));
  });

  const takes = (event) => {
    const kind = carries(event);
    return kind && !document.querySelector("dialog[open]") && (kind === "Files" || composer.contains(event.target));
  };
  const show = (on) => composer.classList.toggle("dropping", Boolean(on));
  document.addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault(); // a file that misses must not replace the page
    event.dataTransfer.dropEffect = takes(event) ? "copy" : "none";
    show(takes(event));
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || show(false));
  document.addEventListener("dragend", () => show(false));
  document.addEventListener("drop", (event) => {
    show(false);
    if (!carries(event)) return;
    event.preventDefault();
    if (!takes(event)) return;
    const dragged = event.dataTransfer.getData(GALLERY);
    if (dragged) onGallery(JSON.parse(dragged));
    else if (event.dataTransfer.files.length) onFile(fileOf(event.dataTransfer));
  });
}
