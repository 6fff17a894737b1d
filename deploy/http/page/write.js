// Write: several posts on one prompt, side by side, as the choices of one request.

import { Stream } from "./api.js";
import { Card } from "./card.js";
import { $, asking, toast } from "./dom.js";
import { modelOf } from "./models.js";

export function write(section) {
  const place = $(".cards", section);
  let stream = null;

  const form = asking(section, send, () => stream?.stop());

  async function send(fields) {
    await stream?.stop();
    const cards = Array.from({ length: fields.count.valueAsNumber }, () => new Card());
    place.replaceChildren(...cards.map((card) => card.element));
    const mine = (stream = new Stream(bodyOf(fields, cards.length), (chunk) => {
      for (const choice of chunk.choices) cards[choice.index].add(choice.delta, choice.finish_reason);
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
