// How large a picture is shown, and where a pointer is over it.

const MAX_SCALE = 8; // beyond it the squares are all one sees
/** Up to this side a picture is a handful of squares, shown as such; a larger one is enlarged smoothly. */
export const SMALL_PX = 100;
const MARGIN_SHARE = 0.045; // of the room, on each side

/** Sizes `element` to a picture of width × height pixels in its parent: whole multiples, if small. */
export function fit(element, width, height) {
  const { clientWidth, clientHeight } = element.parentElement;
  const margin = Math.min(clientWidth, clientHeight) * MARGIN_SHARE;
  const scale = Math.min((clientWidth - 2 * margin) / width, (clientHeight - 2 * margin) / height, MAX_SCALE);
  const isSmall = Math.max(width, height) <= SMALL_PX;
  const whole = scale >= 2 || (scale >= 1 && isSmall) ? Math.floor(scale) : scale;
  Object.assign(element.style, { width: `${Math.round(width * whole)}px`, height: `${Math.round(height * whole)}px` });
  element.classList.toggle("smooth", !isSmall);
}

/** Where a pointer is over `element`, as shares 0…1 of its width and height. */
export function placeIn(element, { clientX, clientY }) {
  const { left, top, width, height } = element.getBoundingClientRect();
  const share = (value, length) => Math.min(1, Math.max(0, value / length));
  return { x: share(clientX - left, width), y: share(clientY - top, height) };
}

/** onPlace({ x, y }) while a pointer is pressed on `element`; other fingers are ignored. */
export function onDrag(element, onPlace) {
  let pointer = null;
  element.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button > 0) return;
    pointer = event.pointerId;
    element.setPointerCapture(pointer);
    event.preventDefault();
    onPlace(placeIn(element, event), "start");
  });
  element.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    const steps = event.getCoalescedEvents?.() ?? [];
    for (const step of steps.length ? steps : [event]) onPlace(placeIn(element, step), "move");
  });
  for (const name of ["pointerup", "pointercancel"]) {
    element.addEventListener(name, (event) => {
      if (event.pointerId !== pointer) return;
      pointer = null;
      onPlace(placeIn(element, event), "end");
    });
  }
}
