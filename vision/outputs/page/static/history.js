// The counts of one camera over hours and days, as plots.
import { el, getJson } from "./dom.js";

const RANGES = [[6, "6 hours"], [24, "24 hours"], [168, "7 days"], [720, "30 days"]];
let plotting = null;

// Load uPlot, which is a script and not a module.
function loadPlot() {
  plotting ??= new Promise((resolve, reject) => {
    const src = new URL("./vendor/uPlot.iife.min.js", import.meta.url).href;
    document.head.append(el("script", { src, onload: () => resolve(window.uPlot), onerror: () => reject(new Error("The plots cannot be loaded.")) }));
  });
  return plotting;
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function options(uPlot, title, width, series) {
  const axis = { stroke: color("--muted"), grid: { stroke: color("--border"), width: 1 }, ticks: { stroke: color("--border"), width: 1 } };
  const bars = (align) => uPlot.paths.bars({ size: [0.4, 24], align });
  return {
    title,
    width,
    height: 220,
    legend: { live: true },
    cursor: { drag: { x: false, y: false } },
    scales: { y: { range: (_plot, _low, high) => [0, Math.max(1, high * 1.1)] } },
    axes: [axis, { ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000], size: 52 }],
    series: [
      {},
      ...series.map(({ label, variable, line }, index) => ({
        label,
        stroke: color(variable),
        fill: line ? undefined : `${color(variable)}66`,
        width: 2,
        points: { show: false },
        paths: line ? uPlot.paths.stepped({ align: 1 }) : bars(index ? 1 : -1),
      })),
    ],
  };
}

// Return the plots of one line or zone, as pairs of a title and series.
function plots(series) {
  if (series.kind === "line") {
    return [[`Line ${series.name}: crossings`, [["in", "--series-1", series.first], ["out", "--series-2", series.second]]]];
  }
  return [
    [`Zone ${series.name}: objects`, [["entered", "--series-1", series.first], ["left", "--series-2", series.second]]],
    [`Zone ${series.name}: most objects at the same time`, [["objects", "--series-3", series.occupancy, true]]],
  ];
}

function table(history, columns) {
  const head = el("tr", {}, el("th", { scope: "col" }, "time"), ...columns.map(([label]) => el("th", { scope: "col" }, label)));
  const rows = history.times
    .map((at, index) => [at, columns.map(([, , values]) => values[index])])
    .filter(([, values]) => values.some((value) => value > 0))
    .map(([at, values]) => el("tr", {}, el("th", { scope: "row" }, new Date(at * 1000).toLocaleString()), ...values.map((value) => el("td", {}, String(value)))));
  const body = rows.length ? rows : [el("tr", {}, el("td", { colspan: columns.length + 1 }, "nothing was counted"))];
  return el("details", {}, el("summary", {}, "Numbers"), el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...body))));
}

const REFRESH_MS = 60_000;
const RETRY_MS = 5_000; // while there are no counts

export function open(main, _parameter, store) {
  const camera = el("select", { id: "camera", name: "camera" });
  const range = el("select", { id: "range", name: "range" }, ...RANGES.map(([hours, text]) => el("option", { value: String(hours), selected: hours === 24 }, text)));
  const status = el("p", { class: "hint", role: "status" });
  const place = el("section", { class: "plots", "aria-label": "Plots" });
  const form = el("form", { class: "filter", "aria-label": "Filter" }, el("label", {}, el("span", {}, "Camera"), camera), el("label", {}, el("span", {}, "Time"), range));
  form.addEventListener("submit", (event) => event.preventDefault());
  main.append(el("h1", {}, "History"), form, status, place);

  let shown = [];
  let generation = 0;
  const clear = () => {
    for (const plot of shown) plot.destroy();
    shown = [];
    place.replaceChildren();
  };

  let loadedAt = 0;

  async function load() {
    const number = (generation += 1);
    loadedAt = Date.now();
    const offset = -new Date().getTimezoneOffset();
    try {
      const query = new URLSearchParams({ camera: camera.value, hours: range.value, offset_min: String(offset) });
      const [uPlot, history] = await Promise.all([loadPlot(), getJson(`/api/history?${query}`)]);
      if (number !== generation) return;
      clear();
      const since = new Date(history.since_s * 1000).toLocaleString();
      const memory = `No archive is configured, so these are the counts that this page's process has received since ${since}.`;
      const empty = history.series.length ? "" : "This camera has counted nothing in this time.";
      status.textContent = [history.source === "memory" ? memory : "", empty].filter(Boolean).join(" ");
      for (const series of history.series) {
        for (const [title, columns] of plots(series)) {
          const figure = el("figure", { class: "plot" });
          place.append(figure);
          const described = columns.map(([label, variable, , line]) => ({ label, variable, line }));
          const data = [history.times, ...columns.map(([, , values]) => values)];
          shown.push(new uPlot(options(uPlot, title, figure.clientWidth - 24, described), data, figure));
          figure.append(table(history, columns));
        }
      }
    } catch (error) {
      if (number === generation) status.textContent = error.message;
    }
  }

  form.addEventListener("change", load);
  const resize = new ResizeObserver(() => {
    for (const plot of shown) plot.setSize({ width: plot.root.parentElement.clientWidth - 24, height: 220 });
  });
  resize.observe(place);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", load);

  const stop = store.listen((state) => {
    if (state === null || !state.cameras.length) return;
    if (camera.options.length) {
      const read = place.querySelector("details[open]") || place.contains(document.activeElement);
      if (!read && Date.now() - loadedAt > (shown.length ? REFRESH_MS : RETRY_MS)) load();
      return;
    }
    const counted = state.cameras.filter(({ camera: id }) => state.counts[id]);
    for (const { camera: id } of counted.length ? counted : state.cameras) camera.append(el("option", { value: id }, id));
    load();
  });
  return () => {
    stop();
    resize.disconnect();
    dark.removeEventListener("change", load);
    generation += 1;
    clear();
  };
}
