// The counts of one camera over hours and days, as plots.
import { choice, el, filterForm, join, request } from "./dom.js";

const RANGES = [[6, "6 hours"], [24, "24 hours"], [168, "7 days"], [720, "30 days"]];
const REFRESH_MS = 60_000;
const RETRY_MS = 5_000; // while there are no counts
let plotting = null;

// Load uPlot, which is a script and not a module. Return null if that fails.
function loadPlot() {
  plotting ??= new Promise((resolve) => {
    const src = new URL("./vendor/uPlot.iife.min.js", import.meta.url).href;
    document.head.append(el("script", { src, onload: () => resolve(window.uPlot), onerror: () => resolve(null) }));
  });
  return plotting;
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

// Return the options of uPlot for columns: a label, a color, values, and whether they are drawn as a line.
function options(uPlot, title, width, columns) {
  const grid = { stroke: color("--border"), width: 1 };
  const axis = { stroke: color("--muted"), grid, ticks: grid };
  const series = columns.map(([label, name, , isLine], index) => ({
    label,
    stroke: color(name),
    fill: isLine ? undefined : `${color(name)}66`,
    width: 2,
    points: { show: false },
    paths: isLine ? uPlot.paths.stepped({ align: 1 }) : uPlot.paths.bars({ size: [0.4, 24], align: index ? 1 : -1 }),
  }));
  return {
    title,
    width,
    height: 220,
    cursor: { drag: { x: false, y: false } },
    scales: { y: { range: (_plot, _low, high) => [0, Math.max(1, high * 1.1)] } },
    axes: [axis, { ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000], size: 52 }],
    series: [{}, ...series],
  };
}

// Return the plots of one line or zone, as pairs of a title and columns.
function plots({ kind, name, first, second, occupancy }) {
  const pair = (one, other) => [[one, "--series-1", first], [other, "--series-2", second]];
  if (kind === "line") return [[`Line ${name}: crossings`, pair("in", "out")]];
  return [
    [`Zone ${name}: objects`, pair("entered", "left")],
    [`Zone ${name}: most objects at the same time`, [["objects", "--series-3", occupancy, true]]],
  ];
}

function table(times, columns) {
  const row = (scope, first, cells, tag) => el("tr", {}, el("th", { scope }, first), ...cells.map((cell) => el(tag, {}, String(cell))));
  const counted = times.map((at, index) => [at, columns.map(([, , values]) => values[index])]).filter(([, values]) => values.some((value) => value > 0));
  const rows = counted.map(([at, values]) => row("row", new Date(at * 1000).toLocaleString(), values, "td"));
  const body = el("tbody", {}, ...(rows.length ? rows : [el("tr", {}, el("td", { colspan: 3 }, "nothing was counted"))]));
  const head = el("thead", {}, row("col", "time", columns.map(([label]) => label), "th"));
  return el("details", {}, el("summary", {}, "Numbers"), el("div", { class: "scroll" }, el("table", {}, head, body)));
}

export function open(main, _parameter, store) {
  const camera = choice("camera", []);
  const range = choice("range", RANGES);
  range.value = "24";
  const status = el("p", { class: "hint", role: "status" });
  const place = el("section", { class: "plots", "aria-label": "Plots" });
  main.append(el("h1", {}, "History"), filterForm({ Camera: camera, Time: range }, () => load()), status, place);

  let shown = [];
  let generation = 0;
  let loadedAt = 0;
  const clear = () => {
    for (const plot of shown) plot.destroy();
    shown = [];
    place.replaceChildren();
  };
  const widthOf = (figure) => figure.clientWidth - 24;

  async function load() {
    const number = (generation += 1);
    loadedAt = Date.now();
    const query = new URLSearchParams({ camera: camera.value, hours: range.value, offset_min: -new Date().getTimezoneOffset() });
    const [uPlot, history] = await Promise.all([loadPlot(), request(`/api/history?${query}`)]);
    if (number !== generation) return;
    const problem = history.error ?? (uPlot ? "" : "The plots cannot be loaded.");
    if (problem) return (status.textContent = problem);
    clear();
    const since = new Date(history.since_s * 1000).toLocaleString();
    const memory = `No archive is configured, so these are the counts that this page's process has received since ${since}.`;
    status.textContent = join([history.source === "memory" && memory, !history.series.length && "This camera has counted nothing in this time."]);
    for (const [title, columns] of history.series.flatMap(plots)) {
      const figure = place.appendChild(el("figure", { class: "plot" }));
      shown.push(new uPlot(options(uPlot, title, widthOf(figure), columns), [history.times, ...columns.map(([, , values]) => values)], figure));
      figure.append(table(history.times, columns));
    }
  }

  const resize = new ResizeObserver(() => {
    for (const plot of shown) plot.setSize({ width: widthOf(plot.root.parentElement), height: 220 });
  });
  resize.observe(place);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", load);

  const stop = store.listen((state) => {
    if (!state?.cameras.length) return;
    if (camera.options.length) {
      const isRead = place.querySelector("details[open]") || place.contains(document.activeElement);
      if (!isRead && Date.now() - loadedAt > (shown.length ? REFRESH_MS : RETRY_MS)) load();
      return;
    }
    const ids = state.cameras.map((each) => each.camera);
    const counted = ids.filter((id) => state.counts[id]);
    camera.append(...(counted.length ? counted : ids).map((id) => el("option", { value: id }, id)));
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
