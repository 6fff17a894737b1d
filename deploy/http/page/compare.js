// Compare: one prompt and one seed, asked of several adapters at once. On the server they share a batch.

import { Stream } from "./api.js";
import { Card } from "./card.js";
import { $, asking, toast } from "./dom.js";
import { boxes, chosen, whenModelsChange } from "./models.js";

export function compare(section) {
  const place = $(".cards", section);
  const choices = $(".boxes", section);
  let streams = [];

  const form = asking(section, send, stop);
  whenModelsChange(() => boxes(choices));

  function stop() {
    for (const stream of streams) stream.stop();
  }

  async function send(fields) {
    stop();
    const models = chosen(choices);
    if (!models.length) return toast("Choose at least one.");
    const cards = models.map((model) => new Card(model));
    place.replaceChildren(...cards.map((card) => card.element));
    const mine = (streams = models.map((model, index) => streamOf(fields, model, cards[index])));
    form.elements.stop.hidden = false;
    await Promise.all(mine.map((stream, index) => follow(stream, cards[index])));
    if (streams === mine) form.elements.stop.hidden = true;
  }

  async function follow(stream, card) {
    try {
      await stream.run();
      card.end();
    } catch (trouble) {
      card.fail(trouble.message);
    }
  }

  function streamOf(fields, model, card) {
    const body = {
      model,
      messages: [{ role: "user", content: fields.prompt.value }],
      seed: fields.seed.valueAsNumber,
      temperature: fields.temperature.valueAsNumber,
      max_tokens: fields.tokens.valueAsNumber,
    };
    return new Stream(body, (chunk, counts) => {
      for (const choice of chunk.choices) card.add(choice.delta, choice.finish_reason, counts[0]);
    });
  }
}
