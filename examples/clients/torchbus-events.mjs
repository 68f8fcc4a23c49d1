// Follows the events of a torchbus run, and sends it commands: in a browser, or in Node from version 18 on.
//
//   import { events, command, state } from "./torchbus-events.mjs";
//   for await (const event of events("http://127.0.0.1:8080", { events: ["train_step_end", "eval_*"], every: "10step" }))
//     console.log(event.type, event.data);
//   await command("http://127.0.0.1:8080", { command: "stop", reason: "good enough" }, { token });
//
// By itself it prints one line an event:  node torchbus-events.mjs http://127.0.0.1:8080 'eval_*'

const headersOf = (token) => (token ? { Authorization: `Bearer ${token}` } : {});

/** Messages as they come. After a broken connection it goes on from the last one; it ends when the server has gone. */
export async function* events(url, { events = [], fields = [], every, from, token, signal } = {}) {
  const wanted = { events: events.join(","), fields: fields.join(","), every, from };
  const query = new URLSearchParams(Object.entries(wanted).filter(([, value]) => value));
  let lastId;
  for (let failures = 0; ; ) {
    let response;
    try {
      response = await fetch(`${url}/events?${query}`, {
        headers: { Accept: "application/x-ndjson", ...headersOf(token), ...(lastId ? { "Last-Event-ID": lastId } : {}) },
        signal,
      });
    } catch (error) {
      if (signal?.aborted) return;
      if (!lastId) throw error;
      if (isRefused(error) || ++failures > 5) return;
      await pause(failures);
      continue;
    }
    if (!response.ok) throw new Error(`${response.status} ${(await response.text()).trim()}`);
    try {
      let text = "";
      const decoder = new TextDecoder();
      for await (const bytes of chunksOf(response.body)) {
        failures = 0;
        text += decoder.decode(bytes, { stream: true });
        const lines = text.split("\n");
        text = lines.pop();
        for (const line of lines) {
          const message = JSON.parse(line);
          if (/^\d+$/.test(message.id)) lastId = `${message.run}:${message.id}`;
          yield message;
        }
      }
    } catch (error) {
      if (signal?.aborted) return;
      if (error instanceof SyntaxError || ++failures > 5) throw error;
    }
    await pause(failures);
  }
}

/** Nobody listens there any more. Node says so; a browser does not say why, and there the server has gone when six tries have failed. */
const isRefused = (error) => error.cause?.code === "ECONNREFUSED";
const pause = (failures) => new Promise((resolve) => setTimeout(resolve, Math.min(200 * 2 ** failures, 5000)));

async function* chunksOf(body) {
  const reader = body.getReader();
  try {
    for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** What the run looks like now. */
export async function state(url, { token } = {}) {
  return (await (await fetch(`${url}/state`, { headers: headersOf(token) })).json()).data;
}

/** {command: "stop" | "save" | "evaluate" | "pause" | "resume" | "change_option", reason, by, subscriber, option, value} */
export async function command(url, said, { token } = {}) {
  const response = await fetch(`${url}/control`, { method: "POST", body: JSON.stringify(said), headers: headersOf(token) });
  const answer = await response.json();
  if (response.status !== 202) throw new Error(answer.error ?? answer.data.error);
  return answer;
}

if (typeof process !== "undefined" && process.argv[1] && import.meta.url.endsWith(process.argv[1].split("/").pop())) {
  const [, , url, ...names] = process.argv;
  process.stdout.on("error", () => process.exit());  // whoever reads has gone, such as head
  for await (const event of events(url, { events: names, token: process.env.TORCHBUS_TOKEN })) console.log(event.time, event.type, JSON.stringify(event.data));
}
