// The editor of lines, zones, holes, ground points, and masks of one camera: its buttons, properties, and requests.
import { el, join, link, request, setText } from "./dom.js";
import { Shapes } from "./editor_shapes.js";
import { View } from "./editor_view.js";

const CHECK_MS = 300;
const UNSAVED = {
  shipped: "This configuration belongs to the program, so changes last until the program ends.",
  "camera-not-in-file": "This camera is not in the configuration file, so changes last until the program ends.",
  "not-writable": "The configuration file cannot be written, so changes last until the program ends.",
  unreadable: "The configuration file cannot be read.",
};
const CHANGED = { "changed-meanwhile": "Somebody has changed these lines and zones.", "file-changed": "Somebody has changed the file." };

const drafts = new Map(); // of cameras whose editor was closed before the draft was applied

// Show the editor of a camera. Return a function that closes it.
export function open(main, id) {
  const place = el("div", { class: "editor" });
  main.append(el("header", { class: "title" }, el("a", { href: link("camera", id) }, id), el("h1", {}, "Lines and zones")), place);
  const editor = new Editor(place, id);
  editor.load();
  return () => editor.close();
}

class Editor {
  constructor(element, cameraId) {
    this.camera = encodeURIComponent(cameraId);
    this.stop = new AbortController();
    this.checks = 0;
    this.buttons = {};
    this.shapes = new Shapes(() => this.changed());
    this.status = el("p", { class: "hint", role: "status" });
    this.view = new View(this.shapes, (text) => setText(this.status, text), () => this.selected());
    this.notice = el("p", { class: "notice", role: "status" });
    this.list = el("div", { class: "editor-list editor-tools", role: "group", "aria-label": "Shapes" });
    this.properties = el("div", { class: "editor-tools editor-properties" });
    this.faults = el("ul", { class: "editor-faults", role: "alert" });
    this.difference = el("div", { role: "status" });
    this.yaml = el("pre", { tabIndex: 0, "aria-label": "YAML of the draft" });
    const requests = el("p", {}, this.button("apply", "Apply", () => this.apply()), " ", this.button("estimate", "Count the last hour", () => this.estimate()));
    const yaml = el("details", {}, el("summary", {}, "YAML"), this.button("copy", "Copy", () => this.copy()), this.yaml);
    const side = el("div", { class: "details" }, this.list, this.properties, this.faults, requests, this.difference, yaml);
    element.append(this.notice, this.tools(), el("div", { class: "camera" }, el("div", {}, this.view.element, this.status), side));
    addEventListener("beforeunload", (event) => this.shapes.isChanged && event.preventDefault(), { signal: this.stop.signal });
    this.say("");
    this.selected();
  }

  button(name, text, onclick, label) {
    return (this.buttons[name] = el("button", { type: "button", onclick, "data-tool": name, "aria-label": label }, text));
  }

