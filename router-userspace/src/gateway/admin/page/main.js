// The page: what `/fleet` and `/requests` say, for one pool at a time.

import { cells, el, giveRoles, icon, id, known, lasting, list, median, ms, newRow, quantile, renew, setText, short, unknown } from "/page/dom.js";
import { SLOW, draw, pairs } from "/page/map.js";
import { show } from "/page/request.js";
import { LIMIT, Source, Unauthorized, got, json } from "/page/source.js";

const WINDOW_MS = 60000;
const MAX_LISTED = 12;
const MAX_WORKERS = 200;
// Two samples say little of a worker; fewer nothing.
const SAMPLES = 2;

const state = { fleet: null, last: null, failed: null, pool: null, selected: null, byHand: false, paused: false,
  health: new Map() };

const valueOf = (measured) => measured?.value ?? NaN;
const waited = (request) => request.ttft_ms?.value ?? request.duration_ms;
const ended = (request) => request.started_ms + request.duration_ms;
const perEvent = (request) => (request.events > 1 ? valueOf(request.parts_ms?.done) / (request.events - 1) : NaN);
const timeOf = (role) => (role === "prefill" ? (request) => valueOf(request.parts_ms?.prefill) : perEvent);

const notices = new Map();

/// Says what is wrong with something; nothing is, without a text.
function notice(about, text) {
  notices.set(about, text);
  const all = [...notices.values()].filter(Boolean).join(" ");
  setText(id("notice"), all);
  id("notice").hidden = !all;
}

/// The requests that ended in the last minute at most, and since when all of them are known.
function recent() {
  const page = state.last;
  if (!page) return { requests: [], since: NaN, now: NaN };
  const oldest = Math.min(page.now_ms, ...page.requests.map(ended));
  const isCut = page.complete_since_ms === null || page.requests.length >= LIMIT;
  const since = Math.max(page.now_ms - WINDOW_MS, page.complete_since_ms ?? -Infinity, isCut ? oldest : -Infinity);
  return { requests: page.requests.filter((request) => ended(request) >= since), since, now: page.now_ms };
}

/// The workers of a pool, with their load and how their time compares with their peers'.
function workersOf(pool, requests) {
  const loads = new Map(state.fleet.loads.filter((load) => load.pool === pool.name).map((load) => [load.worker, load]));
  const workers = pool.members.map((member) => {
    const name = member.worker.name;
    const load = loads.get(name) ?? {};
    const own = requests.filter((request) => request.pool === pool.name && (request.worker === name || request.prefill === name));
    const times = own.map(timeOf(member.role)).filter(Number.isFinite);
    return { name, role: member.role, phase: member.phase, load, requests: member.worker.usage.requests,
      health: load.health ?? { verdict: member.worker.health }, time: times.length < SAMPLES ? NaN : median(times) };
  });
  for (const worker of workers) {
    const peers = workers.filter((other) => other !== worker && other.role === worker.role);
    worker.peers = worker.time / median(peers.map((peer) => peer.time));
  }
  return workers;
}

function figures(pool, workers, { requests, since, now }) {
  const own = requests.filter((request) => request.pool === pool.name);
  const times = own.map((request) => valueOf(request.ttft_ms)).filter(Number.isFinite);
  const failed = own.filter((request) => request.reason !== "ok").length;
  const up = workers.filter((worker) => worker.health.verdict === "up" && worker.phase === "ready").length;
  const span = now - since;
  const of = Number.isFinite(span) ? `, last ${lasting(span)}` : "";
  const all = [
    ["Workers up", `${up} of ${workers.length}`, up < workers.length ? "bad" : ""],
    ["Waiting for capacity", `${state.fleet.queued}`, state.fleet.queued > 0 ? "late" : ""],
    [`Requests${of}`, known((own.length / span) * 1000, (rate) => `${rate.toFixed(1)}/s`), ""],
    [`Failed${of}`, own.length ? `${((failed / own.length) * 100).toFixed(1)} %` : "–", failed ? "bad" : ""],
    [`TTFT, median${of}`, known(median(times), ms), ""],
    [`TTFT, 99 %${of}`, known(quantile(times, 0.99), ms), ""],
  ];
  setText(id("workers-hint"), `Those in trouble first${of && `; times${of}`}`);
  const numbered = all.map((figure, at) => [at, ...figure]);
  list(id("figures"), numbered, ([at]) => at, () => el("div", {}, el("dt"), el("dd")), (box, [, name, value, kind]) => {
    setText(box.firstChild, name);
    renew(box.lastChild, el("dd", { class: kind || null }, value));
  });
}

