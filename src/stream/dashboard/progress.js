/** How far the run is, and when it will be done. */

import { bytes, count, duration, element, number, quantity } from "./format.js";

export const ENDED = new Set(["finished", "stopped", "signalled", "failed"]);
const LONGEST_MS = 120_000, SHORTEST_MS = 4_000;

/** Share of the plan that is done; null where the plan has no length. */
export function progressOf(position, start) {
  const plan = start?.plan;
  if (!plan || !position) return null;
  const shares = [];
  if (plan.max_steps > 0) shares.push(position.step / plan.max_steps);
  const batches = plan.splits?.find((split) => split.mode === "train")?.batches;
  if (plan.epochs > 0) {
    const within = batches > 0 ? Math.min(1, (position.in_epoch?.micro_batch ?? 0) / batches) : 0;
    shares.push((position.epoch + within) / plan.epochs);
  }
  return shares.length ? Math.min(1, Math.max(...shares)) : null;
}

/** The time left, from how fast the run went lately. */
export class Clock {
  #seen = [];
  #run = "";
  #told = null;  ///< {time, at}: what the server's clock said when

  /** `now`: seconds since 1970 by the server's clock, where they are known: who looks may have another. */
  see(run, share, now) {
    const at = performance.now();
    if (run.key !== this.#run) (this.#seen = []), (this.#run = run.key), (this.#told = null);
    const time = run.isLive && !ENDED.has(run.state) ? Math.max(now ?? 0, run.newest) : run.newest;
    if (this.#told?.time !== time) this.#told = { time, at };
    const last = this.#seen.at(-1);
    if (share === null || !["running", "evaluating"].includes(run.state) || (last && share < last.share)) this.#seen = [];
    else if (!last || at - last.at > 900) this.#seen.push({ share, at });
    while (this.#seen.length > 2 && at - this.#seen[0].at > LONGEST_MS) this.#seen.shift();
  }
  elapsed(run) {
    if (!(run.started > 0) || !(this.#told?.time > 0)) return null;
    const since = run.isLive && !ENDED.has(run.state) ? (performance.now() - this.#told.at) / 1000 : 0;
    return Math.max(0, this.#told.time - run.started + since);
  }
  left(run, share) {
    if (share === null || share >= 1 || ENDED.has(run.state) || run.state === "paused") return null;
    const first = this.#seen[0], last = this.#seen.at(-1);
    if (first && last.at - first.at >= SHORTEST_MS && last.share > first.share) return ((1 - last.share) * (last.at - first.at)) / (last.share - first.share) / 1000 - (performance.now() - last.at) / 1000;
    const elapsed = this.elapsed(run);
    return elapsed && share > 0 ? (elapsed * (1 - share)) / share : null;
  }
}

/** [name, text] of what is said beneath the bar. */
export function factsOf(run, state, share, clock) {
  const position = state?.position ?? run.position, plan = (state?.start ?? run.start)?.plan, numbers = state?.numbers?.numbers ?? {};
  const of = (value, whole) => (whole > 0 ? `${value} / ${count(whole)}` : value);
  const batches = plan?.splits?.find((split) => split.mode === "train")?.batches;
  const epoch = position ? position.epoch + (batches > 0 ? Math.min(1, (position.in_epoch?.micro_batch ?? 0) / batches) : 0) : null;
  const left = clock.left(run, share);
  return [
    ["step", of(count(position?.step), plan?.max_steps)],
    ["epoch", of(epoch === null ? "–" : number(Math.floor(epoch * 100) / 100), plan?.epochs)],
    ["elapsed", duration(clock.elapsed(run))],
    ["left", left === null ? null : duration(Math.max(0, left))],
    ["samples", position?.samples ? quantity(position.samples) : null],
    ["samples/s", numbers["throughput.samples_per_second"] ?? numbers.samples_per_second, quantity],
    ["memory", state?.memory_bytes || numbers["memory.resident_bytes"], bytes],
    ["checkpoint", state?.checkpoint?.position ? `step ${count(state.checkpoint.position.step)}` : null],
  ].flatMap(([name, value, write]) => (value === null || value === undefined || value === 0 ? [] : [[name, write ? write(value) : value]]));
}

export function showFacts(list, facts) {
  const key = JSON.stringify(facts.map(([name]) => name));
  if (list.dataset.key !== key) {
    list.dataset.key = key;
    list.replaceChildren(...facts.map(([name]) => element("div", { children: [element("dt", { text: name }), element("dd", {})] })));
  }
  facts.forEach(([, text], i) => {
    const place = list.children[i].lastElementChild;
    if (place.textContent !== text) place.textContent = text;
  });
}
