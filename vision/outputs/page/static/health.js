// The health of the program and of its machine, in a panel that loads its content when it is open.
import { Component, html, request, Rows } from "./ui.js";

const INTERVAL_MS = 5000;

export class Health extends Component {
  // Load the content if it is due. The view is updated once per second.
  async componentDidUpdate() {
    if (!this.state.open || Date.now() - this.loadedAt < INTERVAL_MS) return;
    this.loadedAt = Date.now();
    this.setState(await request("/api/health"));
  }

  render({ summary }, { open, rows }) {
    return summary && html`
      <details class="health" onToggle=${({ target }) => this.setState({ open: target.open })}>
        <summary><strong>Program</strong> <span class="hint">${summary}</span></summary>
        ${open && rows && html`<${Rows} class="details wide" rows=${rows} />`}
      </details>`;
  }
}
