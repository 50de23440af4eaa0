// Server-sent events over fetch: EventSource can send neither a key nor another server's headers.

import { request } from "../api.js";

const FIRST_DELAY_MS = 500;
const MAX_DELAY_MS = 10_000;

/** The parts of a text/event-stream, as they arrive: { id, event, data }. */
async function* messages(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const message = {};
      for (const line of block.split("\n")) {
        const [, field, text] = /^(id|event|data): ?(.*)$/.exec(line) ?? [];
        if (field) message[field] = text;
      }
      if (message.data) yield { ...message, data: JSON.parse(message.data) };
    }
  }
}

/** One stream of all running jobs. It reconnects by itself and goes on where it was cut. */
export class JobEvents {
  /** onEvent(name, data); onOpen() after every (re)connection; onLost(error, delayMs) after every failure. */
  constructor({ onEvent, onOpen, onLost }) {
    Object.assign(this, { onEvent, onOpen, onLost });
    this.lastId = "0";
    this.abort = null;
  }

  open() {
    if (this.abort) return;
    this.abort = new AbortController();
    this.#run(this.abort.signal);
  }

  close() {
    this.abort?.abort();
    this.abort = null;
  }

  /** Ends a pause between two attempts. */
  hurry() {
    this.wake?.();
  }

  async #run(signal) {
    let delay = FIRST_DELAY_MS;
    while (!signal.aborted) {
      let lost;
      try {
        const response = await request("/v1/jobs/events", { signal, headers: { "Last-Event-ID": this.lastId } });
        delay = FIRST_DELAY_MS;
        this.onOpen();
        for await (const { id, event, data } of messages(response)) {
          this.lastId = id ?? this.lastId;
          this.onEvent(event, data);
        }
      } catch (error) {
        lost = error;
      }
      if (signal.aborted) return;
      this.onLost(lost, delay);
      await new Promise((resolve) => {
        this.wake = resolve;
        setTimeout(resolve, lost?.retryAfter ? lost.retryAfter * 1000 : delay);
      });
      delay = Math.min(delay * 2, MAX_DELAY_MS);
    }
  }
}
