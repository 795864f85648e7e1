// The drawing of the editor: shows a draft on the picture, and changes it with a mouse, fingers, or the keyboard.
import { CORNERS, distance, within } from "./draft.js";
import { Component, html } from "./ui.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const HELP =
  "Picture with lines and zones. Tab selects a shape or a point. Arrow keys move it, with Shift ten times as far. Enter adds " +
  "a point, Delete removes it. While you draw, arrow keys move the cross, Enter sets a point, and Enter again ends the shape.";

const middle = (a, b) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
const outline = (places, end) => `M${places.join("L")}${end}`;
const outlined = (d, attributes) => html`<path d=${d} class="under" /><path d=${d} ...${attributes} />`;

export class Drawing extends Component {
  state = { unit: 1 }; // pixels of the frame per pixel of the screen

  get draft() {
    return this.props.draft;
  }

  componentDidMount() {
    this.resizing = new ResizeObserver(() => this.setState({ unit: this.draft.size[0] / this.svg.clientWidth }));
    this.resizing.observe(this.svg);
  }

  componentWillUnmount() {
    this.resizing.disconnect();
  }

  componentDidUpdate() {
    const { draft } = this;
    if (draft.needsFocus) (this.svg.querySelector("[data-current]") ?? this.svg).focus();
    draft.needsFocus = false;
  }

  place({ clientX, clientY }) {
    const { x, y } = new DOMPoint(clientX, clientY).matrixTransform(this.svg.getScreenCTM().inverse());
    return [x, y].map((value, axis) => within(value, this.draft.size[axis]));
  }

  // --- mouse and fingers; two fingers zoom the page. `held` is what moves with the pointer

  down = (event) => {
    if (event.button > 0) return;
    event.preventDefault();
    this.svg.setPointerCapture(event.pointerId);
    const { draft } = this;
    const place = this.place(event);
    this.held = { place, reach: (event.pointerType === "touch" ? 22 : 9) * this.state.unit };
    if (draft.drawing) return draft.add(place, this.held.reach);
    const { path = null, point = -1, insert } = event.target.closest("[data-path]")?.dataset ?? {};
    if (insert) draft.insert(Number(insert), place);
    else draft.select(path, Number(point));
    this.held.from = path && draft.places(draft.selected);
  };

  moved = (event) => {
    const { draft } = this;
    const { from, place: start } = this.held ?? {};
    const place = this.place(event);
    if (draft.drawing) {
      draft.drawing.cursor = place;
      this.setState({});
    } else if (from && draft.point >= 0) draft.move(place);
    else if (from) draft.shift(from, place.map((value, axis) => value - start[axis]));
  };

  up = (event) => {
    const { draft } = this;
    const { from, place: start, reach } = this.held ?? {};
    const place = this.place(event);
    if (draft.drawing && start && distance(place, start) > reach) draft.add(place, reach); // a line was drawn by dragging
    if (from) draft.commit();
    this.held = null;
  };

  // --- keyboard

  focused = ({ target: { dataset: { path, point = -1 } } }) => {
    const { draft } = this;
    if (path && !draft.drawing && !this.held && (path !== draft.path || Number(point) !== draft.point)) draft.select(path, Number(point));
  };

