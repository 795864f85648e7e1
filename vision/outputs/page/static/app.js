// The frame of the page: the views, and the state of the program, which is requested once per second.
import { Component, html, render, request } from "./ui.js";

const VIEWS = ["camera", "edit", "events", "history"]; // modules that are loaded when they are needed
const INTERVAL_MS = 1000;

class App extends Component {
  componentDidMount() {
    addEventListener("hashchange", ({ oldURL }) => this.open(oldURL));
    document.addEventListener("visibilitychange", () => this.refresh());
    document.addEventListener("keydown", ({ key, defaultPrevented }) => {
      if (key === "Escape" && !defaultPrevented && this.state.view === "camera") location.hash = "#/";
    });
    this.open();
    this.refresh();
  }

  // Open the view of the address, which is `#/VIEW` or `#/VIEW/CAMERA`. `previous` is the address before.
  async open(previous) {
    const { hash } = location;
    const [, name, parameter = ""] = hash.split(/[/?]/);
    const view = VIEWS.includes(name) ? name : "overview";
    this.id = new URLSearchParams(`id=${parameter}`).get("id"); // accepts each `%` that a person types
    const module = await import(`./${view}.js`).catch(() => null);
    if (!module) return setTimeout(() => this.open(previous), INTERVAL_MS); // the program is away
    if (hash !== location.hash) return;
    if (previous) this.focus();
    scrollTo(0, 0);
    this.setState({ View: module.View, view, id: this.id, previous }, () => this.refresh());
  }

  focus = () => document.getElementById("main").focus();

  // Request the state, and again after the interval. A hidden page requests nothing.
  async refresh() {
    clearTimeout(this.timer);
    if (document.hidden || this.isBusy) return;
    this.isBusy = true;
    const answer = await request(`/api/state?${new URLSearchParams({ camera: this.id })}`);
    this.isBusy = false;
    const { program } = this.state;
    if (answer.error) {
      // Lists of events are loaded again when the number of events changes, also to the same one after a problem.
      this.setState({ problem: `${answer.error} Trying again.`, program: program && { ...program, events: -1 } });
    } else {
      if (program && program.assets !== answer.assets) location.reload();
      this.setState({ program: answer, problem: "" });
    }
    this.timer = setTimeout(() => this.refresh(), INTERVAL_MS);
  }

  render(_props, { View, view, id, previous, program, problem }) {
    const current = view === "events" || view === "history" ? view : "";
    const tab = (name, text) => html`<a href="#/${name}" aria-current=${name === current ? "page" : null}>${text}</a>`;
    return html`
      <button class="skip" onClick=${this.focus}>Skip to the content</button>
      <header class="bar">
        <a href="#/"><strong>vision</strong></a>
        <nav aria-label="Views">${tab("", "Cameras")} ${tab("events", "Events")} ${tab("history", "History")}</nav>
        <p id="connection" class=${problem || program?.silent ? "bad" : ""} role="status">${problem || program?.notice}</p>
      </header>
      <main id="main" tabindex="-1">
        ${View && program && html`<${View} key=${`${view} ${id}`} id=${id} program=${program} previous=${previous} />`}
      </main>`;
  }
}

render(html`<${App} />`, document.body);
