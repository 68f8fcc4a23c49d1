/** Keys of the page: who types into a field types. */

import { element } from "./format.js";

/** Whether a key that was pressed there is meant for the element that has the focus. */
function isTaken(event) {
  const { key, target } = event, field = target.closest?.("input, select, textarea, summary");
  if (field && field.type !== "range" && field.type !== "checkbox") return true;
  if (key === " " && target.closest?.("button, input")) return true;
  return key.startsWith("Arrow") && Boolean(field || target.closest?.(".scroll"));
}

/** `keys`: by key, [how it is written, what it does, action]; without an action, or without words, where another key tells of it. `onDigit(n)` for 1 to 9. */
export function listenToKeys(keys, onDigit, list) {
  list.append(...Object.values(keys).filter(([written]) => written).map(([written, what]) => element("div", { children: [element("dt", { text: written }), element("dd", { text: what })] })));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return event.target.closest?.("input, select, summary")?.blur();
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]") || isTaken(event)) return;
    const action = /^[1-9]$/.test(event.key) ? () => onDigit(Number(event.key)) : keys[event.key === "=" ? "+" : event.key]?.[2];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
