// Chat: turns that can be stopped, edited and asked again. The conversation lives here, not on the server.

import { Stream } from "./api.js";
import { Card } from "./card.js";
import { $, asking, h, toast } from "./dom.js";
import { modelOf } from "./models.js";

export function chat(section) {
  const place = $(".turns", section);
  const turns = []; // { role, content, element }
  let stream = null;

  const form = asking(section, send, () => stream?.stop());
  const { prompt, stop, clear } = form.elements;
  clear.addEventListener("click", () => cut(0));
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  show();

  function send() {
    const content = prompt.value;
    prompt.value = "";
    turns.push(userTurn(content));
    answer();
  }

  async function answer() {
    await stream?.stop();
    const card = new Card();
    const turn = { role: "assistant", content: "", element: null };
    const again = h("button", { type: "button", className: "plain", textContent: "Again", onclick: () => redo(turn) });
    card.meta.append(again);
    turn.element = h("div", { className: "turn assistant" }, h("span", { className: "who" }, modelOf(form)), ...card.element.childNodes);
    const body = bodyOf(turns);
    turns.push(turn);
    show();
    const mine = (stream = new Stream(body, (chunk, counts) => {
      atTheEnd(() => {
        for (const choice of chunk.choices) card.add(choice.delta, choice.finish_reason, counts[0]);
      });
      turn.content = card.text;
    }));
    stop.hidden = false;
    try {
      await mine.run();
    } catch (trouble) {
      toast(trouble.message);
      card.fail("this answer was not finished");
    }
    card.end();
    if (stream === mine) stop.hidden = true;
  }

  function bodyOf(said) {
    const system = form.elements.system.value.trim();
    const messages = said.map(({ role, content }) => ({ role, content }));
    if (system) messages.unshift({ role: "system", content: system });
    return { model: modelOf(form), messages, temperature: form.elements.temperature.valueAsNumber };
  }

  function userTurn(content) {
    const turn = { role: "user", content, element: null };
    const edit = h("button", { type: "button", className: "plain", textContent: "Edit", onclick: () => change(turn) });
    turn.element = h(
      "div",
      { className: "turn user" },
      h("span", { className: "who" }, "You"),
      h("p", { className: "text" }, content),
      h("div", { className: "meta" }, edit),
    );
    return turn;
  }

  function change(turn) {
    cut(turns.indexOf(turn));
    prompt.value = turn.content;
    prompt.focus();
  }

  function redo(turn) {
    cut(turns.indexOf(turn));
    answer();
  }

  function cut(length) {
    stream?.stop();
    turns.length = length;
    show();
  }

  function show() {
    const empty = h("p", { className: "empty" }, "Nothing said yet.");
    place.replaceChildren(...(turns.length ? turns.map((turn) => turn.element) : [empty]));
    scrollTo(0, turns.length ? document.documentElement.scrollHeight : 0);
  }
}

// Who reads the end goes on reading the end; who has scrolled back stays there.
function atTheEnd(change) {
  const page = document.documentElement;
  const isThere = scrollY + innerHeight > page.scrollHeight - 40;
  change();
  if (isThere) scrollTo(0, page.scrollHeight);
}
