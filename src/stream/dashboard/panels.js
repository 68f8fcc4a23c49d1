/** Decisions, the accounting of subscribers, and the table of events. */

import { clock, count, duration, element, number, quantity, share } from "./format.js";
import { matches } from "./grouping.js";

/** Decisions of a state, newest first. */
export function showDecisions(list, counter, decisions) {
  counter.textContent = decisions.length ? count(decisions.length) : "";
  const key = JSON.stringify(decisions);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  const rows = decisions.toReversed().map((taken) => element("li", { children: [
    element("b", { class: `decision ${/stop|fail/.test(taken.decision) ? "grave" : ""}`, text: String(taken.decision).replaceAll("_", " ") }),
    element("span", { class: "where", text: `step ${count(taken.position?.step)}` }),
    element("span", { class: "who", text: `by ${taken.requester || "the run"}${taken.rank > 0 ? ` (rank ${taken.rank})` : ""}` }),
    element("span", { class: "why", text: taken.reason || "no reason was given" })] }));
  list.replaceChildren(...(rows.length ? rows : [element("li", { class: "empty", text: "None yet: nobody asked for a stop, a save, an evaluation or a pause." })]));
}

const COLUMNS = [
  { name: "subscriber", of: (row) => row.subscriber },
  { name: "event", of: (row) => row.event, isByEvent: true },
  { name: "time", of: (row) => row.seconds, write: duration },
  { name: "share", of: (row) => row.share, write: share, isBar: true },
  { name: "calls", of: (row) => row.calls, write: quantity },
  { name: "a call", of: (row) => (row.calls ? row.seconds / row.calls : 0), write: duration },
  { name: "own thread", of: (row) => row.thread_seconds, write: duration },
  { name: "dropped", of: (row) => row.dropped, write: count },
];

export class Accounting {
  #sorted = { name: "time", isDown: true };
  #accounting = null;

