// The editor of lines, zones, holes, ground points, and masks of one camera.
import { Draft } from "./draft.js";
import { Drawing } from "./drawing.js";
import { Component, html, join, link, request, Rows } from "./ui.js";

const CHECK_MS = 300;
const MISSING = "There is no picture of this camera at present.";
const KINDS = ["line", "zone", "hole", "ground", "mask"];

const drafts = new Map(); // of cameras whose editor was closed before the draft was applied

export class View extends Component {
  state = { faults: [], estimate: {}, zoom: 1, takenAt: Date.now() };
  id = encodeURIComponent(this.props.id);
  closing = new AbortController();

  componentDidMount() {
    addEventListener("beforeunload", (event) => this.draft?.isChanged && event.preventDefault(), this.closing);
    this.load();
  }

  componentWillUnmount() {
    if (this.draft?.isChanged) drafts.set(this.id, this.draft.now);
    this.closing.abort();
    clearTimeout(this.timer);
  }

  // --- requests

  call(name, body) {
    const post = body && { method: "POST", body, headers: { "content-type": "application/json" } };
    return request(`/api/editor/${this.id}${name}`, { signal: this.closing.signal, ...post });
  }

  async load() {
    const editor = await this.call("");
    if (editor.code) return this.refused(editor);
    const kept = drafts.get(this.id);
    drafts.delete(this.id);
    this.setState({ editor, notice: join([kept && "Your draft was kept.", editor.notice]), canReload: false });
    this.draft = new Draft(editor, () => this.changed());
    if (kept) this.draft.content = JSON.parse(kept);
    this.draft.commit();
  }

  // Show a changed draft, and check it soon.
  changed() {
    this.setState({});
    this.timer ??= setTimeout(() => this.check(), CHECK_MS);
  }

  async check() {
    this.timer = null;
    const checked = JSON.stringify(this.draft.content);
    const { yaml = this.state.yaml, faults, error } = await this.call("/check", checked);
    this.setState({ yaml, faults: error ? [{ key: "", text: error }] : faults, checked });
  }

  async apply() {
    const { version, revision } = this.state.editor;
    const sent = this.draft.now;
    this.setState({ checked: null }); // a second click does nothing
    const answer = await this.call("/apply", JSON.stringify({ ...JSON.parse(sent), version, revision }));
    if (answer.code) return this.refused(answer);
    if (this.draft.now !== sent) drafts.set(this.id, this.draft.now); // somebody has drawn more since then
    await this.load();
    this.setState({ notice: answer.unsaved ? `Applied, but not saved. ${answer.message}` : "Applied and saved." });
  }

  refused({ code, error, hint, faults = [] }) {
    const isAway = code === "no-answer"; // the draft can be applied later
    const notice = join([error, hint, isAway && "Your draft stays on this page."]);
    this.setState({ canReload: !isAway, faults, checked: isAway && this.draft?.now, notice });
  }

  async estimate() {
    this.setState({ estimate: { note: "Computing …", isBusy: true } });
    this.setState({ estimate: await this.call("/estimate", this.draft.now) });
  }

  // Zoom around the middle of the visible part.
  zoom = (factor) => {
    const { frame } = this;
    const zoom = Math.min(16, Math.max(1, this.state.zoom * factor));
    const moved = (start, length) => ((start + length / 2) * zoom) / this.state.zoom - length / 2;
    const [x, y] = [moved(frame.scrollLeft, frame.clientWidth), moved(frame.scrollTop, frame.clientHeight)];
    this.setState({ zoom }, () => frame.scrollTo(x, y));
  };

  // --- what is shown

  button(text, onClick, disabled = false) {
    return html`<button onClick=${onClick} disabled=${disabled}>${text}</button>`;
  }

