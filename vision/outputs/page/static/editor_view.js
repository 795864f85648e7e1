// The drawing of the editor: shows shapes on the picture, and changes them with a mouse, fingers, or the keyboard.
import { crossesItself } from "./editor_shapes.js";

const CORNERS = { line: 2, ground: 4 }; // the other kinds have any number of points
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const HELP =
  "Tab selects a shape or a point. Arrow keys move it, with Shift ten times as far. Enter adds a point, Delete removes " +
  "it. While you draw, arrow keys move the cross, Enter sets a point, and Enter again ends the shape. Escape cancels.";

function svg(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const within = (value, most = 1) => Math.min(most, Math.max(0, value));
const middle = (a, b) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];

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
    return [1 / (clientWidth || 1) / this.zoomed.scale, 1 / (clientHeight || 1) / this.zoomed.scale];
  }

  zoom(factor, [x, y] = [this.zoomed.x + 0.5 / this.zoomed.scale, this.zoomed.y + 0.5 / this.zoomed.scale]) {
    const { scale, x: left, y: top } = this.zoomed;
    const next = Math.min(16, Math.max(1, scale * factor));
    this.zoomed = { scale: next, x: within(x - ((x - left) * scale) / next, 1 - 1 / next), y: within(y - ((y - top) * scale) / next, 1 - 1 / next) };
    this.render();
  }

  // --- selection and drawing

  select(path, point = -1) {
    Object.assign(this, { path, point, drawing: null });
    const shape = this.shapes.find(path);
    this.say(shape ? this.words(shape, point) : "");
    this.onSelect();
    this.render(true);
  }

  words(shape, point) {
    if (point < 0) return `${shape.kind} ${shape.label}`;
    const place = this.shapes.fractions(shape)[point].map((part) => `${(100 * part).toFixed(1)} %`);
    return `${shape.kind} ${shape.label}, point ${point + 1} of ${shape.points.length}: ${place.join(", ")}`;
  }

  remove() {
    if (!this.path) return;
    const isLeft = this.shapes.remove(this.path, this.point);
    this.select(isLeft ? this.path : null, isLeft ? Math.max(0, this.point - 1) : -1);
  }

  draw(kind) {
    const half = 0.5 / this.zoomed.scale;
    const zone = this.path;
    this.select(null);
    this.drawing = { kind, zone, points: [], cursor: [this.zoomed.x + half, this.zoomed.y + half] };
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

  // --- mouse and fingers

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
    let point = Number(found.point ?? -1);
    if (found.insert) {
      point = Number(found.insert);
      this.shapes.insert(found.path, point, place);
    }
    this.select(found.path, point);
    this.held.from = this.shapes.fractions(this.shapes.find(found.path));
  }

  pointermove(event) {
    const place = this.place(event);
    const { held } = this;
    if (this.drawing) this.drawing.cursor = place;
    if (this.pointers.has(event.pointerId)) {
      this.pointers.set(event.pointerId, event);
      if (held?.spread && this.pointers.size > 1) {
        const spread = this.spread();
        this.zoom(spread / held.spread, middle(...[...this.pointers.values()].map((each) => this.place(each))));
        held.spread = spread;
      } else if (held?.from && this.point >= 0) this.shapes.move(this.path, this.point, place);
      else if (held?.from) this.shapes.shift(this.path, held.from, place[0] - held.place[0], place[1] - held.place[1]);
      else if (held?.place) {
        const { scale, x, y } = this.zoomed;
        Object.assign(this.zoomed, { x: within(x + held.place[0] - place[0], 1 - 1 / scale), y: within(y + held.place[1] - place[1], 1 - 1 / scale) });
      }
    }
    if (held || this.drawing) this.render();
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
    if (this.isRendering || this.drawing || this.held) return;
    const { path, point } = target.dataset;
    if (path && (path !== this.path || Number(point ?? -1) !== this.point)) this.select(path, Number(point ?? -1));
  }

  keydown(event) {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const far = event.shiftKey ? 10 : 1;
    if (event.ctrlKey || event.metaKey) {
      if (key === "y" || (key === "z" && event.shiftKey)) this.shapes.redo();
      else if (key === "z") this.shapes.undo();
      else return;
    } else if (ARROWS[key]) this.nudge(ARROWS[key].map((step) => step * far));
    else if (key === "Enter") this.enter();
    else if (key === "Delete" || key === "Backspace") this.remove();
    else if (key === "+" || key === "-") this.zoom(key === "+" ? 1.5 : 1 / 1.5);
    else if (key === "Escape" && (this.drawing || this.path)) this.select(null);
    else return;
    event.preventDefault();
  }

  nudge(steps) {
    const { pixel, drawing } = this;
    if (drawing) {
      drawing.cursor = drawing.cursor.map((part, axis) => within(part + steps[axis] * pixel[axis]));
      return this.render();
    }
    const shape = this.shapes.find(this.path);
    if (!shape) return;
    const points = this.shapes.fractions(shape);
    const least = this.shapes.step(shape); // each press of a key has an effect
    const by = steps.map((step, axis) => step * Math.max(pixel[axis], least[axis]));
    if (this.point < 0) this.shapes.shift(this.path, points, ...by);
    else this.shapes.move(this.path, this.point, points[this.point].map((part, axis) => part + by[axis]));
    this.shapes.commit();
    this.say(this.words(this.shapes.find(this.path), this.point));
  }

  enter() {
    if (this.drawing) return this.add(this.drawing.cursor, 1);
    const shape = this.shapes.find(this.path);
    if (!shape || this.point < 0 || CORNERS[shape.kind]) return;
    const points = this.shapes.fractions(shape);
    this.shapes.insert(this.path, this.point + 1, middle(points[this.point], points[(this.point + 1) % points.length]));
    this.shapes.commit();
    this.select(this.path, this.point + 1);
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
    const parts = [this.image, ...this.shapes.all().map((shape) => this.shape(shape))];
    if (this.drawing) parts.push(this.unfinished());
    this.element.replaceChildren(...parts);
    if (focus) (this.element.querySelector("[data-current]") ?? this.element).focus({ preventScroll: true });
    this.isRendering = false;
  }

  toFrame(point) {
    return [point[0] * this.shapes.size[0], point[1] * this.shapes.size[1]];
  }

  outline(points, closed) {
    return `M${points.map((point) => this.toFrame(point).join(" ")).join("L")}${closed ? "Z" : ""}`;
  }

  shape(shape) {
    const points = this.shapes.fractions(shape);
    const isSelected = shape.path === this.path;
    const crossed = crossesItself(points, shape.kind !== "line");
    const isBad = crossed || this.faulty.has(shape.path);
    const group = svg("g", { class: `${shape.kind}${isSelected ? " selected" : ""}${isBad ? " bad" : ""}` });
    const holes = shape.holes?.map((hole) => this.outline(this.shapes.fractions({ ...shape, points: hole }), true)) ?? [];
    const d = this.outline(points, shape.kind !== "line") + holes.join("");
    const words = this.words(shape, -1);
    group.append(svg("path", { d, class: "under" }), svg("path", { d, class: "shape", "data-path": shape.path, tabindex: 0, role: "button", "aria-label": words, ...(isSelected && this.point < 0 && { "data-current": "" }) }));
    if (shape.kind === "line") group.append(...this.arrow(points));
    if (shape.kind === "ground") group.append(...this.meters(points));
    group.append(this.text(shape.label + (crossed ? " crosses itself" : ""), points[0]));
    if (!isSelected) return group;
    points.forEach((point, index) => {
      if (!CORNERS[shape.kind])
        group.append(this.dot(middle(point, points[(index + 1) % points.length]), 4, { "data-path": shape.path, "data-insert": index + 1 }));
    });
    points.forEach((point, index) => {
      const current = index === this.point && { "data-current": "" };
      group.append(this.dot(point, 7, { "data-path": shape.path, "data-point": index, tabindex: 0, role: "button", "aria-label": this.words(shape, index), ...current }));
    });
    return group;
  }

  // Return a dot. The circle around it, which is not visible, is large enough for a finger.
  dot(point, radius, attributes) {
    const [cx, cy] = this.toFrame(point);
    return svg("g", { class: "dot", ...attributes }, svg("circle", { cx, cy, r: 2.4 * radius * this.unit, class: "reach" }), svg("circle", { cx, cy, r: radius * this.unit }));
  }

  text(words, point, [dx, dy] = [9, -9]) {
    const [x, y] = this.toFrame(point);
    const top = this.zoomed.y * this.shapes.size[1] + 15 * this.unit;
    const text = svg("text", { x: x + dx * this.unit, y: Math.max(top, y + dy * this.unit), "font-size": 14 * this.unit, "stroke-width": 3 * this.unit });
    text.textContent = words;
    return text;
  }

  // Return an arrow in the direction `in`, which is to the right of somebody who looks from the first point to the second.
  arrow(points) {
    const [[x1, y1], [x2, y2]] = points.map((point) => this.toFrame(point));
    const length = Math.hypot(x2 - x1, y2 - y1) || 1;
    const [nx, ny] = [((y1 - y2) / length) * this.unit, ((x2 - x1) / length) * this.unit];
    const [mx, my] = [(x1 + x2) / 2, (y1 + y2) / 2];
    const side = (sign) => `${mx + 18 * nx + sign * 7 * ny} ${my + 18 * ny - sign * 7 * nx}`;
    const d = `M${mx} ${my}L${mx + 28 * nx} ${my + 28 * ny}M${side(1)}L${mx + 28 * nx} ${my + 28 * ny}L${side(-1)}`;
    const label = this.text("in", middle(...points), [(40 * nx) / this.unit - 5, (40 * ny) / this.unit + 5]);
    return [svg("path", { d, class: "under" }), svg("path", { d, class: "arrow" }), label];
  }

  meters(points) {
    const { metres } = this.shapes.content.ground;
    return points.flatMap((point, index) => {
      const [from, to] = [metres[index], metres[(index + 1) % 4]];
      const words = `${Math.hypot(to[0] - from[0], to[1] - from[1]).toFixed(1)} m`;
      return [this.text(String(index + 1), point), this.text(words, middle(point, points[(index + 1) % 4]))];
    });
  }

  unfinished() {
    const { points, cursor, kind } = this.drawing;
    const [x, y] = this.toFrame(cursor);
    const size = 12 * this.unit;
    const cross = `M${x - size} ${y}h${2 * size}M${x} ${y - size}v${2 * size}`;
    const parts = [this.outline([...points, cursor], false), cross].flatMap((d) => [svg("path", { d, class: "under" }), svg("path", { d, class: "arrow" })]);
    return svg("g", { class: `${kind} drawing` }, ...parts, ...points.map((point) => this.dot(point, 5, {})));
  }
}
