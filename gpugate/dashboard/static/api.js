// The gateway's endpoints, and its events. Paths are relative to this file, so that a path prefix needs no setting.

const API = new URL("../api/v1/", import.meta.url);
const SILENCE_MS = 45_000; // the gateway sends a comment every 15 s

export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export class Api {
  #token;
  clockOffset = 0; // milliseconds to add to this machine's clock to have the gateway's

  constructor(token) {
    this.#token = token;
  }

  async call(method, path) {
    let response;
    try {
      response = await fetch(new URL(path, API), { method, headers: this.#headers(), cache: "no-store" });
    } catch {
      throw new ApiError(0, "", "The gateway does not answer.");
    }
    let body = null;
    try {
      body = await response.json();
    } catch {
      throw new ApiError(response.status, "", `Something in front of the gateway answered ${response.status}.`);
    }
    if (body?.status !== "success") {
      throw new ApiError(response.status, body?.error?.code ?? "", body?.error?.message ?? `It answered ${response.status}.`);
    }
    const now = Date.parse(body.meta?.timestamp);
    if (!Number.isNaN(now)) this.clockOffset = now - Date.now();
    return body.data;
  }

  get(path) {
    return this.call("GET", path);
  }

  // Calls onEvent(kind, data) for every event until `signal` is aborted; reconnects by itself.
  async follow(onEvent, onConnection, signal) {
    let lastId = "";
    let pause = 500;
    while (!signal.aborted) {
      try {
        await this.#read(lastId, signal, (id, kind, data) => {
          lastId = id || lastId;
          pause = 500;
          onEvent(kind, data);
        }, () => onConnection(true));
      } catch (error) {
        if (error instanceof ApiError && error.status === 401) {
          onConnection(false, error);
          return;
        }
      }
      if (signal.aborted) return;
      onConnection(false, null);
      await new Promise((resolve) => setTimeout(resolve, pause));
      pause = Math.min(pause * 2, 15_000);
    }
  }

  async #read(lastId, signal, onEvent, onOpen) {
    const timed = new AbortController();
    let timer;
    const wait = () => {
      clearTimeout(timer);
      timer = setTimeout(() => timed.abort(), SILENCE_MS);
    };
    const stop = () => timed.abort();
    signal.addEventListener("abort", stop, { once: true });
    wait();
    try {
      const headers = { ...this.#headers(), Accept: "text/event-stream", ...(lastId && { "Last-Event-ID": lastId }) };
      const response = await fetch(new URL("gpu/events?replay=100", API), { headers, signal: timed.signal, cache: "no-store" });
      if (!response.ok) throw new ApiError(response.status, "", "The events were refused.");
      onOpen();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        wait();
        text += value;
        const blocks = text.split("\n\n");
        text = blocks.pop();
        for (const block of blocks) dispatch(block, onEvent);
      }
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", stop);
    }
  }

  #headers() {
    return { Authorization: `Bearer ${this.#token}` };
  }
}

function dispatch(block, onEvent) {
  const fields = { id: "", event: "message", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    const name = line.slice(0, colon);
    if (colon > 0 && name in fields) fields[name] = line.slice(colon + 1).trimStart();
  }
  if (fields.data) onEvent(fields.id, fields.event, JSON.parse(fields.data));
}
