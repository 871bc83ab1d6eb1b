// The two charts, drawn by uPlot (uplot.js, MIT). Colours come from the style sheet and follow the dark mode.
/* global uPlot */

export const DAYS = 30;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function axis(more) {
  return { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") }, font: "12px system-ui", ...more };
}

// A chart in `element` that is as wide as the element and is drawn anew for new data or colours.
class Chart {
  #plot = null;
  #data = null;

  constructor(element, options) {
    this.element = element;
    this.options = options;
    new ResizeObserver(() => this.#plot?.setSize(this.#size())).observe(element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#data && this.draw(this.#data));
  }

  draw(data) {
    this.#data = data;
    this.#plot?.destroy();
    this.#plot = new uPlot({ ...this.#size(), ...this.options() }, data, this.element);
  }

  #size() {
    return { width: Math.max(240, this.element.clientWidth), height: 200 };
  }
}

export function daysChart(element, money) {
  return new Chart(element, () => ({
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"), // dates without a time
    scales: { x: { time: true }, cost: { range: (_, __, max) => [0, max || 1] }, count: { range: (_, __, max) => [0, Math.max(max || 0, 1)] } },
    axes: [
      axis({ values: "{MMM} {D}" }),
      axis({ scale: "cost", size: 64, values: (_, ticks) => ticks.map(money) }),
      axis({ scale: "count", side: 1, size: 36, grid: { show: false }, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] }),
    ],
    series: [
      { label: "Day", value: "{YYYY}-{MM}-{DD}" },
      { label: "Cost", scale: "cost", stroke: colour("--accent"), fill: colour("--accent"), paths: uPlot.paths.bars({ size: [0.7, 40] }), points: { show: false }, value: (_, amount) => amount === null ? "" : money(amount) },
      { label: "Sessions", scale: "count", stroke: colour("--ending"), width: 2, points: { show: true, size: 5 } },
    ],
  }));
}

export function startsChart(element, duration) {
  return new Chart(element, () => ({
    scales: {
      x: { time: true, range: () => [Date.now() / 1000 - DAYS * 86_400, Date.now() / 1000] },
      y: { range: (_, __, max) => [0, (max || 60) * 1.1] },
    },
    axes: [
      axis({ values: "{MMM} {D}" }),
      axis({ size: 72, incrs: [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600], values: (_, ticks) => ticks.map(duration) }),
    ],
    series: [
      { label: "Start" },
      { label: "Until ready", stroke: colour("--coming"), paths: () => null, points: { show: true, size: 7, fill: colour("--coming") }, value: (_, seconds) => seconds === null ? "" : duration(seconds) },
    ],
  }));
}