  constructor(table, counter, byEvent) {
    this.table = table;
    this.counter = counter;
    this.byEvent = byEvent;
    byEvent.addEventListener("change", () => this.#draw());
    this.table.addEventListener("click", (event) => {
      const name = event.target.closest("button")?.dataset.name;
      if (!name) return;
      this.#sorted = { name, isDown: this.#sorted.name === name ? !this.#sorted.isDown : !["subscriber", "event"].includes(name) };
      this.#draw();
      this.table.querySelector(`button[data-name="${name}"]`)?.focus();
    });
  }
  show(accounting) {
    if (JSON.stringify(accounting) === JSON.stringify(this.#accounting) && this.table.children.length) return;
    this.#accounting = accounting;
    this.#draw();
  }

  #rows() {
    const rows = new Map();
    for (const row of this.#accounting.rows ?? []) {
      const key = this.byEvent.checked ? `${row.subscriber}\n${row.event}` : row.subscriber;
      const sum = rows.get(key) ?? { subscriber: row.subscriber, event: row.event, calls: 0, seconds: 0, thread_seconds: 0, dropped: 0 };
      for (const field of ["calls", "seconds", "thread_seconds", "dropped"]) sum[field] += row[field] ?? 0;
      rows.set(key, sum);
    }
    return [...rows.values()].map((row) => ({ ...row, share: this.#accounting.seconds > 0 ? row.seconds / this.#accounting.seconds : 0 }));
  }
  #draw() {
    if (!this.#accounting) return this.table.replaceChildren(element("tbody", { children: [element("tr", { children: [element("td", { class: "empty", text: "The run has not told yet what its subscribers cost." })] })] }));
    const columns = COLUMNS.filter((column) => !column.isByEvent || this.byEvent.checked);
    const { name, isDown } = this.#sorted, key = (COLUMNS.find((column) => column.name === name) ?? COLUMNS[3]).of;
    const rows = this.#rows().sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (isDown ? -1 : 1));
    const most = Math.max(...rows.map((row) => row.share), 1e-12);
    this.counter.textContent = `${share(rows.reduce((sum, row) => sum + row.share, 0))} of ${duration(this.#accounting.seconds)}`;
    const head = columns.map((column) => element("th", { scope: "col", class: column.write && "number", "aria-sort": column.name === name ? (isDown ? "descending" : "ascending") : undefined,
                                                         children: [element("button", { type: "button", "data-name": column.name, text: column.name })] }));
    const cell = (column, row) => {
      const made = element("td", { text: (column.write ?? String)(column.of(row)), class: `${column.write ? "number" : "name"}${column.isBar ? " bar" : ""}`, title: column.write ? undefined : column.of(row) });
      if (column.isBar) made.style.setProperty("--part", `${(column.of(row) / most) * 100}%`);
      return made;
    };
    this.table.replaceChildren(element("thead", { children: [element("tr", { children: head })] }),
                               element("tbody", { children: rows.map((row) => element("tr", { children: columns.map((column) => cell(column, row)) })) }));
  }
}

const OFTEN = new Set(["train_step_start", "train_step_end", "batch_ready", "forward_start", "output_ready", "forward_end", "backward_start", "backward_end", "gradients_ready", "optimizer_step_start",
                       "optimizer_step_end", "eval_step_start", "eval_step_end", "predict_step_start", "predict_step_end", "numbers", "accounting", "snapshot"]);
const GRAVE = /fail|gap|stop|skipped|signalled/;
const KEPT = 5000, SHOWN = 300, LONGEST = 160;

export const nameOf = (message) => String(message.type).replace(/^torchbus\./, "");

/** Names and values of an event's data, without its position. */
function* fieldsOf(data, prefix = "") {
  for (const [name, value] of Object.entries(data)) {
    if (name === "position" && !prefix) continue;
    if (value && typeof value === "object" && !Array.isArray(value)) yield* fieldsOf(value, `${prefix}${name}.`);
    else yield [prefix + name, typeof value === "number" ? number(value) : typeof value === "string" ? value : JSON.stringify(value)];
  }
}

function brief(message) {
  if (nameOf(message) === "gap") return [`${count(message.data.count)} messages were left out: ${count(message.data.first)} to ${count(message.data.last)}`];
  const told = [];
  let length = 0;
  for (const [name, value] of fieldsOf(message.data ?? {})) {
    if (value === "") continue;
    told.push(element("span", { class: "field", text: name }), ` ${value.slice(0, LONGEST)}  `);
    if ((length += name.length + value.length) > LONGEST) break;
  }
  return told.length ? told : ["–"];
}

/** Newest first; what is kept is more than what is shown. */
export class Events {
  #kept = [];
  #waiting = [];
  #names = new Set();
  isHeld = false;

  constructor({ body, counter, empty, names, nameFilter, textFilter, detail }) {
    Object.assign(this, { body, counter, empty, names, nameFilter, textFilter, detail });
    for (const filter of [nameFilter, textFilter]) filter.addEventListener("input", () => this.draw());
  }
  add(messages) {
    this.#waiting.push(...messages);
    if (this.#waiting.length > 2 * KEPT) this.#waiting.splice(0, this.#waiting.length - KEPT);
    if (!this.isHeld) this.#timer ??= setTimeout(() => this.#take(), 250);
  }
  hold(isHeld) {
    this.isHeld = isHeld;
    if (!isHeld) this.#take();
  }
  clear() {
    this.#kept = [];
    this.#waiting = [];
    this.draw();
  }
  #timer;

  #isWanted(message) {
    const name = nameOf(message);
    if (this.detail.value === "milestones" && OFTEN.has(name)) return false;
    if (!matches(name, this.nameFilter.value)) return false;
    const text = this.textFilter.value.trim().toLowerCase();
    return !text || JSON.stringify(message.data ?? {}).toLowerCase().includes(text);
  }
  #take() {
    this.#timer = undefined;
    if (this.isHeld) return;
    const fresh = this.#waiting.splice(0);
    this.#kept.push(...fresh);
    if (this.#kept.length > KEPT) this.#kept.splice(0, this.#kept.length - KEPT);
    for (const message of fresh) {
      const name = nameOf(message);
      if (this.#names.has(name)) continue;
      this.#names.add(name);
      this.names.append(element("option", { value: name }));
    }
    this.#prepend(fresh.filter((message) => this.#isWanted(message)));
  }
  draw() {
    this.body.replaceChildren();
    this.#prepend(this.#kept.filter((message) => this.#isWanted(message)));
  }
  #prepend(messages) {
    this.body.prepend(...messages.slice(-SHOWN).reverse().map(rowOf));
    while (this.body.children.length > SHOWN) this.body.lastElementChild.remove();
    this.empty.hidden = this.body.children.length > 0;
    this.empty.textContent = this.#kept.length ? "No event that was kept fits the filter." : "No event yet.";
    this.counter.textContent = this.#kept.length ? `${count(this.body.children.length)} shown of ${count(this.#kept.length)} kept` : "";
  }
}

function rowOf(message) {
  const name = nameOf(message), details = element("details", { children: [element("summary", { children: brief(message) })] });
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(element("pre", { text: JSON.stringify(message, null, 2) }));
  });
  const grave = GRAVE.test(name) || GRAVE.test(message.data?.result?.outcome ?? "");
  return element("tr", { class: grave ? "grave" : undefined, "data-id": message.id, children: [
    element("td", { class: "time", text: clock(message.time), title: message.time }), element("td", { class: "name", text: name, title: name }),
    element("td", { class: "number", text: message.data?.position ? count(message.data.position.step) : "" }), element("td", { class: "data", children: [details] })] });
}
