// The frame of the page: the views, and the state of the program, which is requested once per second.
import { Component, html, render, request } from "./ui.js";

const VIEWS = ["camera", "edit", "events", "history"]; // modules that are loaded when they are needed
const INTERVAL_MS = 1000;
const RESTARTED_MS = 10000; // how long a restart is announced

class App extends Component {
  componentDidMount() {
    addEventListener("hashchange", ({ oldURL }) => this.open(oldURL));
    document.addEventListener("visibilitychange", () => this.refresh());
    document.addEventListener("keydown", ({ key, defaultPrevented }) => {
      if (key === "Escape" && !defaultPrevented && this.state.view === "camera") location.hash = "#/";
    });
    this.open();
  }

  // Open the view of the address, which is `#/VIEW` or `#/VIEW/CAMERA`. `previous` is the address before.
  async open(previous) {
    const { hash } = location;
    const [, name, parameter = ""] = hash.split(/[/?]/);
    const view = VIEWS.includes(name) ? name : "overview";
    const { View } = await import(`./${view}.js`);
    const id = new URLSearchParams(`id=${parameter}`).get("id"); // accepts each `%` that a person types
    if (hash !== location.hash) return;
    if (previous) this.focus();
    scrollTo(0, 0);
    this.setState({ View, view, id, previous }, () => this.refresh());
  }

  focus = () => document.getElementById("main").focus();

  // Request the state, and again after the interval. A hidden page requests nothing.
  async refresh() {
    clearTimeout(this.timer);
    if (document.hidden || this.isBusy) return;
    this.isBusy = true;
    const answer = await request(`/api/state?${new URLSearchParams({ camera: this.state.id })}`);
    this.isBusy = false;
    const { program } = this.state;
    if (answer.error) this.setState({ problem: answer.error });
    else {
      if (program && program.assets !== answer.assets) location.reload();
      if (program?.instance && program.instance !== answer.instance) this.restartedAt = Date.now();
      this.setState({ program: answer, problem: "" });
    }
    this.timer = setTimeout(() => this.refresh(), INTERVAL_MS);
  }

  render(_props, { View, view, id, previous, program, problem }) {
    const isRestarted = Date.now() < this.restartedAt + RESTARTED_MS;
    const notice = problem ? `${problem} Trying again.` : program?.notice || (isRestarted && "The program was restarted.");
    const current = view === "events" || view === "history" ? view : "";
    const tab = (name, text) => html`<a href="#/${name}" aria-current=${name === current ? "page" : null}>${text}</a>`;
    return html`
      <button class="skip" onClick=${this.focus}>Skip to the content</button>
      <header class="bar">
        <a href="#/"><strong>vision</strong></a>
        <nav aria-label="Views">${tab("", "Cameras")} ${tab("events", "Events")} ${tab("history", "History")}</nav>
        <p id="connection" class=${problem || program?.silent ? "bad" : ""} role="status">${notice}</p>
      </header>
      <main id="main" tabindex="-1">
        ${View && program && html`<${View} key=${`${view} ${id}`} id=${id} program=${program} previous=${previous} />`}
      </main>`;
  }
}

render(html`<${App} />`, document.body);
