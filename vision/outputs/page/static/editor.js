// The editor of lines, zones, holes, ground points, and masks of one camera: its buttons, properties, and requests.
import { el, setText } from "./dom.js";
import { Shapes } from "./editor_shapes.js";
import { View } from "./editor_view.js";

const CHECK_MS = 300;
const KINDS = ["line", "zone", "hole", "ground", "mask"];
const UNSAVED = {
  shipped: "This configuration belongs to the program, so changes last until the program ends.",
  "camera-not-in-file": "This camera is not in the configuration file, so changes last until the program ends.",
  "not-writable": "The configuration file cannot be written, so changes last until the program ends.",
  unreadable: "The configuration file cannot be read.",
};
const CHANGED = { "changed-meanwhile": "Somebody has changed these lines and zones.", "file-changed": "Somebody has changed the file." };

const drafts = new Map(); // of cameras whose editor was closed before the draft was applied

// Show the editor in an element. Return a function that closes it.
export function openEditor(element, cameraId) {
  const editor = new Editor(element, cameraId);
  editor.load();
  return () => editor.close();
}

class Editor {
  constructor(element, cameraId) {
    this.camera = encodeURIComponent(cameraId);
    this.stop = new AbortController();
    this.checks = 0;
    this.shapes = new Shapes(() => this.changed());
    this.status = el("p", { class: "hint", role: "status" });
    this.view = new View(this.shapes, (text) => setText(this.status, text), () => this.selected());
    this.buttons = {};
    this.notice = el("p", { class: "notice", role: "status", hidden: true });
    this.list = el("div", { class: "editor-list", role: "group", "aria-label": "Shapes" });
    this.properties = el("div", { class: "editor-properties" });
    this.faults = el("ul", { class: "editor-faults", role: "alert" });
    this.difference = el("div", { role: "status" });
    this.yaml = el("pre", { tabIndex: 0, "aria-label": "YAML of the draft" });
    const apply = this.button("apply", "Apply", () => this.apply());
    const estimate = this.button("estimate", "Count the last hour", () => this.estimate());
    const copy = this.button("copy", "Copy", () => this.copy());
    const side = [this.list, this.properties, this.faults, el("p", {}, apply, " ", estimate), this.difference];
    side.push(el("details", {}, el("summary", {}, "YAML"), copy, this.yaml));
    const columns = el("div", { class: "camera" }, el("div", {}, this.view.element, this.status), el("div", { class: "details" }, ...side));
    element.append(this.notice, this.tools(), columns);
    this.warn = (event) => this.shapes.isChanged && event.preventDefault();
    addEventListener("beforeunload", this.warn);
    this.selected();
  }

  button(name, text, onclick, attributes = {}) {
    this.buttons[name] = el("button", { type: "button", onclick, "data-tool": name, ...attributes }, text);
    return this.buttons[name];
  }

  tools() {
    const { shapes, view } = this;
    return el("div", { class: "editor-tools", role: "toolbar", "aria-label": "Tools" },
      ...KINDS.map((kind) => this.button(kind, `Add ${kind}`, () => this.draw(kind))),
      this.button("done", "Done", () => view.finish()),
      this.button("swap", "Swap direction", () => shapes.swap(view.path)),
      this.button("delete", "Delete", () => view.remove()),
      this.button("undo", "Undo", () => shapes.undo()),
      this.button("redo", "Redo", () => shapes.redo()),
      this.button("out", "−", () => view.zoom(1 / 1.5), { "aria-label": "Zoom out" }),
      this.button("in", "+", () => view.zoom(1.5), { "aria-label": "Zoom in" }),
      this.button("picture", "New picture", () => this.loadPicture()));
  }

  draw(kind) {
    if (kind === "ground" && this.shapes.content.ground) this.view.select(kind);
    else this.view.draw(kind);
  }

  say(text) {
    this.notice.hidden = !text;
    setText(this.notice, text);
  }

  // --- requests

  // Return the answer of the server. If it is not `ok`, it also contains `code`, `error`, `hint`, and `faults`.
  async call(name, body) {
    const headers = { "content-type": "application/json" };
    const options = body && { method: "POST", body: JSON.stringify(body), headers };
    try {
      const response = await fetch(`/api/editor/${this.camera}${name}`, { cache: "no-store", signal: this.stop.signal, ...options });
      if (response.status === 401) location.replace("/");
      const content = await response.json();
      return { ok: !content.code, ...content };
    } catch {
      return { ok: false, code: "no-answer", error: "The program does not answer. Your draft stays on this page.", faults: [] };
    }
  }

  async load() {
    this.loadPicture();
    const answer = await this.call("");
    if (!answer.ok) return this.refused(answer);
    this.state = answer;
    this.shapes.size = answer.size ?? this.shapes.size;
    this.shapes.load(answer);
    const kept = drafts.get(this.camera);
    drafts.delete(this.camera);
    if (kept) this.shapes.replace(kept);
    const texts = [kept && "Your draft was kept.", answer.can_change ? UNSAVED[answer.unsaved] : "This page cannot change the program. Copy the YAML instead."];
    if (answer.differs_from_file) texts.push("The editor shows the running program, which differs from its file.");
    this.say(texts.filter(Boolean).join(" "));
    this.changed();
  }

  async loadPicture() {
    const options = { cache: "no-store", signal: this.stop.signal };
    const response = await fetch(`/api/still/${this.camera}`, options).catch(() => null);
    const blob = response?.ok ? await response.blob().catch(() => null) : null;
    if (this.stop.signal.aborted) return;
    if (!blob) return setText(this.status, "There is no picture of this camera at present.");
    const reader = new FileReader();
    reader.readAsDataURL(blob);
    await new Promise((resolve) => (reader.onloadend = resolve));
    this.view.image.setAttribute("href", reader.result);
    this.view.render();
  }