const trouble = (worker) => (worker.health.verdict !== "up" ? 4 : 0) + (worker.phase !== "ready" ? 2 : 0) + (worker.peers >= SLOW ? 1 : 0);

const age = (time) => (time < 1000 ? `${Math.round(time)} ms` : lasting(time));

/// What the agent and the engine report, each with its age.
function loadText({ load }) {
  const score = load.kernel?.score;
  const text = known(valueOf(score), (value) => `${score.provenance === "estimated" ? "~ " : ""}${Math.round(value * 100)} %`);
  const agent = Number.isFinite(load.load?.age_ms) ? `agent, ${age(load.load.age_ms)} ago` : "no agent reports it";
  const { running, token_usage: usage } = load.engine ?? {};
  const facts = [Number.isFinite(running) ? `${running} running` : null, Number.isFinite(usage) ? `KV ${Math.round(usage * 100)} %` : null];
  const engine = load.engine ? `engine: ${[...facts, `${age(load.engine_age_ms)} ago`].filter(Boolean).join(", ")}` : "engine reports nothing";
  return [text, el("span", { class: "hint" }, ` ${agent}`), el("small", {}, engine)];
}

function workerTable(workers) {
  const sorted = [...workers].sort((a, b) => trouble(b) - trouble(a)).slice(0, MAX_WORKERS);
  list(id("worker-table").tBodies[0], sorted, (worker) => worker.name, newRow, (row, worker) => {
    const { verdict, for_ms: since, reason } = worker.health;
    const phase = worker.phase === "ready" ? null : el("small", { class: "bad" }, worker.phase === "notready" ? "pod not ready" : worker.phase);
    const others = worker.load.load?.others_requests;
    const time = known(worker.time, ms);
    const compared = Number.isFinite(worker.peers) ? `, ${worker.peers.toFixed(1)}× its peers` : "";
    const unit = worker.role === "prefill" ? "a prefill" : "a step";
    row.dataset.worker = worker.name;
    cells(row, [
      ["", el("b", { title: worker.name }, short(worker.name)), el("small", {}, worker.role)],
      ["health", el("span", { class: `badge ${verdict}` }, icon(verdict), verdict),
        Number.isFinite(since) ? el("small", {}, `for ${lasting(since)}`) : null, phase],
      ["reason", reason ?? unknown()],
      ["n", `${worker.requests}`, el("small", {}, Number.isFinite(others) ? `+ ${Math.round(others)} of others` : "others unknown")],
      ["load", ...loadText(worker)],
      ["n", time, el("small", { class: worker.peers >= SLOW ? "late" : null }, unit + compared)],
    ], [null, null, null, "Requests", "Load", "Time"]);
  });
}

function announce(workers) {
  const changes = [];
  for (const { name, health } of workers) {
    const before = state.health.get(name);
    if (before && before !== health.verdict) changes.push(`${short(name)} is ${health.verdict}${health.reason ? `: ${health.reason}` : ""}`);
    state.health.set(name, health.verdict);
  }
  if (changes.length) setText(id("changes"), changes.slice(0, 5).join(". "));
}

