// The counts of one camera over hours and days, as plots.
import { Component, html, request, Select } from "./ui.js";

const RANGES = [["6", "6 hours"], ["24", "24 hours"], ["168", "7 days"], ["720", "30 days"]];
const REFRESH_MS = 60_000;
const RETRY_MS = 5_000; // while there are no counts
const HEIGHT = 220;

// uPlot is a script and not a module. The promise is undefined if it cannot be loaded.
const loading = new Promise((resolve) => {
  const script = document.createElement("script");
  script.src = new URL("./vendor/uPlot.iife.min.js", import.meta.url).href;
  script.onload = script.onerror = () => resolve(window.uPlot);
  document.head.append(script);
});

class Plot extends Component {
  get data() {
    return [this.props.times, ...Object.values(this.props.columns)];
  }

  componentDidMount() {
    const { uPlot, title, columns } = this.props;
    const { color, borderColor, outlineColor, accentColor } = getComputedStyle(this.place.parentElement);
    const grid = { stroke: borderColor, width: 1 };
    const axis = { stroke: color, grid, ticks: grid };
    const series = Object.keys(columns).map((label, index, { length }) => {
      const stroke = [outlineColor, accentColor][index];
      const paths = uPlot.paths.bars({ size: [0.8 / length, 24], align: length - 1 && 2 * index - 1 });
      return { label, stroke, fill: stroke.replace(")", ", 0.4)"), width: 2, points: { show: false }, paths };
    });
    const size = () => ({ width: this.place.clientWidth, height: HEIGHT });
    const options = {
      title,
      ...size(),
      cursor: { drag: { x: false } },
      scales: { y: { range: (_plot, _low, high) => [0, Math.max(1, high * 1.1)] } },
      axes: [axis, { ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000], size: 52 }],
      series: [{}, ...series],
    };
    this.plot = new uPlot(options, this.data, this.place);
    this.resizing = new ResizeObserver(() => this.plot.setSize(size()));
    this.resizing.observe(this.place);
  }

  componentDidUpdate({ times }) {
    if (times !== this.props.times) this.plot.setData(this.data);
  }

  componentWillUnmount() {
    this.resizing.disconnect();
    this.plot.destroy();
  }

  render({ columns, rows }) {
    const row = ([at, ...values]) => html`
      <tr><th scope="row">${new Date(at * 1000).toLocaleString()}</th>${values.map((value) => html`<td>${value}</td>`)}</tr>`;
    return html`
      <figure class="plot">
        <div ref=${(element) => (this.place = element)}></div>
        <details>
          <summary>Numbers</summary>
          <div class="scroll">
            <table><tr><th>time</th>${Object.keys(columns).map((label) => html`<th>${label}</th>`)}</tr>${rows.map(row)}</table>
            ${!rows.length && "nothing was counted"}
          </div>
        </details>
      </figure>`;
  }
}

export class View extends Component {
  dark = matchMedia("(prefers-color-scheme: dark)"); // in which plots have other colors
  state = { hours: "24", plots: [] };

  componentDidMount() {
    this.load();
  }

  // Load the counts again if that is due. The view is updated once per second.
  componentDidUpdate(_props, { camera, hours }) {
    const isDue = Date.now() - this.loadedAt > (this.state.error || !this.state.plots.length ? RETRY_MS : REFRESH_MS);
    if (isDue || camera !== this.state.camera || hours !== this.state.hours) this.load();
  }

  async load() {
    const loadedAt = (this.loadedAt = Date.now());
    const { hours, camera = this.props.program.counting[0] ?? "" } = this.state;
    const query = new URLSearchParams({ camera, hours, offset_min: -new Date().getTimezoneOffset() });
    const [uPlot, history] = await Promise.all([loading, request(`/api/history?${query}`)]);
    if (loadedAt !== this.loadedAt) return;
    this.setState({ uPlot, error: uPlot ? "" : "The plots cannot be loaded.", ...history });
  }

  render({ program }, { uPlot, error, status, times, plots, hours }) {
    return html`
      <h1>History</h1>
      <form class="filter" aria-label="Filter" onChange=${({ target }) => this.setState({ [target.name]: target.value })}>
        <${Select} label="Camera" name="camera" options=${program.counting.map((id) => [id, id])} />
        <${Select} label="Time" name="hours" options=${RANGES} value=${hours} />
      </form>
      <p class="hint" role="status">${error || status}</p>
      <section class="plots" aria-label="Plots">
        ${uPlot && plots.map((plot) => html`<${Plot} key=${`${plot.title} ${this.dark.matches}`} uPlot=${uPlot} times=${times} ...${plot} />`)}
      </section>`;
  }
}
