// The fleet map: prefills left, decodes right, and between them the KV cache that flows.

import { bytes, cells, el, id, known, list, mark, median, ms, newRow, quantile, short, svg } from "/page/dom.js";

const ROW = 62;
const BOX = 48;
const TOP = 26;
// More would be no picture; the busiest and those in trouble are drawn.
const MAX_BOXES = 16;
// The time of a pair beside the fleet's: which colour it has.
export const SLOW = 2;
const VERY_SLOW = 4;

const valueOf = (measured) => measured?.value ?? NaN;
const ttft = (request) => valueOf(request.ttft_ms);

/// What the requests of the window say of each pair of workers, with the agents' counts.
export function pairs(pool, flows, requests) {
  const found = new Map();
  const at = (prefill, decode) => {
    const key = `${prefill} ${decode}`;
    if (!found.has(key)) found.set(key, { key, prefill, decode, times: [], count: 0, flow: null });
    return found.get(key);
  };
  for (const flow of flows) if (flow.pool === pool.name) at(flow.prefill, flow.decode).flow = flow;
  for (const request of requests) {
    if (request.pool !== pool.name || !request.prefill || !request.worker) continue;
    const pair = at(request.prefill, request.worker);
    pair.count += 1;
    pair.times.push(ttft(request));
  }
  const all = [...found.values()];
  for (const pair of all) pair.time = median(pair.times);
  return all;
}

function speedClass(time, usual) {
  if (!Number.isFinite(time) || !Number.isFinite(usual)) return "no-time";
  if (time >= usual * VERY_SLOW) return "very-slow";
  return time >= usual * SLOW ? "slow" : "usual";
}

function drawnFirst(worker) {
  const trouble = worker.health.verdict === "up" && worker.phase === "ready" ? 0 : 1e9;
  return -(trouble + (worker.peers >= SLOW ? 1e8 : 0) + worker.requests);
}

function pick(workers) {
  const chosen = [...workers].sort((a, b) => drawnFirst(a) - drawnFirst(b)).slice(0, MAX_BOXES);
  const drawn = workers.filter((worker) => chosen.includes(worker));
  return { drawn, left: workers.length - drawn.length };
}

function fitted(text, width) {
  const most = Math.max(4, Math.floor(width / 7.2));
  return text.length <= most ? text : `…${text.slice(1 - most)}`;
}

function box(worker, x, y, width) {
  const trouble = worker.health.verdict !== "up" ? worker.health.verdict : worker.phase !== "ready" ? worker.phase : null;
  const state = trouble ?? (worker.peers >= SLOW ? `${worker.peers.toFixed(1)}× slower` : null);
  const kind = trouble ? "bad" : state ? "late" : "";
  const line = state ?? `${worker.requests} running`;
  return svg("g", { transform: `translate(${x} ${y})`, class: `box ${kind}` },
    svg("title", {}, `${worker.name}: ${worker.health.reason ?? worker.health.verdict}`),
    svg("rect", { width, height: BOX, rx: 8 }),
    svg("g", { transform: "translate(16 18)" }, mark(worker.phase === "draining" ? "unknown" : worker.health.verdict)),
    svg("text", { x: 28, y: 22, class: "name" }, fitted(short(worker.name), width - 36)),
    svg("text", { x: 28, y: 38, class: "state" }, fitted(line, width - 36)));
}

// From 1.5 to 16 px, by the square root: the widest is the most that flows now.
const thickness = (rate, most) => 1.5 + 14.5 * Math.sqrt(Math.max(0, rate) / Math.max(most, 1));

function spread(places, height) {
  const step = Math.min(10, (height - 16) / Math.max(1, places - 1));
  return (at) => height / 2 + (at - (places - 1) / 2) * step;
}

function paths(all, left, right, width, boxWidth, usual) {
  const yOf = (workers) => new Map(workers.map((worker, row) => [worker.name, TOP + row * ROW]));
  const [ys, yd] = [yOf(left), yOf(right)];
  const drawn = all.filter((pair) => ys.has(pair.prefill) && yd.has(pair.decode));
  const most = Math.max(0, ...drawn.map((pair) => valueOf(pair.flow?.bytes_per_s)).filter(Number.isFinite));
  const order = (side, y) => {
    const of = new Map();
    for (const pair of [...drawn].sort((a, b) => y.get(a[side === "prefill" ? "decode" : "prefill"]) - y.get(b[side === "prefill" ? "decode" : "prefill"]))) {
      if (!of.has(pair[side])) of.set(pair[side], []);
      of.get(pair[side]).push(pair.key);
    }
    return (pair) => {
      const keys = of.get(pair[side]);
      return spread(keys.length, BOX)(keys.indexOf(pair.key));
    };
  };
  const [from, to] = [order("prefill", yd), order("decode", ys)];
  const [x0, x1] = [boxWidth, width - boxWidth];
  const bend = (x1 - x0) / 2;
  const rank = { "no-time": 0, usual: 1, slow: 2, "very-slow": 3 };
  return drawn
    .map((pair) => ({ pair, speed: speedClass(pair.time, usual) }))
    .sort((a, b) => rank[a.speed] - rank[b.speed])
    .map(({ pair, speed }) => {
      const rate = valueOf(pair.flow?.bytes_per_s);
      const isKnown = Number.isFinite(rate);
      const [y0, y1] = [ys.get(pair.prefill) + from(pair), yd.get(pair.decode) + to(pair)];
      const about = `${short(pair.prefill)} to ${short(pair.decode)}: KV ${isKnown ? bytes(rate) : "unknown"}, ` +
        `median TTFT ${Number.isFinite(pair.time) ? ms(pair.time) : "unknown"}, ${pair.count} requests`;
      return svg("path", {
        d: `M${x0} ${y0}C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}`,
        class: `flow ${speed}${isKnown ? "" : " no-rate"}`,
        "stroke-width": (isKnown ? thickness(rate, most) : 2).toFixed(1),
        "data-pair": pair.key,
      }, svg("title", {}, about));
    });
}

