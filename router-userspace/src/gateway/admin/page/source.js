// Where the data comes from: `/fleet?watch` as it changes, and `/requests` every few seconds.

const REQUESTS_EVERY = 3000;
const LONGEST_PAUSE = 10000;
// Between two events of a gateway that is well there is a second.
const SILENCE = 5000;

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

export async function json(path, signal) {
  const answer = await ask(path, signal);
  if (!answer.ok) throw new Error(`${answer.status}: ${(await answer.text()).trim()}`);
  return answer.json();
}

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
    const timer = setTimeout(resolve, time);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); });
  });

/// Follows the gateway while the page is visible. `on` has `fleet`, `requests`, `state` and `login`.
export class Source {
  constructor(on) {
    this.on = on;
    this.stop = null;
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
      signal.addEventListener("abort", () => attempt.abort());
      let silence = 0;
      const heard = () => {
        clearTimeout(silence);
        silence = setTimeout(() => attempt.abort(), SILENCE);
      };
      heard();
      try {
        await watch(attempt.signal, (name, data) => {
          heard();
          if (name === "draining") return this.on.state("draining", "The gateway drains: it ends soon.");
          pause = 500;
          this.on.state("live");
          this.on.fleet(JSON.parse(data));
        });
        if (!signal.aborted) this.on.state("lost", "The gateway has ended the stream. Trying again.");
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Unauthorized) return this.refused();
        this.on.state("lost", `The gateway does not answer (${error.message}). What is below is old.`);
      } finally {
        clearTimeout(silence);
      }
      await sleep(pause, signal);
      pause = Math.min(pause * 2, LONGEST_PAUSE);
    }
  }

  async poll(signal) {
    while (!signal.aborted) {
      try {
        const [last, failed] = await Promise.all([
          json("/requests?limit=200", signal), json("/requests?failed=1&limit=200", signal)]);
        this.on.requests(last, failed);
      } catch (error) {
        if (signal.aborted || error instanceof Unauthorized) return;
        if (error.message.startsWith("404")) this.on.requests(null, null);
      }
      await sleep(REQUESTS_EVERY, signal);
    }
  }
}