  tools() {
    const { shapes, view } = this;
    return el("div", { class: "editor-tools", role: "toolbar", "aria-label": "Tools" },
      ...["line", "zone", "hole", "ground", "mask"].map((kind) => this.button(kind, `Add ${kind}`, () => this.draw(kind))),
      this.button("done", "Done", () => view.finish()),
      this.button("swap", "Swap direction", () => shapes.swap(view.path)),
      this.button("delete", "Delete", () => view.remove()),
      this.button("undo", "Undo", () => shapes.undo()),
      this.button("redo", "Redo", () => shapes.redo()),
      this.button("out", "−", () => view.zoom(1 / 1.5), "Zoom out"),
      this.button("in", "+", () => view.zoom(1.5), "Zoom in"),
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

  // Return the answer of the server. After a failure, it contains `code`, `error`, and if known `hint` and `faults`.
  call(name, body) {
    const post = body && { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } };
    return request(`/api/editor/${this.camera}${name}`, { signal: this.stop.signal, ...post });
  }

  async load() {
    this.loadPicture();
    const answer = await this.call("");
    if (answer.code) return this.refused(answer);
    this.state = answer;
    this.shapes.size = answer.size ?? this.shapes.size;
    this.shapes.load(answer);
    const kept = drafts.get(this.camera);
    drafts.delete(this.camera);
    if (kept) this.shapes.replace(kept);
    this.say(join([
      kept && "Your draft was kept.",
      answer.can_change ? UNSAVED[answer.unsaved] : "This page cannot change the program. Copy the YAML instead.",
      answer.differs_from_file && "The editor shows the running program, which differs from its file.",
    ]));
    this.changed();
  }

  async loadPicture() {
    const response = await fetch(`/api/still/${this.camera}`, { cache: "no-store", signal: this.stop.signal }).catch(() => null);
    const blob = response?.ok && (await response.blob().catch(() => null));
    if (this.stop.signal.aborted) return;
    if (!blob) return setText(this.status, "There is no picture of this camera at present.");
    URL.revokeObjectURL(this.picture);
    this.picture = URL.createObjectURL(blob);
    this.view.image.setAttribute("href", this.picture);
    this.view.render();
  }

  // Show a changed draft, and check it soon.
  changed() {
    if (!this.view.shape) Object.assign(this.view, { path: null, point: -1 });
    this.view.render();
    const item = ({ path, kind, label }) => el("button", { type: "button", "data-path": path, onclick: () => this.view.select(path) }, `${kind} ${label}`);
    this.list.replaceChildren(...this.shapes.all().map(item));
    this.selected();
    clearTimeout(this.timer);
    if (this.state) this.timer = setTimeout(() => this.check(), CHECK_MS);
  }

  async check() {
    const number = (this.checks += 1);
    const { yaml, faults, error } = await this.call("/check", this.shapes.content);
    if (number !== this.checks) return;
    if (!error) setText(this.yaml, yaml);
    this.showFaults(faults, error);
    const isFaulty = error || faults.length > 0;
    this.buttons.apply.disabled = isFaulty || !this.state.can_change || !this.shapes.isChanged;
    this.buttons.estimate.disabled = isFaulty || !this.state.has_archive;
  }

  async apply() {
    this.buttons.apply.disabled = true;
    const { version, revision } = this.state;
    const sent = this.shapes.now;
    const answer = await this.call("/apply", { ...JSON.parse(sent), version, revision });
    if (answer.code) return this.refused(answer);
    if (this.shapes.now !== sent) drafts.set(this.camera, this.shapes.now); // somebody has drawn more since then
    await this.load();
    this.say(answer.unsaved ? `Applied, but not saved. ${UNSAVED[answer.unsaved]} ${answer.message}` : "Applied and saved.");
  }

  refused({ code, error, hint, faults }) {
    const isAway = code === "no-answer";
    this.say(CHANGED[code] ?? join([error, hint, isAway && "Your draft stays on this page."]));
    if (CHANGED[code]) this.notice.append(" Copy your YAML if you need it. ", this.button("load", "Show the present state", () => this.load()));
    this.showFaults(faults);
    this.buttons.apply.disabled = !isAway || !this.state;
  }

  async estimate() {
    this.buttons.estimate.disabled = true;
    setText(this.difference, "Computing …");
    const answer = await this.call("/estimate", this.shapes.content);
    this.buttons.estimate.disabled = false;
    this.difference.replaceChildren(...(answer.code ? [join([answer.error, answer.hint])] : this.table(answer)));
  }

  table({ rows, lost_frames: lost }) {
    const row = (tag, ...values) => el("tr", {}, ...values.map((value) => el(tag, {}, String(value))));
    const body = rows.map((each) => row("td", each.name, `${each.kind.replaceAll("_", " ")} ${each.direction}`, each.published, each.now));
    const table = el("table", {}, el("caption", {}, "Events of the last hour"), row("th", "name", "event", "counted", "with the draft"), ...body);
    return [table, lost ? el("p", { class: "hint" }, `The archive lacks ${lost} frames of this hour.`) : ""];
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
    const items = faults.map(({ line, key, message }) => join([line && `line ${line}`, key, message], ": "));
    if (text && !items.length) items.push(text);
    this.faults.replaceChildren(...items.map((item) => el("li", {}, item)));
  }

  // Show the properties of the selected shape, and what can be done with it.
  selected() {
    const { view, shapes, buttons, properties } = this;
    const { kind, label, path = "" } = view.shape ?? {};
    for (const each of this.list.children) each.ariaPressed = String(each.dataset.path === path);
    buttons.delete.disabled = !path;
    buttons.hole.disabled = kind !== "zone";
    buttons.undo.disabled = !shapes.past.length;
    buttons.redo.disabled = !shapes.future.length;
    buttons.swap.hidden = kind !== "line";
    buttons.done.hidden = !view.drawing;
    if (!this.state) buttons.apply.disabled = buttons.estimate.disabled = true;
    if (properties.contains(document.activeElement) && properties.dataset.path === path) return; // somebody types
    properties.dataset.path = path;
    properties.replaceChildren();
    const add = (title, attributes) => properties.append(el("label", {}, `${title} `, el("input", attributes)));
    if (kind === "line" || kind === "zone") add("Name", { value: label, maxlength: "64", oninput: ({ target }) => shapes.rename(path, target.value) });
    if (kind !== "ground") return;
    properties.append(el("p", { class: "hint" }, "Positions of the points on the ground, in meters"));
    shapes.content.ground.metres.forEach((position, index) => position.forEach((value, axis) =>
      add(`${index + 1} ${"xy"[axis]}`, { type: "number", step: "any", value: String(value), onchange: ({ target }) => shapes.measure(index, axis, target.valueAsNumber) })));
  }

  close() {
    clearTimeout(this.timer);
    this.stop.abort();
    if (this.shapes.isChanged) drafts.set(this.camera, this.shapes.now);
    URL.revokeObjectURL(this.picture);
    this.view.close();
  }
}
