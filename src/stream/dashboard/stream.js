/** The server as the page sees it: what it answers, what it streams, and the token it wants. */

const KEY = "torchbus.token";

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Takes `#token=…` out of the address, so that it is neither seen, copied nor kept in the history. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!given) return;
  sessionStorage.setItem(KEY, given);
  history.replaceState(null, "", location.pathname + location.search);
}
export const token = () => sessionStorage.getItem(KEY) ?? "";
export const setToken = (given) => (given ? sessionStorage.setItem(KEY, given) : sessionStorage.removeItem(KEY));
const authorization = () => (token() ? { Authorization: `Bearer ${token()}` } : {});

async function refusalOf(response) {
  const text = await response.text();
  try {
    const said = JSON.parse(text);
    return new Refusal(response.status, said.error ?? said.data?.error ?? text);
  } catch {
    return new Refusal(response.status, text.trim() || response.statusText);
  }
}

/** JSON of GET. Throws: Refusal for an answer that is an error, TypeError where there is no answer. */
export async function get(path, parameters = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null));
  const response = await fetch(`${path}${query.size ? `?${query}` : ""}`, { headers: authorization(), signal: AbortSignal.timeout(20000) });
  if (!response.ok) throw await refusalOf(response);
  return response.json();
}

/** Throws: Refusal with the server's reason. */
export async function control(command, reason) {
  const body = JSON.stringify({ command, by: "dashboard", reason });
  const response = await fetch("/control", { method: "POST", body, headers: { "Content-Type": "application/json", ...authorization() }, signal: AbortSignal.timeout(20000) });
  if (!response.ok) throw await refusalOf(response);
}

/**
 * Messages as they come, in batches. Goes on from the last one after a broken connection.
 * `take(messages)`; `tell(state, detail)` with "live", "waiting" (seconds until the next try) or "refused" (why).
 */
export class EventStream {
  #aborter;
  #lastId;

  constructor(take, tell) {
    this.take = take;
    this.tell = tell;
  }
  /** `again`: forgets where it was, and begins with what is kept of the past. */
  open(parameters, again) {
    this.close();
    if (again) this.#lastId = undefined;
    this.#aborter = new AbortController();
    this.#follow(parameters, this.#aborter.signal);
  }
  close() {
    this.#aborter?.abort();
  }

  async #follow(parameters, signal) {
    for (let failures = 0; !signal.aborted; ) {
      try {
        const headers = { Accept: "application/x-ndjson", ...authorization(), ...(this.#lastId ? { "Last-Event-ID": this.#lastId } : {}) };
        const response = await fetch(`/events?${new URLSearchParams(parameters)}`, { headers, signal });
        if (!response.ok) throw await refusalOf(response);
        this.tell("live");
        for await (const messages of this.#batches(response.body.getReader(), signal)) {
          failures = 0;
          this.take(messages);
        }
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Refusal && error.status < 500) return this.tell("refused", error.message);
      }
      const seconds = Math.min(0.5 * 2 ** failures++, 15);
      this.tell("waiting", seconds);
      await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    }
  }

  async *#batches(reader, signal) {
    const decoder = new TextDecoder();
    let rest = "";
    for (let next = await reader.read(); !next.done && !signal.aborted; next = await reader.read()) {
      const lines = (rest + decoder.decode(next.value, { stream: true })).split("\n");
      rest = lines.pop();
      const messages = lines.filter(Boolean).map((line) => JSON.parse(line));
      const last = messages.findLast((message) => /^\d+$/.test(message.id));  // a snapshot or a gap is no place to go on from
      if (last) this.#lastId = `${last.run}:${last.id}`;
      if (messages.length) yield messages;
    }
  }
}
