// Elements, lists that keep their elements, and how values are written. Texts of clients reach the page as
// text nodes only.

const SVG = "http://www.w3.org/2000/svg";

export const id = (name) => document.getElementById(name);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) element.removeAttribute(name);
    else element.setAttribute(name, value === true ? "" : value);
  }
  if (children.length > 0) element.replaceChildren(...children.filter((child) => child !== null));
  return element;
}

export const el = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/// Makes the children of `parent` those of `items`, in order. Elements stay where their key stays, and so do
/// focus and selection.
export function list(parent, items, keyOf, make, change) {
  const known = parent.kept ?? new Map();
  const kept = new Map();
  let at = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    if (kept.has(key)) continue;
    const element = known.get(key) ?? make(item);
    change(element, item);
    kept.set(key, element);
    if (element === at) at = at.nextSibling;
    else parent.insertBefore(element, at);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
  parent.kept = kept;
}

// The roles are those of the elements, which lose them where a narrow window lays them out otherwise.
export const newRow = () => el("tr", { role: "row" });

/// Replaces an element by one that differs; an equal one keeps its selection and its tooltip.
export function renew(element, other) {
  if (!element.isEqualNode(other)) element.replaceWith(other);
}

/// A row of cells: `[class, content]` each; the first one is the row's header. A narrow window shows the labels.
export function cells(row, contents, labels = []) {
  contents.forEach(([kind, ...content], at) => {
    const cell = at === 0
      ? el("th", { class: kind || null, scope: "row", role: "rowheader" }, ...content)
      : el("td", { class: kind || null, role: "cell", "data-label": labels[at] }, ...content);
    if (row.cells[at]) renew(row.cells[at], cell);
    else row.append(cell);
  });
  while (row.cells.length > contents.length) row.lastChild.remove();
}

/// Gives the roles to what stands in the page from the start.
export function giveRoles() {
  for (const [selector, role] of [["table", "table"], ["thead, tbody", "rowgroup"], ["thead tr", "row"], ["thead th", "columnheader"]])
    for (const element of document.querySelectorAll(selector)) element.setAttribute("role", role);
}

export const unknown = () => el("span", { class: "unknown" }, "unknown");

/// What `text` writes of a value that is known; else the word.
export const known = (value, text) => (Number.isFinite(value) ? text(value) : unknown());

const digits = (value) => (value >= 100 ? 0 : value >= 10 ? 1 : 2);

export function ms(value) {
  const size = Math.abs(value);
  if (size >= 10000) return `${(value / 1000).toFixed(1)} s`;
  return `${value.toFixed(size >= 100 ? 0 : 1)} ms`;
}

export function bytes(value, per = "/s") {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (value >= 1000 && at < units.length - 1) {
    value /= 1000;
    at += 1;
  }
  return `${value.toFixed(at === 0 ? 0 : digits(value))} ${units[at]}${per}`;
}

export function lasting(milliseconds) {
  const seconds = Math.max(0, milliseconds / 1000);
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

/// The last part of `namespace/name`.
export const short = (name) => name.slice(name.lastIndexOf("/") + 1);

export function median(values) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  return sorted.length === 0 ? NaN : sorted[Math.floor((sorted.length - 1) / 2)];
}

export function quantile(values, share) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  return sorted.length === 0 ? NaN : sorted[Math.round((sorted.length - 1) * share)];
}

const HEALTH = {
  up: ["up", "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0"],
  "half-open": ["half-open", "M-4 0a4 4 0 1 0 8 0zM-4-1a4 4 0 0 1 8 0h-1.5a2.5 2.5 0 0 0-5 0z"],
  failing: ["failing", "M0-4.6L5 4H-5z"],
  down: ["down", "M-4-2.4L-2.4-4L0-1.6L2.4-4L4-2.4L1.6 0L4 2.4L2.4 4L0 1.6L-2.4 4L-4 2.4L-1.6 0z"],
  unknown: ["unknown", "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0zM-2.4 0a2.4 2.4 0 1 1 4.8 0a2.4 2.4 0 1 1-4.8 0z"],
};

/// The shape of a health, which differs without its colour.
export const mark = (health) =>
  svg("path", { d: (HEALTH[health] ?? HEALTH.unknown)[1], class: `mark ${health}`, "fill-rule": "evenodd" });

export const icon = (health) =>
  svg("svg", { viewBox: "-6 -6 12 12", width: 12, height: 12, "aria-hidden": "true" }, mark(health));
