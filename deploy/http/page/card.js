// A card: one answer as it is written, its length and its speed, and a way to take it along.

import { h, number, toast } from "./dom.js";

export class Card {
  constructor(title = null) {
    this.words = h("p", { className: "text writing" });
    this.thought = null;
    this.told = h("span", {}, "…");
    this.copy = h("button", { type: "button", className: "plain end", textContent: "Copy", onclick: () => this.take() });
    const heading = title === null ? null : h("h3", {}, title);
    this.meta = h("div", { className: "meta" }, this.told, this.copy);
    this.element = h("article", { className: "card" }, heading, this.words, this.meta);
    this.count = 0; // tokens
    this.first = null; // how many came at once, from when on the time counts
    this.began = null;
  }

  get text() {
    return this.words.textContent;
  }

  add(delta, finish, count = this.count) {
    this.count = count;
    if (delta.content || delta.reasoning_content) {
      this.began ??= performance.now();
      this.first ??= count;
    }
    if (delta.reasoning_content) this.think(delta.reasoning_content);
    if (delta.content) this.words.append(delta.content);
    const seconds = this.began === null ? 0 : (performance.now() - this.began) / 1000;
    const speed = seconds > 0 ? ` · ${number((count - this.first) / seconds)} tokens/s` : "";
    this.told.textContent = `${number([...this.text].length)} characters · ${number(count)} tokens${speed}`;
    if (finish) this.end();
  }

  think(text) {
    if (this.thought === null) {
      this.thought = h("p", { className: "text" });
      this.words.before(h("details", { className: "thought" }, h("summary", {}, "Thought"), this.thought));
    }
    this.thought.append(text);
  }

  end() {
    this.words.classList.remove("writing");
  }

  fail(message) {
    this.end();
    this.meta.before(h("p", { className: "failed" }, message));
  }

  async take() {
    try {
      await navigator.clipboard.writeText(this.text);
      this.copy.textContent = "Copied";
    } catch {
      const range = document.createRange();
      range.selectNodeContents(this.words);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      toast("Selected; copy it with the keyboard.");
    }
    setTimeout(() => (this.copy.textContent = "Copy"), 1500);
  }
}
