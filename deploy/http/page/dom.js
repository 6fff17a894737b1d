// Elements from code. Text goes in as text, never as markup.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function svg(tag, properties = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const $ = (selector, root = document) => root.querySelector(selector);

let hiding;

export function toast(message) {
  const place = $("#toast");
  place.textContent = message;
  place.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => (place.hidden = true), 6000);
}

export function number(value, digits = 0) {
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

// A form that is sent by its button or by Ctrl+Enter, and stopped by its stop button or by Escape.
export function asking(section, send, stop = () => {}) {
  const form = $("form.ask", section);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form.elements);
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  section.addEventListener("keydown", (event) => event.key === "Escape" && stop());
  form.elements.stop?.addEventListener("click", stop);
  return form;
}