  pressed = (event) => {
    const { draft } = this;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.ctrlKey || event.metaKey) {
      if (key === "y" || (key === "z" && event.shiftKey)) draft.go(1);
      else if (key === "z") draft.go(-1);
      else return;
    } else if (ARROWS[key]) this.nudge(ARROWS[key].map((step) => step * (event.shiftKey ? 10 : 1)));
    else if (key === "Enter") this.enter();
    else if (key === "Delete" || key === "Backspace") draft.remove();
    else if (key === "+" || key === "-") this.props.zoom(key === "+" ? 1.5 : 1 / 1.5);
    else if (key === "Escape" && (draft.drawing || draft.path)) draft.select(null);
    else return;
    draft.needsFocus = true; // the element that had the focus can be gone
    event.preventDefault();
  };

  nudge(steps) {
    const { draft, state: { unit } } = this;
    const { drawing, selected, point } = draft;
    if (drawing) {
      drawing.cursor = drawing.cursor.map((value, axis) => within(value + steps[axis] * unit, draft.size[axis]));
      return this.setState({}, () => this.svg.querySelector(".cross").scrollIntoView({ block: "nearest", inline: "nearest" }));
    }
    if (!selected) return;
    const places = draft.places(selected);
    const [x, y, digits] = draft.scale(selected);
    const by = [x, y].map((scale, axis) => steps[axis] * Math.max(unit, scale / 10 ** digits)); // each key has an effect
    if (point < 0) draft.shift(places, by);
    else draft.move(places[point].map((value, axis) => value + by[axis]));
    draft.status = draft.words();
    draft.commit();
  }

  enter() {
    const { draft } = this;
    const { drawing, selected, point } = draft;
    if (drawing) return draft.add(drawing.cursor, this.state.unit);
    if (!selected || point < 0 || CORNERS[selected.kind]) return;
    const places = draft.places(selected);
    draft.insert(point + 1, middle(places[point], places[(point + 1) % places.length]));
    draft.commit();
  }

  // --- what is shown

  // Return the attributes of an element whose own pixels are those of the screen.
  at([x, y], degrees = 0) {
    return { transform: `translate(${x} ${y}) rotate(${degrees}) scale(${this.state.unit})` };
  }

  text(words, [x, y], dx = 9, dy = -9) {
    return html`<text ...${this.at([x, Math.max(y, 24 * this.state.unit)])} x=${dx} y=${dy}>${words}</text>`;
  }

  // Return a dot. The circle around it, which is not visible, is large enough for a finger.
  dot(place, r, attributes) {
    return html`<g class="dot" ...${this.at(place)} ...${attributes}><circle r=${2.4 * r} class="reach" /><circle r=${r} /></g>`;
  }

  shape(shape) {
    const { draft, props: { faulty } } = this;
    const { kind, path, label, holes = [] } = shape;
    const places = draft.places(shape);
    const isSelected = path === draft.path;
    const end = kind === "line" ? "" : "Z";
    const rings = [places, ...holes.map((hole) => draft.places(shape, hole))];
    const button = (point) => ({
      "data-path": path,
      tabindex: 0,
      role: "button",
      "aria-label": draft.words(shape, point),
      "data-current": isSelected && draft.point === point ? "" : undefined,
    });
    const next = (index) => places[(index + 1) % places.length];
    return html`
      <g key=${path} class="${kind} ${isSelected ? "selected" : ""} ${faulty.has(path) ? "bad" : ""}">
        ${outlined(rings.map((ring) => outline(ring, end)).join(""), { class: "shape", ...button(-1) })}
        ${kind === "line" && this.arrow(places)}
        ${kind === "ground" && places.map((place, i) => [this.text(i + 1, place), this.text(this.meters(i), middle(place, next(i)))])}
        ${this.text(label, places[0])}
        ${isSelected && !CORNERS[kind] && places.map((place, i) => this.dot(middle(place, next(i)), 4, { "data-path": path, "data-insert": i + 1 }))}
        ${isSelected && places.map((place, i) => this.dot(place, 7, { ...button(i), "data-point": i }))}
      </g>`;
  }

  // Return an arrow in the direction `in`, which is to the right of somebody who looks from the first point to the second.
  arrow([start, end]) {
    const angle = Math.atan2(end[1] - start[1], end[0] - start[0]) + Math.PI / 2;
    const place = middle(start, end);
    return html`
      <g ...${this.at(place, (angle * 180) / Math.PI)}>${outlined("M0 0H28M18-7L28 0L18 7")}</g>
      ${this.text("in", place, 40 * Math.cos(angle) - 5, 40 * Math.sin(angle) + 5)}`;
  }

  // Return the length of a side of the ground.
  meters(index) {
    const { metres } = this.draft.content.ground;
    return `${distance(metres[index], metres[(index + 1) % 4]).toFixed(1)} m`;
  }

  // Return the shape that is drawn, with a cross at the cursor.
  unfinished({ kind, places, cursor }) {
    return html`
      <g class=${kind}>
        ${outlined(outline([...places, cursor], ""))} ${places.map((place) => this.dot(place, 5))}
        <g class="cross" ...${this.at(cursor)}>${outlined("M-12 0H12M0-12V12")}</g>
      </g>`;
  }

  render({ draft, picture, zoom }) {
    const [width, height] = draft.size;
    return html`
      <svg class="editor-view" ref=${(element) => (this.svg = element)} viewBox="0 0 ${width} ${height}" tabindex="0" role="application"
        aria-label=${HELP} onPointerDown=${this.down} onPointerMove=${this.moved} onPointerUp=${this.up}
        onPointerCancel=${() => (this.held = null)} onDblClick=${() => draft.finish()} onKeyDown=${this.pressed} onFocusIn=${this.focused}>
        <image href=${picture} width=${width} height=${height} preserveAspectRatio="none" />
        ${draft.shapes.map((shape) => this.shape(shape))} ${draft.drawing && this.unfinished(draft.drawing)}
      </svg>`;
  }
}
