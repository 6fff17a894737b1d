// The public interface, and nothing else: what this page can do, any client can.

export class Refused extends Error {}

export async function call(method, path, body) {
  const options = { method, headers: {} };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  const answer = await response.json();
  if (!response.ok && answer.error) throw new Refused(answer.error.message);
  return answer;
}

// A chat completion as it is written: `told` gets every chunk, and how many tokens each answer has by then, which is
// what an event's id says. It survives lost connections, because its key makes it the same request again and the last
// event's id says how much of it is here.
export class Stream {
  constructor(body, told) {
    this.body = { ...body, stream: true };
    this.told = told;
    this.key = key();
    this.last = null;
    this.id = null;
    this.isStopped = false;
    this.controller = new AbortController();
  }

  async run() {
    for (let tries = 0; !this.isStopped; tries += 1) {
      const had = this.last;
      try {
        await this.read();
        return;
      } catch (trouble) {
        if (this.isStopped) return;
        if (trouble instanceof Refused || tries > 8) throw trouble;
        if (this.last !== had) tries = 0;
        await new Promise((resume) => setTimeout(resume, 250 * 2 ** Math.min(tries, 4)));
      }
    }
  }

  async stop() {
    if (this.isStopped) return;
    this.isStopped = true;
    this.controller.abort();
    if (this.id) await fetch(`/v1/requests/${this.id}`, { method: "DELETE" }).catch(() => {});
  }

  async read() {
    const headers = { "Content-Type": "application/json", "Idempotency-Key": this.key };
    if (this.last) headers["Last-Event-ID"] = this.last;
    const options = { method: "POST", headers, body: JSON.stringify(this.body), signal: this.controller.signal };
    const response = await fetch("/v1/chat/completions", options);
    if (!response.ok) throw new Refused((await response.json()).error.message);
    this.id = response.headers.get("x-request-id");
    let isDone = false;
    for await (const [id, data] of events(response.body)) {
      if (data === "[DONE]") isDone = true;
      else this.take(id, JSON.parse(data));
    }
    if (!isDone) throw new Error("the connection was lost");
  }

  take(id, chunk) {
    if (chunk.error) throw new Refused(chunk.error.message);
    if (id) this.last = id;
    this.told(chunk, id ? id.split(":")[1].split(".").map(Number) : []);
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s).slice(0, 2)));
      if (fields.data !== undefined) yield [fields.id, fields.data];
    }
  }
}

// Without a secure context, as on another machine's address, there is no crypto.randomUUID.
function key() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
