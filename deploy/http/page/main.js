// The four views, which of them is shown, and the one question that is asked every second.

import { call } from "./api.js";
import { chat } from "./chat.js";
import { compare } from "./compare.js";
import { $ } from "./dom.js";
import { live } from "./live.js";
import { refreshModels } from "./models.js";
import { write } from "./write.js";

const tabs = [...document.querySelectorAll('[role="tab"]')];
const QUIET_MS = 4000;
const LIVE_MS = 1000;
let next;
let focused;

write($("#write"));
chat($("#chat"));
compare($("#compare"));
const board = live($("#live"));

function show() {
  const wanted = tabs.find((tab) => tab.hash === location.hash) ?? tabs[0];
  for (const tab of tabs) {
    const isShown = tab === wanted;
    tab.setAttribute("aria-selected", isShown);
    tab.tabIndex = isShown ? 0 : -1;
    $(tab.hash).hidden = !isShown;
  }
  document.title = `${wanted.textContent} · genserve`;
}

$("nav").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const neighbour = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
  location.hash = neighbour.hash;
  focused = neighbour; // going to a fragment takes the focus away
});

function status(state, label) {
  $("#status .dot").className = `dot ${state}`;
  $("#status .label").textContent = label;
}

async function look() {
  clearTimeout(next);
  try {
    const system = await call("GET", `/v1/system?after=${board.after()}`);
    board.show(system);
    status(system.not_ready ? "restarting" : "running", system.not_ready ?? system.model.name);
    if (system.model) await refreshModels();
  } catch {
    status("down", "no answer");
  }
  next = setTimeout(look, location.hash === "#live" && !document.hidden ? LIVE_MS : QUIET_MS);
}

addEventListener("hashchange", () => {
  show();
  scrollTo(0, 0);
  focused?.focus();
  focused = undefined;
  look();
});
show();
look();
