// The health of the program and of its machine, in a panel that loads its content when it is open.
import { Component, duration, html, number, request, Rows, rowsOf, textOf } from "./ui.js";

const INTERVAL_MS = 5000;

// Return rows about the program, without the header of its message. The counters of each part of the program are one row.
function programRows({ schema, node, instance, boot, seq, at, at_monotonic_ns, counters, sinks, ...program }) {
  const parts = {};
  for (const [name, value] of Object.entries(counters)) {
    const [part, ...rest] = name.split(".");
    (parts[part] ??= {})[rest.join(" ")] = value;
  }
  const sinkRows = Object.entries(sinks ?? {}).map(([name, sink]) => [`sink ${name}`, textOf("", { connected: false, ...sink })]); // absent if false
  return [...rowsOf(program), ...rowsOf(parts), ...sinkRows];
}

const machineRows = ({ gpus, disks, ...machine }) => [...rowsOf(gpus, "GPU "), ...rowsOf(disks, "disk of "), ...rowsOf(machine)];

export class Health extends Component {
  state = { machine: {} };

  // Load the state of the machine if it is due. The view is updated once per second.
  async componentDidUpdate() {
    if (!this.state.open || Date.now() - this.loadedAt < INTERVAL_MS) return;
    this.loadedAt = Date.now();
    this.setState({ machine: await request("/api/machine") });
  }

  render({ program: { node, cameras } }, { open, machine }) {
    if (!node) return null;
    const working = cameras.filter(({ state }) => ["streaming", "ended"].includes(state)).length;
    return html`
      <details class="health" onToggle=${({ target }) => this.setState({ open: target.open })}>
        <summary>
          <strong>Program</strong> <span class="hint">${node.node} · ${working} of ${cameras.length} cameras work · ${number(node.rates.published)} frames/s · up ${duration(node.uptime_s)}</span>
        </summary>
        ${open && html`<${Rows} class="details wide" rows=${[...programRows(node), ...machineRows(machine)]} />`}
      </details>`;
  }
}
