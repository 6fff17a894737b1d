// The models that can be asked, in every place that lets one choose.

import { call } from "./api.js";
import { $, h } from "./dom.js";

let names = [];
const listeners = [];

export const base = () => names[0] ?? "";

export function whenModelsChange(listener) {
  listeners.push(listener);
}

export async function refreshModels() {
  const found = (await call("GET", "/v1/models")).data.map((model) => model.id);
  if (found.join() === names.join()) return;
  names = found;
  for (const select of document.querySelectorAll('select[name="adapter"]')) fill(select);
  for (const listener of listeners) listener(names);
}

function fill(select) {
  const chosen = select.value;
  select.replaceChildren(...names.map((name, index) => h("option", { value: name }, index ? name : "none")));
  if (names.includes(chosen)) select.value = chosen;
}

export function boxes(place) {
  const before = new Map([...place.querySelectorAll("input")].map((box) => [box.value, box.checked]));
  place.replaceChildren(
    ...names.map((name, index) => {
      const box = h("input", { type: "checkbox", name: "model", value: name });
      box.checked = before.get(name) ?? true; // what is new is asked too
      return h("label", {}, box, index ? name : `${name}, no adapter`);
    }),
  );
}

export const chosen = (place) => [...place.querySelectorAll("input:checked")].map((box) => box.value);

export const modelOf = (form) => $('select[name="adapter"]', form).value || base();
