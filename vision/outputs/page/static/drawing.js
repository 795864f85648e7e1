// The drawing of the editor: shows a draft on the picture, and changes it with a mouse, fingers, or the keyboard.
import { CORNERS, distance, within } from "./draft.js";
import { Component, html } from "./ui.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const HELP =
  "Picture with lines and zones. Tab selects a shape or a point. Arrow keys move it, with Shift ten times as far. Enter " +
  "adds a point. Delete removes it. While you draw, arrow keys move the cross, and Enter sets a point, or ends the shape.";

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

  // --- mouse and fingers; two fingers zoom the page

  held = {}; // where the pointer was pressed, and where the shape that moves with it was

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
    const { from, place: start } = this.held;
    const place = this.place(event);
    if (draft.drawing) {
      draft.drawing.cursor = place;
      this.setState({});
    } else if (from && draft.point >= 0) draft.move(place);
    else if (from) draft.shift(from, place.map((value, axis) => value - start[axis]));
  };

  up = (event) => {
    const { draft } = this;
    const { from, place: start, reach } = this.held;
    const place = this.place(event);
    if (draft.drawing && start && distance(place, start) > reach) draft.add(place, reach); // a line was drawn by dragging
    if (from) draft.commit();
    this.held = {};
  };

  // --- keyboard

  focused = ({ target: { dataset: { path, point = -1 } } }) => {
    const { draft } = this;
    if (path && !draft.drawing && !this.held.place && (path !== draft.path || Number(point) !== draft.point)) draft.select(path, Number(point));
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

  // A step is a pixel of the frame or of the screen, whichever is larger, so that it has an effect.
  nudge(steps) {
    const { draft } = this;
    const { drawing, selected, point } = draft;
    const by = steps.map((step) => step * Math.max(1, this.state.unit));
    const moved = (place) => place.map((value, axis) => within(value + by[axis], draft.size[axis]));
    if (drawing) {
      drawing.cursor = moved(drawing.cursor);
      return this.setState({}, () => this.svg.querySelector(".cross").scrollIntoView({ block: "nearest", inline: "nearest" }));
    }
    if (!selected) return;
    const places = draft.places(selected);
    if (point < 0) draft.shift(places, by);
    else draft.move(moved(places[point]));
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

  text(words, [x, y]) {
    return html`<text ...${this.at([x, Math.max(y, 24 * this.state.unit)])} x="9" y="-9">${words}</text>`;
  }

  // Return a dot. The circle around it, which is not visible, is large enough for a finger.
  dot(place, r, attributes) {
    return html`<g class="dot" ...${this.at(place)} ...${attributes}><circle r=${2.4 * r} class="reach" /><circle r=${r} /></g>`;
  }

  shape(shape) {
    const { draft, props: { faulty } } = this;
    const { kind, path, label, entry, holes = [] } = shape;
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
    const next = (list, index) => list[(index + 1) % list.length];
    const length = (index) => `${distance(entry.metres[index], next(entry.metres, index)).toFixed(1)} m`; // of a side
    return html`
      <g key=${path} class="${kind} ${isSelected ? "selected" : ""} ${faulty.has(path) ? "bad" : ""}">
        ${outlined(rings.map((ring) => outline(ring, end)).join(""), { class: "shape", ...button(-1) })}
        ${kind === "line" && this.arrow(places)}
        ${kind === "ground" && places.map((place, i) => [this.text(i + 1, place), this.text(length(i), middle(place, next(places, i)))])}
        ${this.text(label, places[0])}
        ${isSelected && !CORNERS[kind] && places.map((place, i) => this.dot(middle(place, next(places, i)), 4, { "data-path": path, "data-insert": i + 1 }))}
        ${isSelected && places.map((place, i) => this.dot(place, 7, { ...button(i), "data-point": i }))}
      </g>`;
  }

  // Return an arrow in the direction `in`, which is to the right of somebody who looks from the first point to the second.
  arrow([start, end]) {
    const degrees = (Math.atan2(end[1] - start[1], end[0] - start[0]) * 180) / Math.PI + 90;
    return html`
      <g ...${this.at(middle(start, end), degrees)}>
        ${outlined("M0 0H28M18-7L28 0L18 7")}
        <text transform="translate(40) rotate(${-degrees})" text-anchor="middle" y="5">in</text>
      </g>`;
  }

  unfinished({ kind, places, cursor }) {
    return html`
      <g class=${kind}>
        ${outlined(outline([...places, cursor], ""))} ${places.map((place) => this.dot(place, 5))}
        <g class="cross" ...${this.at(cursor)}>${outlined("M-12 0H12M0-12V12")}</g>
      </g>`;
  }

  render({ draft, picture, onMissing }) {
    const [width, height] = draft.size;
    return html`
      <svg class="editor-view" ref=${(element) => (this.svg = element)} viewBox="0 0 ${width} ${height}" tabindex="0" role="application"
        aria-label=${HELP} onPointerDown=${this.down} onPointerMove=${this.moved} onPointerUp=${this.up}
        onPointerCancel=${() => (this.held = {})} onDblClick=${() => draft.finish()} onKeyDown=${this.pressed} onFocusIn=${this.focused}>
        <image href=${picture} width=${width} height=${height} preserveAspectRatio="none" onError=${onMissing} />
        ${draft.shapes.map((shape) => this.shape(shape))} ${draft.drawing && this.unfinished(draft.drawing)}
      </svg>`;
  }
}
