/** Who is drawn: a chip for each run, with one for each of its ranks. */

import { element } from "./format.js";

const $ = (id) => document.getElementById(id);
export const idsOf = (runs) => [...new Set(runs.map((run) => run.run))];

function chipOf(runs, id, at) {
  const ranks = runs.filter((run) => run.run === id), first = ranks[0], isShown = ranks.some((run) => run.isShown);
  const mark = element("i", { class: "mark" });
  mark.style.background = `var(--run-${first.colour % 10})`;
  const whole = element("button", { type: "button", "data-toggles": id, "aria-pressed": String(isShown), title: `${first.label} (${id}), ${first.state}${at < 9 ? `; key ${at + 1}` : ""}`,
                                    children: [mark, element("span", { children: [element("bdi", { text: first.label })] }), ...(first.isLive ? [element("small", { text: "live" })] : [])] });
  const parts = ranks.length < 2 ? [] : ranks.map((run) => element("button", { type: "button", class: "rank", "data-toggles": run.key, "aria-pressed": String(run.isShown),
                                                                              "aria-label": `rank ${run.rank} of ${first.label}`, text: String(run.rank) }));
  return element("span", { class: "chip", children: [whole, ...parts] });
}

export function showRuns(runs, chosen) {
  const key = JSON.stringify(runs.map((run) => [run.key, run.label, run.isShown, run.state]));
  if ($("runs").dataset.key === key) return;
  $("runs").dataset.key = key;
  const focused = document.activeElement?.dataset.toggles;
  $("runs").replaceChildren(...idsOf(runs).map((id, at) => chipOf(runs, id, at)));
  if (focused) [...$("runs").querySelectorAll("button")].find((button) => button.dataset.toggles === focused)?.focus();
  const many = new Set(runs.filter((run) => run.rank > 0).map((run) => run.run));
  $("run").replaceChildren(...runs.map((run) => element("option", { value: run.key, text: `${run.label}${many.has(run.run) ? ` · rank ${run.rank}` : ""}` })));
  $("run").value = chosen;
  $("runs").hidden = runs.length < 2;
}