function heading(x, text, anchor) {
  return svg("text", { x, y: 14, class: "side", "text-anchor": anchor }, text);
}

/// Draws the map of a pool's workers.
export function draw(pool, workers, all) {
  const place = id("map");
  const width = Math.max(280, Math.floor(place.clientWidth));
  const boxWidth = Math.min(200, Math.floor(width * 0.36));
  const prefills = pick(workers.filter((worker) => worker.role === "prefill"));
  const others = pick(workers.filter((worker) => worker.role !== "prefill"));
  const usual = quantile(all.map((pair) => pair.time), 0.25);
  const rows = Math.max(prefills.drawn.length, others.drawn.length, 1);
  const height = TOP + rows * ROW;
  const single = prefills.drawn.length + prefills.left === 0;
  const title = (side, name) => `${name}${side.left ? ` (${side.drawn.length} of ${side.drawn.length + side.left})` : ""}`;
  const troubled = workers.filter((worker) => worker.health.verdict !== "up").map((worker) => `${short(worker.name)} ${worker.health.verdict}`);
  const slow = workers.filter((worker) => worker.peers >= SLOW).map((worker) => `${short(worker.name)} slow`);
  const trouble = [...troubled, ...slow].join(", ") || "no worker in trouble";
  const column = (side, x) => side.drawn.map((worker, row) => box(worker, x, TOP + row * ROW, boxWidth));
  const parts = [heading(width, title(others, single ? "Workers" : "Decode"), "end"), ...column(others, width - boxWidth)];
  if (!single) {
    parts.unshift(...paths(all, prefills.drawn, others.drawn, width, boxWidth, usual));
    parts.push(heading(0, title(prefills, "Prefill"), "start"), ...column(prefills, 0));
  }
  place.replaceChildren(svg("svg", {
    viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
    "aria-label": `Fleet map of ${pool.name}: ${trouble}. The table below has the flows.`,
  }, ...parts));
  legend(all, usual);
  table(all);
}

function legend(all, usual) {
  const line = (kind, width) => svg("svg", { viewBox: "0 0 28 12", width: 28, height: 12, "aria-hidden": "true" },
    svg("path", { d: "M0 6H28", class: `flow ${kind}`, "stroke-width": width }));
  const than = Number.isFinite(usual) ? ` (from ${ms(usual * SLOW)})` : "";
  const items = [["usual", 4, "usual time to first token"], ["slow", 4, `${SLOW}× slower${than}`], ["very-slow", 4, `${VERY_SLOW}× slower`]];
  if (all.some((pair) => !Number.isFinite(pair.time))) items.push(["no-time", 4, "time unknown"]);
  const isKnown = (pair) => Number.isFinite(valueOf(pair.flow?.bytes_per_s));
  if (all.some(isKnown)) items.push(["no-time", 10, "width: KV bytes/s"]);
  if (!all.every(isKnown)) items.push(["no-rate no-time", 2, "dashed: KV bytes/s unknown"]);
  list(id("legend"), items, (item) => item.join(), ([kind, width, text]) => el("li", {}, line(kind, width), text), () => {});
}

function table(all) {
  const sorted = [...all].sort((a, b) => a.key.localeCompare(b.key));
  list(id("flows").tBodies[0], sorted, (pair) => pair.key, newRow, (row, pair) => {
    const measured = (value) => {
      const text = known(valueOf(value), bytes);
      return value?.provenance === "estimated" ? `~ ${text}` : text;
    };
    cells(row, [["", short(pair.prefill)], ["", short(pair.decode)], ["n", `${pair.count}`],
      ["n", measured(pair.flow?.bytes_per_s)], ["n", measured(pair.flow?.transfer_bytes_per_s)],
      ["n", known(pair.time, ms)]]);
  });
}