  // Show a changed draft, and check it soon.
  changed() {
    if (!this.shapes.find(this.view.path)) Object.assign(this.view, { path: null, point: -1 });
    this.view.render();
    const item = (shape) => el("button", { type: "button", "data-path": shape.path, onclick: () => this.view.select(shape.path) }, `${shape.kind} ${shape.label}`);
    this.list.replaceChildren(...this.shapes.all().map(item));
    this.selected();
    clearTimeout(this.timer);
    if (this.state) this.timer = setTimeout(() => this.check(), CHECK_MS);
  }

  async check() {
    const number = (this.checks += 1);
    const answer = await this.call("/check", this.shapes.content);
    if (number !== this.checks) return;
    if (answer.ok) setText(this.yaml, answer.yaml);
    this.showFaults(answer.faults, answer.error);
    this.buttons.apply.disabled = !answer.ok || answer.faults.length > 0 || !this.state.can_change || !this.shapes.isChanged;
    this.buttons.estimate.disabled = !answer.ok || answer.faults.length > 0 || !this.state.has_archive;
  }

  async apply() {
    this.buttons.apply.disabled = true;
    const { version, revision } = this.state;
    const sent = this.shapes.now;
    const answer = await this.call("/apply", { ...JSON.parse(sent), version, revision });
    if (!answer.ok) return this.refused(answer);
    if (this.shapes.now !== sent) drafts.set(this.camera, this.shapes.now); // somebody has drawn more since then
    await this.load();
    let text = answer.unsaved ? `Applied, but not saved. ${UNSAVED[answer.unsaved]} ${answer.message}` : "Applied and saved.";
    if (answer.needs_restart) text += " The masks take effect when the program is started again.";
    this.say(text);
  }

  refused(answer) {
    this.say(CHANGED[answer.code] ?? [answer.error, answer.hint].filter(Boolean).join(" "));
    if (CHANGED[answer.code]) this.notice.append(" Copy your YAML if you need it. ", this.button("load", "Show the present state", () => this.load()));
    this.showFaults(answer.faults);
    this.buttons.apply.disabled = answer.code !== "no-answer" || !this.state;
  }

  async estimate() {
    this.buttons.estimate.disabled = true;
    this.difference.replaceChildren("Computing …");
    const answer = await this.call("/estimate", this.shapes.content);
    this.buttons.estimate.disabled = false;
    this.difference.replaceChildren(...(answer.ok ? this.table(answer) : [answer.error, " ", answer.hint ?? ""]));
  }

  table({ rows, lost_frames }) {
    const row = (tag, ...values) => el("tr", {}, ...values.map((value) => el(tag, {}, String(value))));
    const body = rows.map((each) => row("td", each.name, `${each.kind.replaceAll("_", " ")} ${each.direction}`, each.published, each.now));
    const lost = lost_frames ? [el("p", { class: "hint" }, `The archive lacks ${lost_frames} frames of this hour.`)] : [];
    return [el("table", {}, el("caption", {}, "Events of the last hour"), row("th", "name", "event", "counted", "with the draft"), ...body), ...lost];
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.yaml.textContent);
      this.say("Copied.");
    } catch {
      getSelection().selectAllChildren(this.yaml); // a page without HTTPS cannot write to the clipboard
      this.say("The YAML is selected. Copy it with Ctrl+C.");
    }
  }

  // --- beside the picture

  showFaults(faults = [], text = "") {
    this.view.faulty = new Set(faults.map((fault) => this.shapes.pathOf(fault.key)));
    this.view.render();
    const items = faults.map((fault) => [fault.line ? `line ${fault.line}` : "", fault.key, fault.message].filter(Boolean).join(": "));
    this.faults.replaceChildren(...(items.length || !text ? items : [text]).map((item) => el("li", {}, item)));
  }

  // Show the properties of the selected shape, and what can be done with it.
  selected() {
    const { view, shapes, buttons } = this;
    const shape = shapes.find(view.path);
    for (const each of this.list.children) each.setAttribute("aria-pressed", String(each.dataset.path === view.path));
    const usable = { delete: shape, hole: shape?.kind === "zone", undo: shapes.past.length, redo: shapes.future.length };
    for (const [name, isUsable] of Object.entries(usable)) buttons[name].disabled = !isUsable;
    buttons.swap.hidden = shape?.kind !== "line";
    buttons.done.hidden = !view.drawing;
    if (!this.state) for (const name of ["apply", "estimate"]) buttons[name].disabled = true;
    if (this.properties.contains(document.activeElement) && this.properties.dataset.path === shape?.path) return; // somebody types
    this.properties.dataset.path = shape?.path ?? "";
    this.properties.replaceChildren();
    if (shape?.kind === "line" || shape?.kind === "zone") {
      const name = el("input", { value: shape.label, maxlength: "64", oninput: () => shapes.rename(shape.path, name.value) });
      this.properties.append(el("label", {}, "Name ", name));
    }
    if (shape?.kind === "ground") {
      const inputs = (position, index) => position.map((value, axis) => el("label", {}, `${index + 1} ${"xy"[axis]} `, el("input", {
        type: "number", step: "any", value: String(value), onchange: (event) => shapes.measure(index, axis, event.target.valueAsNumber),
      })));
      this.properties.append(el("p", { class: "hint" }, "Positions of the points on the ground, in meters"), ...shapes.content.ground.metres.flatMap(inputs));
    }
  }

  close() {
    clearTimeout(this.timer);
    this.stop.abort();
    removeEventListener("beforeunload", this.warn);
    if (this.shapes.isChanged) drafts.set(this.camera, this.shapes.now);
    this.view.close();
  }
}
