// Write: several posts on one prompt, side by side, as the choices of one request.

import { Stream } from "./api.js";
import { Card } from "./card.js";
import { $, asking, h, toast } from "./dom.js";
import { modelOf } from "./models.js";

const IDEAS = {
  "A small joy": "Write a short, friendly social media post about something small that made your day better.",
  "Something learned": "Write a short social media post about one surprising thing you learned this week.",
  "A walk at night": "Write a short social media post about a quiet walk through a city at night.",
  "Advice to myself": "Write a short social media post with one piece of advice to your younger self.",
};

export function write(section) {
  const place = $(".cards", section);
  let stream = null;

  const form = asking(section, send, () => stream?.stop());
  $(".ideas", section).append(...Object.entries(IDEAS).map(idea));

  function idea([name, prompt]) {
    const take = () => {
      form.elements.prompt.value = prompt;
      form.elements.prompt.focus();
    };
    return h("button", { type: "button", className: "idea", textContent: name, onclick: take });
  }

  async function send(fields) {
    await stream?.stop();
    const cards = Array.from({ length: fields.count.valueAsNumber }, () => new Card());
    place.replaceChildren(...cards.map((card) => card.element));
    const mine = (stream = new Stream(bodyOf(fields, cards.length), (chunk, counts) => {
      for (const choice of chunk.choices) cards[choice.index].add(choice.delta, choice.finish_reason, counts[choice.index]);
    }));
    form.elements.stop.hidden = false;
    try {
      await mine.run();
    } catch (trouble) {
      toast(trouble.message);
      for (const card of cards.filter((card) => !card.text)) card.fail("nothing was written");
    }
    for (const card of cards) card.end();
    if (stream === mine) form.elements.stop.hidden = true;
  }

  function bodyOf(fields, count) {
    return {
      model: modelOf(form),
      messages: [{ role: "user", content: fields.prompt.value }],
      n: count,
      temperature: fields.temperature.valueAsNumber,
      max_tokens: fields.tokens.valueAsNumber,
    };
  }
}
