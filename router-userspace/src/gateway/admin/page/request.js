// One request: where its time went, and why its pair was chosen.

import { cells, el, id, known, list, ms, newRow, setText, short, unknown } from "/page/dom.js";

const PARTS = ["received", "retried", "queued", "sent", "prefill", "first_byte", "done"];
const INNER = { prefill: ["decode_admitted", "handover", "prefill_queued", "prefill_compute", "transfer"], first_byte: ["decode_first_step"] };
const NAMES = {
  received: "Received", retried: "Retried", queued: "Waited for capacity", sent: "Sent to the engines",
  prefill: "Prefill and KV transfer", first_byte: "First token of decode", done: "The answer",
  prefill_queued: "its queue", prefill_compute: "its computation", decode_admitted: "decode admits it",
  handover: "until its KV cache is at decode",
  transfer: "KV transfer", decode_first_step: "decode's first step",
};

function measured(part) {
  const value = part?.value;
  if (value === null || value === undefined) return [unknown()];
  return [`${part.provenance === "estimated" ? "~ " : ""}${ms(value)}`];
}

function bar(part, from, whole, predicted) {
  const value = part?.value;
  const track = el("div", { class: "track" });
  const piece = el("i", { class: `bar ${part?.provenance ?? "unknown"}` });
  const share = (time) => `${Math.min(100, (time / whole) * 100).toFixed(2)}%`;
  if (value !== null && value !== undefined) {
    piece.style.left = share(from);
    piece.style.width = share(value);
    piece.hidden = value === 0;
  }
  track.append(piece);
  if (Number.isFinite(predicted) && from + predicted <= whole) {
    const tick = el("i", { class: "tick", title: `predicted ${ms(predicted)}` });
    tick.style.left = share(from + predicted);
    track.append(tick);
  }
  return track;
}

/// Where a part inside the engines begins: where it is not measured, with the part that it is in.
function begin(request, inside, from) {
  const value = (name) => request.inner_parts_ms?.[name]?.value ?? 0;
  const admitted = from + value("decode_admitted");
  if (inside.name === "handover") return admitted;
  if (inside.name === "transfer") return admitted + Math.max(0, value("handover") - value("transfer"));
  if (inside.name === "decode_first_step" && Number.isFinite(request.ttft_ms?.value)) {
    return Math.max(0, request.ttft_ms.value - value("decode_first_step"));
  }
  return from;
}

/// The rows of the waterfall: each part, and below it what happened inside the engines.
function rows(request) {
  const found = [];
  // The answer can be a thousand times as long as the rest: the bars are those of the time until it began.
  const ttft = request.ttft_ms?.value;
  const whole = Math.max(ttft ?? request.duration_ms, 0.001);
  let from = 0;
  for (const name of PARTS) {
    const part = request.parts_ms[name];
    if (!part) continue;
    const predicted = request.predicted_ms?.[name];
    found.push({ name, part, from, whole, predicted: name === "done" ? NaN : predicted, inner: false,
      beyond: name === "done" && Number.isFinite(ttft) });
    const inner = (INNER[name] ?? []).map((inside) => ({ name: inside, part: request.inner_parts_ms?.[inside] }));
    const seen = inner.filter((inside) => Number.isFinite(inside.part?.value));
    for (const inside of seen) {
      found.push({ ...inside, from: begin(request, inside, from), whole, predicted: NaN, inner: true });
    }
    const missing = inner.filter((inside) => !seen.includes(inside)).map((inside) => NAMES[inside.name]);
    if (missing.length) found.push({ name: `${name} inside`, part: null, missing, inner: true });
    from += part.value ?? 0;
  }
  return found;
}

function waterfall(request) {
  list(id("waterfall").tBodies[0], rows(request), (row) => row.name, newRow, (element, row) => {
    element.className = row.inner ? "inner" : "";
    const ended = request.ended_in === row.name && request.reason !== "ok";
    const shown = row.beyond ? el("span", { class: "hint" }, "after the first token") : bar(row.part, row.from, row.whole, row.predicted);
    if (row.missing) {
      cells(element, [["", "inside the engines"], ["hint", "unknown: ", row.missing.join(", ")]]);
      element.cells[1].colSpan = 2;
      return;
    }
    const time = [...measured(row.part)];
    if (Number.isFinite(row.predicted)) time.push(el("small", {}, `predicted ${ms(row.predicted)}`));
    cells(element, [["", NAMES[row.name], ended ? el("small", { class: "bad" }, "it failed here") : null],
      ["", shown], ["n", ...time]]);
  });
}

const TERMS = [
  ["Prefill's queue", "wait_ms"], ["Decode's capacity", "admission_ms"], ["Prefill", "prefill_ms"],
  ["KV transfer, not overlapped", "transfer_ms"], ["Time to first token", null],
  ["One decode step", "itl_ms"], ["Delay of later prompts", "queue_cost_ms"], ["Affinity, subtracted", "affinity_bonus_ms"],
];

function term(scored, name) {
  if (!scored) return NaN;
  const of = scored.estimate;
  return name === null ? of.wait_ms + of.admission_ms + of.prefill_ms + of.transfer_ms : of[name];
}

const pairName = (pair) => `${short(pair.prefill)} → ${short(pair.decode)}`;

function why(choice) {
  const table = id("terms");
  table.hidden = !choice;
  if (!choice) {
    setText(id("why-text"), "Nothing was predicted: it reached no pair, or the policy does not predict.");
    return;
  }
  const { chosen, runner_up: other } = choice;
  setText(id("why-text"), other
    ? `Taken: ${pairName(chosen.pair)}. Runner-up: ${pairName(other.pair)}.`
    : `Taken: ${pairName(chosen.pair)}. There was no other pair.`);
  list(table.tBodies[0], TERMS, ([name]) => name, newRow, (row, [name, key]) => {
    const [taken, next] = [term(chosen, key), term(other, key)];
    const more = Math.round((next - taken) * 10) / 10;
    row.className = key === null ? "sum" : "";
    cells(row, [["", name], ["n", known(taken, ms)], ["n", other ? known(next, ms) : "–"],
      ["n", Number.isFinite(more) ? `${more > 0 ? "+" : more < 0 ? "−" : ""}${ms(Math.abs(more))}` : "–"]]);
  });
}

/// Shows a request; `null` where there is none.
export function show(request) {
  id("request").classList.toggle("none", !request);
  if (!request) return setText(id("request-summary"), "No request of this pool has ended yet.");
  const tokens = request.prefill_report?.prompt_tokens?.value;
  const cached = request.prefill_report?.cached_tokens?.value;
  const workers = [request.prefill, request.worker].filter(Boolean).map(short).join(" → ");
  const facts = [request.id, workers || "no pair", request.reason === "ok" ? null : `${request.status} ${request.reason}`,
    request.detail, request.attempts > 1 ? `${request.attempts} attempts` : null,
    Number.isFinite(tokens) ? `${tokens} prompt tokens${Number.isFinite(cached) ? `, ${cached} cached` : ""}` : null];
  setText(id("request-summary"), facts.filter(Boolean).join(" · "));
  waterfall(request);
  list(id("attempts"), request.retries.map((retry, at) => ({ ...retry, at })), (retry) => retry.at, () => el("li"),
    (item, retry) => setText(item, `Attempt ${retry.at + 1}: ${[retry.prefill, retry.worker].filter(Boolean).map(short).join(" → ")}, ` +
      `${retry.reason} after ${ms(retry.duration_ms)}: ${retry.detail}`));
  why(request.choice);
}
