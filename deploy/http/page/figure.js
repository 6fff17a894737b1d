// A figure: a number now, and its last minutes as a curve. Restarts are marks on the line of time.

import { h, svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 60;

export class Figure {
  constructor(what, unit, valueOf, shown) {
    this.valueOf = valueOf;
    this.shown = shown;
    this.value = h("span", {}, "–");
    this.chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.element = h(
      "div",
      { className: "figure" },
      h("p", { className: "what" }, what),
      h("p", { className: "value" }, this.value, " ", h("small", {}, unit)),
      this.chart,
    );
  }

  show(samples) {
    if (!samples.length) return;
    const values = samples.map((sample) => this.valueOf(sample) ?? 0);
    this.value.textContent = this.shown(this.valueOf(samples.at(-1)));
    const most = Math.max(...values, 1e-9);
    const x = (index) => WIDTH - (samples.length - 1 - index) * (WIDTH / 299);
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
