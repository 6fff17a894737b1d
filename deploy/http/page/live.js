// Live: what the system does now, second by second, and the few things one can do to it.

import { call, Stream } from "./api.js";
import { $, h, number, toast } from "./dom.js";
import { Figure } from "./figure.js";
import { base, refreshModels } from "./models.js";

const KEPT_SAMPLES = 300;
const STORY = "Tell me a long story about a lighthouse keeper and the sea.";

export function live(section) {
  const samples = [];
  let told = null;
  const figures = [
    new Figure("Written", "tokens/s", (sample) => sample.tokens_per_second, (value) => number(value)),
    new Figure("In the batch", "requests", (sample) => sample.num_running, (value) => number(value)),
    new Figure("Waiting", "requests", (sample) => sample.num_waiting, (value) => number(value)),
    new Figure(
      "To the first token",
      "ms, median",
      (sample) => sample.first_token_seconds,
      (value) => (value === null ? "–" : number(1000 * value)),
    ),
  ];
  $(".figures", section).append(...figures.map((figure) => figure.element));
  const buttons = engineButtons($(".engine", section), () => told);
  const load = $("form.load", section);
  load.addEventListener("submit", (event) => {
    event.preventDefault();
    act("POST", "/v1/load_lora_adapter", { lora_name: load.elements.source.value });
  });

  return {
    after: () => samples.at(-1)?.number ?? 0,
    show(system) {
      told = system;
      if (system.samples.length && system.samples[0].number === 1) samples.length = 0; // the server began anew
      samples.push(...system.samples);
      samples.splice(0, samples.length - KEPT_SAMPLES);
      for (const figure of figures) figure.show(samples);
      buttons.show(system);
      $(".tree", section).replaceChildren(node(system.tree));
      $(".cache", section).replaceChildren(...cache(system.stats.engine));
      showAdapters(section, system);
      showBatch($(".batch tbody", section), system.running);
    },
  };
}

async function act(method, path, body) {
  try {
    await call(method, path, body);
    await refreshModels();
  } catch (trouble) {
    toast(trouble.message);
  }
}

function engineButtons(panel, told) {
  const [start, suspend, kill] = ["start", "suspend", "kill"].map((name) => $(`button[name="${name}"]`, panel));
  const place = $(".demo", panel);
  const pauses = new Pauses(place, $(".pause", panel));
  let stream = null;
  start.addEventListener("click", async () => {
    if (stream) return stream.stop();
    place.replaceChildren();
    pauses.begin();
    start.textContent = "Stop the text";
    stream = new Stream(story(told().model.capacity.max_context), (chunk) => {
      pauses.heard();
      for (const choice of chunk.choices) place.append(choice.delta.content ?? "");
      place.scrollTop = place.scrollHeight;
    });
    await stream.run().catch((trouble) => toast(trouble.message));
    stream = null;
    start.textContent = "Start a text";
  });
  const isSuspended = () => (told()?.not_ready ?? "").includes("suspended");
  suspend.addEventListener("click", () => act("POST", `/v1/system/${isSuspended() ? "resume" : "suspend"}`));
  kill.addEventListener("click", () => {
    if (stream) pauses.killed();
    act("POST", "/v1/system/kill_engine");
  });
  return {
    show(system) {
      suspend.textContent = isSuspended() ? "Resume" : "Suspend";
      suspend.disabled = kill.disabled = !system.is_operator;
    },
  };
}

// What a kill costs a reader: the longest time without a word since then. The place of the kill is marked in the text.
class Pauses {
  constructor(text, told) {
    this.text = text;
    this.told = told;
    this.begin();
  }

  begin() {
    this.kills = 0;
    this.longest = 0;
    this.last = null;
    this.told.textContent = "";
  }

  killed() {
    this.kills += 1;
    this.longest = 0;
    this.last ??= performance.now();
    this.text.append(h("span", { className: "kill", title: "the engine was killed here" }));
    this.told.textContent = "Killed. The text waits for the next engine.";
  }

  heard() {
    const now = performance.now();
    if (this.kills) {
      this.longest = Math.max(this.longest, now - this.last);
      const times = this.kills === 1 ? "once" : `${this.kills} times`;
      this.told.textContent = `Killed ${times}; the text went on after ${number(this.longest / 1000, 1)} s.`;
    }
    this.last = now;
  }
}

