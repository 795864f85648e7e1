// The drawing of the editor: shows shapes on the picture, and changes them with a mouse, fingers, or the keyboard.
import { setText } from "./dom.js";
import { crossesItself } from "./editor_shapes.js";

const CORNERS = { line: 2, ground: 4 }; // the other kinds have any number of points
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const HELP =
  "Tab selects a shape or a point. Arrow keys move it, with Shift ten times as far. Enter adds a point, Delete removes " +
  "it. While you draw, arrow keys move the cross, Enter sets a point, and Enter again ends the shape. Escape cancels.";

// Return an SVG element, without the attributes that are undefined.
function svg(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const within = (value, most = 1) => Math.min(most, Math.max(0, value));
const middle = (a, b) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
const outlined = (d, attributes) => [svg("path", { d, class: "under" }), svg("path", { d, ...attributes })];

export class View {
  constructor(shapes, say, onSelect) {
    Object.assign(this, { shapes, say, onSelect, path: null, point: -1, drawing: null, faulty: new Set() });
    this.pointers = new Map();
    this.image = svg("image", { preserveAspectRatio: "none" });
    this.zoomed = { scale: 1, x: 0, y: 0 }; // the visible part of the frame
    this.element = svg("svg", { class: "editor-view", tabindex: 0, role: "application", "aria-label": `Picture with lines and zones. ${HELP}` });
    for (const name of ["pointerdown", "pointermove", "pointerup", "pointercancel", "dblclick", "keydown", "focusin", "wheel"])
      this.element.addEventListener(name, (event) => this[name](event), { passive: false });
    this.resizing = new ResizeObserver(() => this.render());
    this.resizing.observe(this.element);
  }

  close() {
    this.resizing.disconnect();
  }

  get shape() {
    return this.shapes.find(this.path);
  }

  // --- places are parts of the frame's width and height

  place({ clientX, clientY }) {
    const { left, top, width, height } = this.element.getBoundingClientRect();
    const { scale, x, y } = this.zoomed;
    return [within((clientX - left) / width / scale + x), within((clientY - top) / height / scale + y)];
  }

  // Return the distance of two places on the screen, in pixels.
  distance(a, b) {
    const [dx, dy] = this.pixel;
    return Math.hypot((a[0] - b[0]) / dx, (a[1] - b[1]) / dy);
  }

  // The size of a screen pixel, as parts of the frame's width and height.
  get pixel() {
    const { clientWidth, clientHeight } = this.element;
    return [clientWidth, clientHeight].map((side) => 1 / (side || 1) / this.zoomed.scale);
  }

  // The middle of the visible part.
  get center() {
    const { scale, x, y } = this.zoomed;
    return [x + 0.5 / scale, y + 0.5 / scale];
  }

  // Zoom by a factor around a place.
  zoom(factor, [x, y] = this.center) {
    const { scale } = this.zoomed;
    const next = Math.min(16, Math.max(1, scale * factor));
    this.pan(next, x - ((x - this.zoomed.x) * scale) / next, y - ((y - this.zoomed.y) * scale) / next);
    this.render();
  }

  pan(scale, x, y) {
    this.zoomed = { scale, x: within(x, 1 - 1 / scale), y: within(y, 1 - 1 / scale) };
  }

  // --- selection and drawing

  select(path, point = -1) {
    Object.assign(this, { path, point, drawing: null });
    this.say(this.shape ? this.words(this.shape, point) : "");
    this.onSelect();
    this.render(true);
  }

  words(shape, point) {
    const { kind, label, points } = shape;
    if (point < 0) return `${kind} ${label}`;
    const place = this.shapes.fractions(shape)[point].map((part) => `${(100 * part).toFixed(1)} %`);
    return `${kind} ${label}, point ${point + 1} of ${points.length}: ${place.join(", ")}`;
  }

  remove() {
    if (!this.path) return;
    const isLeft = this.shapes.remove(this.path, this.point);
    this.select(isLeft ? this.path : null, isLeft ? Math.max(0, this.point - 1) : -1);
  }

  draw(kind) {
    const zone = this.path;
    this.select(null);
    this.drawing = { kind, zone, points: [], cursor: this.center };
    this.say(`Draw the ${kind}: click its points, or use the arrow keys and Enter.`);
    this.onSelect();
    this.render(true);
  }

  // Add a point to the shape that is drawn. At its first or its last point, the shape is complete.
  add(place, reach) {
    const { kind, points } = this.drawing;
    this.drawing.cursor = place;
    const isEnd = [points[0], points.at(-1)].some((each) => each && this.distance(each, place) < reach);
    if (!isEnd) points.push(place);
    if (CORNERS[kind] ? points.length === CORNERS[kind] : isEnd) this.finish();
    this.render();
  }

  finish() {
    if (!this.drawing) return;
    const { kind, points, zone } = this.drawing;
    const least = CORNERS[kind] ?? 3;
    if (points.length < least) this.say(`The ${kind} needs ${least} points.`);
    else this.select(this.shapes.add(kind, points, zone));
  }

  // --- mouse and fingers; `held` is what moves with a pointer

  pointerdown(event) {
    if (event.button > 0) return;
    event.preventDefault();
    this.element.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    const place = this.place(event);
    const reach = event.pointerType === "touch" ? 22 : 9;
    if (this.pointers.size > 1) this.held = { spread: this.spread() };
    else if (this.drawing) {
      this.held = { drawn: place, reach };
      this.add(place, reach);
    } else this.grab(event.target.closest("[data-path]")?.dataset, place);
  }

  grab(found, place) {
    this.held = { place };
    if (!found) return this.select(null);
    const { path, point = -1, insert } = found;
    if (insert) this.shapes.insert(path, Number(insert), place);
    this.select(path, Number(insert ?? point));
    this.held.from = this.shapes.fractions(this.shape);
  }

  pointermove(event) {
    const place = this.place(event);
    const { held, pointers } = this;
    if (this.drawing) this.drawing.cursor = place;
    if (pointers.has(event.pointerId)) {
      pointers.set(event.pointerId, event);
      this.drag(held ?? {}, place);
    }
    if (held || this.drawing) this.render();
  }

  drag(held, place) {
    const [dx, dy] = held.place ? [place[0] - held.place[0], place[1] - held.place[1]] : [];
    if (held.spread && this.pointers.size > 1) {
      const spread = this.spread();
      this.zoom(spread / held.spread, middle(...[...this.pointers.values()].map((each) => this.place(each))));
      held.spread = spread;
    } else if (held.from && this.point >= 0) this.shapes.move(this.path, this.point, place);
    else if (held.from) this.shapes.shift(this.path, held.from, dx, dy);
    else if (held.place) this.pan(this.zoomed.scale, this.zoomed.x - dx, this.zoomed.y - dy);
  }

  pointerup(event) {
    const { held } = this;
    this.pointercancel(event);
    // The second point of a line that was drawn by dragging.
    if (this.drawing && held?.drawn && this.distance(this.place(event), held.drawn) > held.reach) this.add(this.place(event), held.reach);
    if (held?.from) this.shapes.commit();
  }

  pointercancel(event) {
    this.pointers.delete(event.pointerId);
    this.held = null;
  }

  dblclick() {
    this.finish();
  }

  spread() {
    const [a, b] = [...this.pointers.values()];
    return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
  }

  wheel(event) {
    event.preventDefault();
    this.zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, this.place(event));
  }

  // --- keyboard

  focusin({ target }) {
    const { path, point = -1 } = target.dataset;
    if (this.isRendering || this.drawing || this.held || !path) return;
    if (path !== this.path || Number(point) !== this.point) this.select(path, Number(point));
  }

  keydown(event) {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.ctrlKey || event.metaKey) {
      if (key === "y" || (key === "z" && event.shiftKey)) this.shapes.redo();
      else if (key === "z") this.shapes.undo();
      else return;
    } else if (ARROWS[key]) this.nudge(ARROWS[key].map((step) => step * (event.shiftKey ? 10 : 1)));
    else if (key === "Enter") this.enter();
    else if (key === "Delete" || key === "Backspace") this.remove();
    else if (key === "+" || key === "-") this.zoom(key === "+" ? 1.5 : 1 / 1.5);
    else if (key === "Escape" && (this.drawing || this.path)) this.select(null);
    else return;
    event.preventDefault();
  }

  nudge(steps) {
    const { pixel, drawing, shape, shapes } = this;
    if (drawing) {
      drawing.cursor = drawing.cursor.map((part, axis) => within(part + steps[axis] * pixel[axis]));
      return this.render();
    }
    if (!shape) return;
    const points = shapes.fractions(shape);
    const least = shapes.step(shape); // each press of a key has an effect
    const by = steps.map((step, axis) => step * Math.max(pixel[axis], least[axis]));
    if (this.point < 0) shapes.shift(this.path, points, ...by);
    else shapes.move(this.path, this.point, points[this.point].map((part, axis) => part + by[axis]));
    shapes.commit();
    this.say(this.words(this.shape, this.point));
  }

  enter() {
    if (this.drawing) return this.add(this.drawing.cursor, 1);
    const { shape, point } = this;
    if (!shape || point < 0 || CORNERS[shape.kind]) return;
    const points = this.shapes.fractions(shape);
    this.shapes.insert(this.path, point + 1, middle(points[point], points[(point + 1) % points.length]));
    this.shapes.commit();
    this.select(this.path, point + 1);
  }

  // --- what is shown

  // Show the draft. `focus` moves the focus to the selection.
  render(focus = this.element.contains(document.activeElement)) {
    const [width, height] = this.shapes.size;
    const { scale, x, y } = this.zoomed;
    this.isRendering = true; // a focus that moves now is no selection by a person
    this.element.setAttribute("viewBox", [x * width, y * height, width / scale, height / scale].join(" "));
    this.unit = width * this.pixel[0];
    this.image.setAttribute("width", width);
    this.image.setAttribute("height", height);
    this.element.replaceChildren(this.image, ...this.shapes.all().map((shape) => this.drawn(shape)), ...this.unfinished());
    if (focus) (this.element.querySelector("[data-current]") ?? this.element).focus({ preventScroll: true });
    this.isRendering = false;
  }

  toFrame([x, y]) {
    return [x * this.shapes.size[0], y * this.shapes.size[1]];
  }

  outline(points, closed) {
    return `M${points.map((point) => this.toFrame(point).join(" ")).join("L")}${closed ? "Z" : ""}`;
  }

  drawn(shape) {
    const { kind, path, label, holes = [] } = shape;
    const points = this.shapes.fractions(shape);
    const isSelected = path === this.path;
    const crossed = crossesItself(points, kind !== "line");
    const current = (point) => (isSelected && this.point === point ? "" : undefined);
    const button = (point) => ({ "data-path": path, tabindex: 0, role: "button", "aria-label": this.words(shape, point), "data-current": current(point) });
    const rings = [points, ...holes.map((hole) => this.shapes.fractions({ ...shape, points: hole }))];
    const d = rings.map((ring) => this.outline(ring, kind !== "line")).join("");
    const names = `${kind}${isSelected ? " selected" : ""}${crossed || this.faulty.has(path) ? " bad" : ""}`;
    const group = svg("g", { class: names }, ...outlined(d, { class: "shape", ...button(-1) }));
    if (kind === "line") group.append(...this.arrow(points));
    if (kind === "ground") group.append(...this.meters(points));
    group.append(this.text(label + (crossed ? " crosses itself" : ""), points[0]));
    if (!isSelected) return group;
    if (!CORNERS[kind]) group.append(...points.map((point, i) => this.dot(middle(point, points[(i + 1) % points.length]), 4, { "data-path": path, "data-insert": i + 1 })));
    group.append(...points.map((point, i) => this.dot(point, 7, { ...button(i), "data-point": i })));
    return group;
  }

  // Return a dot. The circle around it, which is not visible, is large enough for a finger.
  dot(point, radius, attributes) {
    const [cx, cy] = this.toFrame(point);
    const r = radius * this.unit;
    return svg("g", { class: "dot", ...attributes }, svg("circle", { cx, cy, r: 2.4 * r, class: "reach" }), svg("circle", { cx, cy, r }));
  }

  text(words, point, [dx, dy] = [9, -9]) {
    const [x, y] = this.toFrame(point);
    const { unit } = this;
    const top = this.zoomed.y * this.shapes.size[1] + 15 * unit;
    const text = svg("text", { x: x + dx * unit, y: Math.max(top, y + dy * unit), "font-size": 14 * unit, "stroke-width": 3 * unit });
    setText(text, words);
    return text;
  }

  // Return an arrow in the direction `in`, which is to the right of somebody who looks from the first point to the second.
  arrow(points) {
    const [[x1, y1], [x2, y2]] = points.map((point) => this.toFrame(point));
    const length = Math.hypot(x2 - x1, y2 - y1) || 1;
    const [nx, ny] = [(y1 - y2) / length, (x2 - x1) / length];
    // Return a place by its distances along the arrow and to its right, in screen pixels.
    const at = (ahead, aside) => `${(x1 + x2) / 2 + (ahead * nx - aside * ny) * this.unit} ${(y1 + y2) / 2 + (ahead * ny + aside * nx) * this.unit}`;
    const label = this.text("in", middle(...points), [40 * nx - 5, 40 * ny + 5]);
    return [...outlined(`M${at(0, 0)}L${at(28, 0)}M${at(18, -7)}L${at(28, 0)}L${at(18, 7)}`, { class: "arrow" }), label];
  }

  meters(points) {
    const { metres } = this.shapes.content.ground;
    return points.flatMap((point, i) => {
      const next = (i + 1) % 4;
      const length = Math.hypot(metres[next][0] - metres[i][0], metres[next][1] - metres[i][1]);
      return [this.text(`${i + 1}`, point), this.text(`${length.toFixed(1)} m`, middle(point, points[next]))];
    });
  }

  // Return the shape that is drawn, with a cross at the cursor.
  unfinished() {
    if (!this.drawing) return [];
    const { points, cursor, kind } = this.drawing;
    const [x, y] = this.toFrame(cursor);
    const size = 12 * this.unit;
    const cross = `M${x - size} ${y}h${2 * size}M${x} ${y - size}v${2 * size}`;
    const parts = outlined(this.outline([...points, cursor], false) + cross, { class: "arrow" });
    return [svg("g", { class: `${kind} drawing` }, ...parts, ...points.map((point) => this.dot(point, 5, {})))];
  }
}