/// The requests to list: failed ones first, then those that waited longest; or the latest.
function listed(pool) {
  const all = new Map();
  for (const page of [state.last, state.failed])
    for (const request of page?.requests ?? []) if (request.pool === pool.name) all.set(`${request.id} ${request.started_ms}`, request);
  const failed = (request) => (request.reason === "ok" ? 0 : 1);
  const worst = (a, b) => failed(b) - failed(a) || (failed(a) ? ended(b) - ended(a) : waited(b) - waited(a));
  const found = [...all.values()].sort(id("order").value === "worst" ? worst : (a, b) => ended(b) - ended(a));
  const isSelected = (request) => request.id === state.selected;
  // The one that was chosen by hand stays while it is known.
  const withSelected = (shown) => {
    const selected = state.byHand && !shown.some(isSelected) ? found.find(isSelected) : null;
    return selected ? [...shown.slice(0, MAX_LISTED - 1), selected] : shown;
  };
  // Where many have failed, slow ones are seen as well.
  if (id("order").value !== "worst") return withSelected(found.slice(0, MAX_LISTED));
  const [bad, good] = [found.filter(failed), found.filter((request) => !failed(request))];
  const most = Math.max(MAX_LISTED / 2, MAX_LISTED - good.length);
  const first = bad.slice(0, most);
  return withSelected([...first, ...good.slice(0, MAX_LISTED - first.length)]);
}

function requestTable(pool) {
  const requests = listed(pool);
  const now = state.last?.now_ms ?? NaN;
  id("no-requests").hidden = requests.length > 0;
  setText(id("no-requests"), state.last ? "No request of this pool has ended yet." : "No request is kept: --requests-kept is 0.");
  if (requests.length && !state.byHand && !requests.some((request) => request.id === state.selected)) choose(requests[0].id);
  list(id("request-table").tBodies[0], requests, (request) => `${request.id} ${request.started_ms}`, (request) => {
    const button = el("button", { type: "button", class: "pick" }, request.id);
    button.addEventListener("click", () => choose(request.id, true));
    const time = () => el("td", { class: "n", role: "cell" });
    const head = el("th", { scope: "row", role: "rowheader" }, button, el("small"));
    return el("tr", { role: "row" }, head, time(), time());
  }, (row, request) => {
    const ok = request.reason === "ok";
    const [head, wait, when] = row.children;
    head.lastChild.className = ok ? "" : "bad";
    setText(head.lastChild, ok ? [request.prefill, request.worker].filter(Boolean).map(short).join(" → ") : `✕ ${request.reason}`);
    setText(wait, ms(waited(request)));
    setText(when, `${lasting(now - ended(request))} ago`);
    head.firstChild.setAttribute("aria-pressed", String(request.id === state.selected));
  });
}

async function choose(name, byHand = false) {
  Object.assign(state, { selected: name, byHand });
  for (const button of document.querySelectorAll(".pick")) button.setAttribute("aria-pressed", String(button.textContent === name));
  try {
    const request = await json(`/requests/${encodeURIComponent(name)}`);
    if (state.selected !== name) return;
    notice("request", "");
    show(request);
    const button = el("button", { type: "button" }, "Download bundle");
    button.addEventListener("click", () => save(name));
    id("bundle").replaceChildren(button);
    if (byHand && matchMedia("(max-width: 60rem)").matches) id("request").scrollIntoView();
  } catch (error) {
    if (error instanceof Unauthorized) return source.refused();
    if (state.selected !== name) return;
    if (byHand) notice("request", `Request ${name} cannot be read (${error.message}).`);
    unselect();
  }
}

/// The first of the list is shown then.
function unselect() {
  Object.assign(state, { selected: null, byHand: false });
}

/// Saves the bundle of a request as a file.
async function save(name) {
  notice("bundle", "");
  let bundle;
  try {
    bundle = await (await got(`/requests/${encodeURIComponent(name)}/bundle`)).blob();
  } catch (error) {
    if (error instanceof Unauthorized) return source.refused();
    return notice("bundle", `The bundle cannot be downloaded (${error.message}).`);
  }
  const address = URL.createObjectURL(bundle);
  el("a", { href: address, download: `request-${name.replace(/[^\w.-]/g, "_").slice(0, 80)}.json` }).click();
  URL.revokeObjectURL(address);
}