function story(maxContext) {
  const messages = [{ role: "user", content: STORY }];
  const length = Math.min(1500, Math.floor(maxContext / 2));
  return { model: base(), messages, max_tokens: length, temperature: 0.7, seed: 1, ignore_eos: true };
}

function node(process) {
  const again = process.restarts === 1 ? "1 restart" : `${process.restarts} restarts`;
  const why = process.restarts ? `${again}, the last: ${process.last_reason ?? "unknown"}` : process.state === "running" ? "" : process.state;
  const line = h(
    "div",
    { className: "node" },
    h("span", { className: `dot ${process.state}`, title: process.state }),
    h("span", {}, process.name),
    h("span", { className: "why" }, why),
  );
  const below = process.children.length ? h("ul", {}, ...process.children.map(node)) : null;
  return h("li", {}, line, below);
}

function cache(engine) {
  if (!engine) return [h("p", { className: "hint" }, "The engine is away.")];
  const share = (blocks) => `${(100 * blocks) / engine.num_blocks}%`;
  const bar = h("div", { className: "bar" }, h("span"), h("span", { className: "kept" }));
  bar.children[0].style.width = share(engine.used_blocks);
  bar.children[1].style.width = share(engine.remembered_blocks);
  const read = engine.prompt_tokens + engine.cached_tokens;
  const rows = [
    ["Blocks in use", number(engine.used_blocks)],
    ["Kept to be found again", number(engine.remembered_blocks)],
    ["Of", `${number(engine.num_blocks)} × ${engine.block_size} tokens`],
    ["Prompt tokens found, not computed", read ? `${number((100 * engine.cached_tokens) / read, 1)} %` : "–"],
    ["Tokens that a replay drew differently", number(engine.replay_mismatches)],
  ];
  const legend = h("dl", { className: "legend" }, ...rows.flatMap(([what, value]) => [h("dt", {}, what), h("dd", {}, value)]));
  return [bar, legend];
}

function showAdapters(section, system) {
  const unload = (name) => act("POST", "/v1/unload_lora_adapter", { lora_name: name });
  const items = system.adapters.map((adapter) => {
    const button = h("button", { type: "button", className: "plain", textContent: "Unload", onclick: () => unload(adapter.name) });
    button.disabled = !system.is_operator;
    const size = `rank ${adapter.rank} · ${number(adapter.num_bytes / 1e6, 1)} MB`;
    return h("li", {}, h("span", {}, adapter.name), h("span", { className: "meta" }, size, button));
  });
  const none = h("li", {}, h("span", { className: "hint" }, "None is loaded."));
  keepFocus($(".adapters", section), items.length ? items : [none]);
  const form = $("form.load", section);
  form.hidden = !system.loadable.length;
  const select = form.elements.source;
  const names = [...select.options].map((option) => option.value);
  if (names.join() !== system.loadable.join()) select.replaceChildren(...system.loadable.map((name) => h("option", {}, name)));
}

function showBatch(body, running) {
  const rows = running.slice(0, 50).map((row) => {
    const cancel = h("button", { type: "button", className: "plain", textContent: "Cancel", onclick: () => act("DELETE", `/v1/requests/${row.id}`) });
    const choices = row.num_choices > 1 ? ` × ${row.num_choices}` : "";
    const cells = [row.id ? row.id.slice(0, 8) : "another's", (row.adapter ?? "none") + choices, row.state];
    return h(
      "tr",
      {},
      ...cells.map((cell) => h("td", {}, cell)),
      h("td", { className: "n" }, number(row.prompt_tokens)),
      h("td", { className: "n" }, number(row.generated_tokens)),
      h("td", { className: "n" }, row.id ? cancel : ""),
    );
  });
  const rest = running.length > 50 ? [h("tr", { className: "none" }, h("td", { colSpan: 6 }, `and ${running.length - 50} more`))] : [];
  const none = [h("tr", { className: "none" }, h("td", { colSpan: 6 }, "Nothing runs, nothing waits."))];
  keepFocus(body, rows.length ? [...rows, ...rest] : none);
}

// New rows every second must not take the keyboard's place away.
function keepFocus(place, children) {
  const index = [...place.querySelectorAll("button")].indexOf(document.activeElement);
  place.replaceChildren(...children);
  if (index >= 0) place.querySelectorAll("button")[index]?.focus();
}
