// A figure: a number now, and its last minutes as a curve. Restarts are marks on the line of time.

import { h, svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 60;
const LEAST_SECONDS = 60; // so that the first seconds are not drawn as if they were all there is

export class Figure {
  constructor(what, unit, valueOf, shown) {
    this.valueOf = valueOf;
    this.shown = shown;
    this.value = h("span", {}, "–");
    this.most = h("span", { className: "most" });
    this.chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.element = h(
      "div",
      { className: "figure" },
      h("p", { className: "what" }, what, this.most),
      h("p", { className: "value" }, this.value, " ", h("small", {}, unit)),
      this.chart,
    );
  }

  show(samples) {
    if (!samples.length) return;
    const values = samples.map((sample) => this.valueOf(sample) ?? 0);
    this.value.textContent = this.shown(this.valueOf(samples.at(-1)));
    const most = Math.max(...values, 1e-9);
    const seconds = Math.max(samples.length - 1, LEAST_SECONDS);
    const x = (index) => WIDTH - (samples.length - 1 - index) * (WIDTH / seconds);
    this.most.textContent = `most ${this.shown(most < 1e-6 ? 0 : most)} · ${Math.max(1, Math.round(seconds / 60))} min`;
    const points = values.map((value, index) => `${x(index).toFixed(1)},${(HEIGHT - 2 - (value / most) * (HEIGHT - 6)).toFixed(1)}`);
    const marks = samples.flatMap((sample, index) =>
      index && sample.restarts > samples[index - 1].restarts
        ? [svg("line", { class: "mark", x1: x(index), x2: x(index), y1: 0, y2: HEIGHT })]
        : [],
    );
    this.chart.replaceChildren(
      svg("polygon", { class: "area", points: `${x(0)},${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}` }),
      svg("polyline", { class: "curve", points: points.join(" ") }),
      ...marks,
    );
  }
}