function failures(pool) {
  const of = new Map();
  const own = (state.failed?.requests ?? []).filter((request) => request.pool === pool.name);
  for (const request of own) {
    const one = of.get(request.reason) ?? { reason: request.reason, count: 0, last: request };
    one.count += 1;
    of.set(request.reason, one);
  }
  id("no-failures").hidden = id("failures").hidden = false;
  id(own.length ? "no-failures" : "failures").hidden = true;
  setText(id("failures-hint"), own.length ? `of the ${own.length} in memory` : "");
  const now = state.failed?.now_ms ?? NaN;
  const most = Math.max(1, ...[...of.values()].map((one) => one.count));
  list(id("failures").tBodies[0], [...of.values()].sort((a, b) => b.count - a.count), (one) => one.reason, newRow, (row, one) => {
    const bar = el("i", { class: "amount" });
    bar.style.width = `${(one.count / most) * 100}%`;
    const on = [one.last.prefill, one.last.worker].filter(Boolean).map(short).join(" → ");
    cells(row, [["", el("code", {}, one.reason), bar], ["n", `${one.count}`], ["", on || "–"], ["n", `${lasting(now - ended(one.last))} ago`]]);
  });
}

function problems(pool) {
  const found = state.fleet.fleet.problems.map((one) => [one.object ?? one.source ?? "", `${one.code}: ${one.reason}`]);
  for (const one of pool.excluded) found.push([one.worker, `gets no requests: ${one.reason}`]);
  for (const one of state.fleet.agents)
    if (!one.connected) found.push([`agent ${one.name}`, `is not connected: ${one.last_error ?? "not yet"}`]);
  id("no-problems").hidden = found.length > 0;
  id("problems").hidden = found.length === 0;
  list(id("problems").tBodies[0], found, (one) => one.join(" "), newRow, (row, [object, text]) => cells(row, [["", object], ["reason", text]]));
}

function choosePool(pools) {
  const select = id("pool");
  id("pool-choice").hidden = pools.length < 2;
  list(select, pools, (pool) => pool.name, (pool) => el("option", { value: pool.name }, pool.name), () => {});
  const pool = pools.find((one) => one.name === state.pool) ?? pools[0];
  if (pool) select.value = state.pool = pool.name;
  return pool;
}

function render() {
  if (!state.fleet || state.paused) return;
  const pool = choosePool(state.fleet.fleet.pools);
  setText(id("version"), `${state.fleet.version} · ${state.fleet.policy}`);
  notice("pool", pool ? "" : "There is no pool.");
  if (!pool) return;
  const window = recent();
  const workers = workersOf(pool, window.requests);
  announce(workers);
  figures(pool, workers, window);
  draw(pool, workers, pairs(pool, state.fleet.flows, window.requests));
  workerTable(workers);
  requestTable(pool);
  failures(pool);
  problems(pool);
  if (!state.selected) show(null);
  document.body.dataset.drawn = "true";
}

function live(kind, text) {
  document.body.dataset.state = kind;
  setText(id("live-text"), kind === "live" ? (state.paused ? "paused" : "live") : kind);
  id("unlock").hidden = kind !== "locked";
  notice("stream", text);
}

const source = new Source({
  fleet: (fleet) => { state.fleet = fleet; render(); },
  requests: (last, failed) => { notice("requests", ""); state.last = last; state.failed = failed; render(); },
  // That a gateway is gone is said once.
  unread: (why) => notice("requests", document.body.dataset.state === "live" ? `The requests cannot be read (${why}). Those below are old.` : ""),
  pool: () => state.pool,
  state: live,
  login: (tried) => {
    const dialog = id("login");
    setText(id("login-error"), tried ? "That is not the token." : "");
    if (!dialog.open) dialog.showModal();
    live("locked", "This admin port needs its token.");
  },
});

id("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = id("token").value.trim();
  // No header can carry others.
  if (!/^[!-~]+$/.test(token)) return setText(id("login-error"), "A token has printable ASCII characters alone, and no space.");
  id("login").close();
  id("token").value = "";
  source.login(token);
});
id("unlock").addEventListener("click", () => id("login").showModal());
id("pause").addEventListener("click", () => {
  state.paused = !state.paused;
  setText(id("pause"), state.paused ? "Resume" : "Pause");
  if (document.body.dataset.state === "live") live("live");
  render();
});
id("pool").addEventListener("change", (event) => { state.pool = event.target.value; unselect(); render(); source.wake(); });
id("order").addEventListener("change", () => { unselect(); render(); });
giveRoles();
new ResizeObserver(render).observe(id("map"));
source.start();