  tools({ draft }) {
    const { kind } = draft.selected ?? {};
    return html`
      <div class="tools" role="toolbar" aria-label="Tools">
        ${KINDS.map((each) => this.button(`Add ${each}`, () => draft.draw(each), each === "hole" && kind !== "zone"))}
        ${draft.drawing && this.button("Done", () => draft.finish())}
        ${kind === "line" && this.button("Swap direction", () => draft.edit(() => draft.selected.points.reverse()))}
        ${this.button("Delete", () => draft.remove(), !kind)}
        ${this.button("Undo", () => draft.go(-1), !draft.step)}
        ${this.button("Redo", () => draft.go(1), !draft.steps[draft.step + 1])}
        ${this.button("Zoom out", () => this.zoom(1 / 1.5))}
        ${this.button("Zoom in", () => this.zoom(1.5))}
        ${this.button("New picture", () => this.setState({ takenAt: Date.now() }))}
      </div>`;
  }

  properties({ draft }) {
    const { kind, entry, path } = draft.selected ?? {};
    const coordinates = (place, index) => place.map((value, axis) => html`
      <label>${index + 1} ${"xy"[axis]} <input type="number" step="any" value=${value}
        onChange=${({ target }) => draft.edit(() => (place[axis] = Number(target.value)))} /></label>`);
    return html`
      <div class="tools editor-properties" key=${path}>
        ${entry?.name !== undefined && html`
          <label>Name <input value=${entry.name} maxlength="64" onInput=${({ target }) => draft.edit(() => (entry.name = target.value))} /></label>`}
        ${kind === "ground" && html`
          <p class="hint">Positions of the points on the ground, in meters</p>${entry.metres.map(coordinates)}`}
      </div>`;
  }

  side({ draft }, { editor, faults, checked, estimate, yaml }) {
    const isValid = checked === draft.now && !faults.length;
    const item = ({ path, kind, label }) => html`<button aria-pressed=${path === draft.path} onClick=${() => draft.select(path)}>${kind} ${label}</button>`;
    return html`
      <div class="details">
        <div class="editor-list tools" role="group" aria-label="Shapes">${draft.shapes.map(item)}</div>
        ${this.properties(this)}
        <ul class="editor-faults" role="alert">
          ${faults.map(({ text }) => html`<li>${text}</li>`)}
        </ul>
        <p class="tools">
          ${this.button("Apply", () => this.apply(), !isValid || !editor.can_change || !draft.isChanged)}
          ${this.button("Count the last hour", () => this.estimate(), !isValid || !editor.has_archive || estimate.isBusy)}
        </p>
        <div role="status">
          <${Rows} class="data" rows=${estimate.texts ?? []} />
          <p class="hint">${join([estimate.error, estimate.hint, estimate.note])}</p>
        </div>
        <label>YAML to copy <textarea readonly rows="12" value=${yaml} onFocus=${({ target }) => target.select()} /></label>
      </div>`;
  }

  render({ id }, { notice, canReload, faults, takenAt, zoom }) {
    const { draft } = this;
    const faulty = new Set(faults.map((fault) => draft?.pathOf(fault)));
    return html`
      <header class="title"><a href=${link("camera", id)}>${id}</a><h1>Lines and zones</h1></header>
      <p class="notice" role="status" hidden=${!notice}>
        ${notice} ${canReload && this.button("Show the present state", () => this.load())}
      </p>
      ${draft && html`
        ${this.tools(this)}
        <div class="camera">
          <div>
            <div class="editor-frame" ref=${(element) => (this.frame = element)} style=${{ aspectRatio: draft.size.join("/") }}>
              <div style=${{ width: `${100 * zoom}%` }}>
                <${Drawing} draft=${draft} faulty=${faulty} zoom=${this.zoom}
                  picture="/api/still/${this.id}?${takenAt}" onMissing=${() => this.setState({ notice: MISSING })} />
              </div>
            </div>
            <p class="hint" role="status">${draft.status}</p>
          </div>
          ${this.side(this, this.state)}
        </div>`}`;
  }
}
