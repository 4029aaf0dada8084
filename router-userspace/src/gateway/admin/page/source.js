// Where the data comes from: `/fleet?watch` as it changes, and `/requests` every few seconds.

/// The most requests that are read at once.
export const LIMIT = 200;
const REQUESTS_EVERY = 3000;
const LONGEST_PAUSE = 10000;
// Between two events of a gateway that is well there is a second.
const SILENCE = 5000;
const DRAINS = "The gateway drains: running requests finish, and the figures below are old.";

const token = {
  get: () => sessionStorage.getItem("token"),
  set: (value) => sessionStorage.setItem("token", value),
  forget: () => sessionStorage.removeItem("token"),
};

export class Unauthorized extends Error {}

async function ask(path, signal) {
  const headers = {};
  if (token.get()) headers.authorization = `Bearer ${token.get()}`;
  const answer = await fetch(path, { headers, signal, cache: "no-store" });
  if (answer.status === 401) throw new Unauthorized();
  return answer;
}

/// An answer with a body that can be used.
export async function got(path, signal) {
  const answer = await ask(path, signal);
  if (!answer.ok) throw new Error(`${answer.status}: ${(await answer.text()).trim()}`);
  return answer;
}

export const json = async (path, signal) => (await got(path, signal)).json();

/// Calls `event(name, data)` for each event, until the stream ends.
async function watch(signal, event) {
  const answer = await ask("/fleet?watch", signal);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const text of events) {
      const fields = Object.fromEntries(text.split("\n").map((line) => {
        const colon = line.indexOf(": ");
        return [line.slice(0, colon), line.slice(colon + 2)];
      }));
      event(fields.event, fields.data);
    }
  }
}

const sleep = (time, signal) =>
  new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, time);
    signal.addEventListener("abort", end);
  });

/// Follows the gateway while the page is visible. `on` has `fleet`, `requests`, `unread`, `state` and `login`,
/// and `pool`, which returns the pool whose requests are wanted.
export class Source {
  constructor(on) {
    this.on = on;
    this.stop = null;
    this.wake = () => {};
    document.addEventListener("visibilitychange", () => (document.hidden ? this.end() : this.start()));
  }

  start() {
    if (this.stop) return;
    this.stop = new AbortController();
    this.follow(this.stop.signal);
    this.poll(this.stop.signal);
  }

  end() {
    this.stop?.abort();
    this.stop = null;
  }

  login(value) {
    // A request without it may still run.
    this.end();
    token.set(value);
    this.start();
  }

  refused() {
    const tried = token.get() !== null;
    this.end();
    token.forget();
    this.on.login(tried);
  }

  async follow(signal) {
    let pause = 500;
    while (!signal.aborted) {
      const attempt = new AbortController();
      const abort = () => attempt.abort();
      signal.addEventListener("abort", abort);
      let [silence, drains] = [0, false];
      const restartSilenceTimer = () => {
        clearTimeout(silence);
        silence = setTimeout(() => attempt.abort(new Error(`nothing for ${SILENCE / 1000} s`)), SILENCE);
      };
      restartSilenceTimer();
      try {
        await watch(attempt.signal, (name, data) => {
          restartSilenceTimer();
          drains = name === "draining";
          if (drains) return this.on.state("draining", DRAINS);
          pause = 500;
          this.on.state("live");
          this.on.fleet(JSON.parse(data));
        });
        if (!signal.aborted && !drains) this.on.state("lost", "The gateway has ended the stream. Trying again.");
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Unauthorized) return this.refused();
        // The answer of a gateway that drains to those who begin to watch.
        if (error.message === "draining") this.on.state("draining", DRAINS);
        else this.on.state("lost", `The gateway does not answer (${error.message}). What is below is old.`);
      } finally {
        clearTimeout(silence);
        signal.removeEventListener("abort", abort);
      }
      await sleep(pause, signal);
      pause = Math.min(pause * 2, LONGEST_PAUSE);
    }
  }

  async poll(signal) {
    while (!signal.aborted) {
      const pool = this.on.pool();
      const query = `limit=${LIMIT}${pool ? `&pool=${encodeURIComponent(pool)}` : ""}`;
      try {
        const [last, failed] = await Promise.all([
          json(`/requests?${query}`, signal), json(`/requests?failed=1&${query}`, signal)]);
        this.on.requests(last, failed);
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Unauthorized) return this.refused();
        if (error.message.startsWith("404")) this.on.requests(null, null);
        else this.on.unread(error.message);
      }
      // Another pool has been chosen meanwhile.
      if (pool !== this.on.pool()) continue;
      await Promise.race([sleep(REQUESTS_EVERY, signal), new Promise((resolve) => { this.wake = resolve; })]);
    }
  }
}
