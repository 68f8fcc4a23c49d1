/** Which numbers are drawn together, by what their names mean. */

const ROLES = /^(train|eval|validation|test|predict)\./;
export const SECTIONS = ["Losses", "Metrics", "Learning rate", "Gradients and weights", "Throughput", "Memory", "Others"];

/** {key, title, section, unit} of the chart that a name belongs to. `isExact`: its values are set or counted, and have no noise to be averaged away. */
export function groupOf(name) {
  const parts = name.split(".");
  const first = parts[0], last = parts.at(-1);
  if (first === "memory") return { key: "memory", title: "memory", section: 5, unit: "bytes", isExact: true };
  if (first === "throughput" || /_per_second$/.test(name)) return { key: name, title: parts.slice(first === "throughput" ? 1 : 0).join(".").replaceAll("_", " "), section: 4, unit: last === "data_wait" ? "share" : "quantity" };
  if (/^(learning_)?rate(\.|$)|^lr(\.|$)/.test(name)) return { key: "learning_rate", title: "learning rate", section: 2, unit: "number", isExact: true };
  if (/^momentum(\.|$)/.test(name)) return { key: "momentum", title: "momentum", section: 2, unit: "number", isExact: true };
  if (/^grad_norm(\.|$)/.test(name)) return { key: "grad_norm", title: "gradient norm", section: 3, unit: "number" };
  if (/^(gradients|weights|update_ratio)/.test(first)) {
    const kind = first === "update_ratio" ? first : parts.slice(0, 2).join(".");
    return { key: kind, title: kind.replaceAll("_", " "), section: 3, unit: "number" };
  }
  if (ROLES.test(name)) return { key: `metric.${last}`, title: last.replaceAll("_", " "), section: /loss|perplexity|error/.test(last) ? 0 : 1, unit: "number" };
  if (/(^|[._])loss$/.test(name)) return { key: "metric.loss", title: "loss", section: 0, unit: "number" };
  return { key: name, title: name, section: 6, unit: /_bytes$/.test(name) ? "bytes" : "number", isExact: /^(loss_scale|micro_batch_parts|nan_policy)/.test(name) };
}

/** What a name is called within its chart. */
export function labelOf(name, group) {
  if (group.key.startsWith("metric.")) return name.slice(0, Math.max(name.lastIndexOf("."), 0)).replaceAll(".", " ") || name;
  if (name === group.key) return group.title;
  return name.startsWith(`${group.key}.`) ? name.slice(group.key.length + 1).replace(/_bytes$/, "").replaceAll("_", " ") : name;
}

const rank = (name) => (name.startsWith("train.running") ? 1 : name.startsWith("train") ? 0 : name.startsWith("eval") ? 2 : 3);
const natural = new Intl.Collator("en", { numeric: true });

/** Groups of names, in the order in which they are shown. */
export function groupsOf(names) {
  const groups = new Map();
  for (const name of names) {
    const group = groupOf(name);
    if (!groups.has(group.key)) groups.set(group.key, { ...group, names: [] });
    groups.get(group.key).names.push(name);
  }
  for (const group of groups.values()) group.names.sort((a, b) => rank(a) - rank(b) || natural.compare(a, b));
  const weight = (group) => (group.key === "metric.loss" || group.key === "metric.accuracy" || group.key === "learning_rate" || group.key === "grad_norm" ? 0 : 1);
  return [...groups.values()].sort((a, b) => a.section - b.section || weight(a) - weight(b) || natural.compare(a.title, b.title));
}

/** Whether text has all the words; a word with * is a pattern of the whole text. */
export function matches(text, wanted) {
  const low = text.toLowerCase();
  return wanted.toLowerCase().split(/[\s,]+/).filter(Boolean).some((word) => {
    if (!word.includes("*")) return low.includes(word);
    return new RegExp(`^${word.split("*").map((part) => part.replace(/[.+?^${}()|[\]\\]/g, "\\$&")).join(".*")}$`).test(low);
  }) || wanted.trim() === "";
}
