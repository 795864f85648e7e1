// The draft of one camera: its shapes, with undo and redo, what is selected, and what is being drawn.
// Places are in pixels of the frame. The points in the content are in the units of the configuration.

export const CORNERS = { line: 2, ground: 4 }; // the other kinds have three or more
export const within = (value, most) => Math.min(most, Math.max(0, value));
export const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

export class Draft {
  path = null; // of the selected shape
  point = -1; // that is selected; -1 if it is the whole shape
  drawing = null;
  status = "";
  steps = []; // the content after each change, as JSON
  step = -1;

  // `changed` is called after each change. `size` is the size of the frame, which is unknown until the camera connects.
  constructor({ units, lines, zones, ground, privacy, size }, changed) {
    this.content = { units, lines, zones, ground, privacy };
    this.size = size ?? [1920, 1080];
    this.changed = changed;
    this.commit();
  }

  get now() {
    return this.steps[this.step];
  }

  get isChanged() {
    return this.now !== this.steps[0];
  }

  // Keep the present content as a step that can be undone.
  commit() {
    const now = JSON.stringify(this.content);
    if (now !== this.now) {
      this.step += 1;
      this.steps.splice(this.step, Infinity, now);
    }
    this.changed();
  }

  // Undo a step with -1, and redo it with 1.
  go(by) {
    if (!this.steps[this.step + by]) return;
    this.step += by;
    this.content = JSON.parse(this.now);
    if (this.path && !this.selected) this.select(null);
    this.changed();
  }

  // Change the content in one step.
  edit(change) {
    change();
    this.commit();
  }

  // Each shape has its `entry` in the content, which is in `list`, unless it is the ground.
  get shapes() {
    const { lines, zones, ground, privacy: { masks } } = this.content;
    const shapesOf = (kind, list, path, suffix = "") => list.map((entry, index) => ({
      kind,
      path: `${path}[${index}]`,
      label: entry.name ?? `${index + 1}${suffix}`,
      points: entry.points ?? entry.polygon ?? entry, // holes and masks are points
      entry,
      list,
    }));
    return [
      ...(ground ? [{ kind: "ground", path: "ground", label: "", points: ground.points, entry: ground }] : []),
      ...shapesOf("line", lines, "lines"),
      ...shapesOf("zone", zones, "zones").flatMap((zone) => {
        const { entry: { name, holes = [] }, path } = zone;
        return [{ ...zone, holes }, ...shapesOf("hole", holes, `${path}.holes`, ` of ${name}`)];
      }),
      ...shapesOf("mask", masks, "masks"),
    ];
  }

  get selected() {
    return this.shapes.find(({ path }) => path === this.path);
  }

  // Return the path of the shape that a fault is about; undefined if there is none.
  pathOf({ key }) {
    return this.shapes.findLast(({ path }) => key.includes(`.${path}`))?.path;
  }

  // --- places

  // Return how many pixels one unit of x and y is, and the number of digits to write.
  scale({ kind }) {
    const { units } = kind === "mask" ? this.content.privacy : this.content;
    const [width, height] = this.size;
    return { fraction: [width, height, 4], percent: [width / 100, height / 100, 2], pixels: [1, 1, 0] }[units];
  }

  places(shape, points = shape.points) {
    const scale = this.scale(shape);
    return points.map((point) => point.map((value, axis) => value * scale[axis]));
  }

  written(shape, place) {
    const scale = this.scale(shape);
    return place.map((value, axis) => Number((within(value, this.size[axis]) / scale[axis]).toFixed(scale[2])));
  }

  // --- selection and drawing

  select(path, point = -1) {
    Object.assign(this, { path, point, drawing: null, needsFocus: true });
    this.status = this.selected ? this.words() : "";
    this.changed();
  }

  words(shape = this.selected, point = this.point) {
    const { kind, label, points } = shape;
    if (point < 0) return `${kind} ${label}`;
    const parts = this.places(shape)[point].map((value, axis) => `${((100 * value) / this.size[axis]).toFixed(1)} %`);
    return `${kind} ${label}, point ${point + 1} of ${points.length}: ${parts.join(", ")}`;
  }

  draw(kind) {
    if (kind === "ground" && this.content.ground) return this.select(kind);
    const zone = this.selected?.entry; // of a hole
    this.select(null);
    this.drawing = { kind, zone, places: [], cursor: this.size.map((side) => side / 2) };
    this.status = `Draw the ${kind}: click its points, or use the arrow keys and Enter.`;
  }

  // Add a point to the shape that is drawn. At its first or its last point, the shape is complete.
  add(place, reach) {
    const { kind, places } = this.drawing;
    this.drawing.cursor = place;
    const isEnd = [places[0], places.at(-1)].some((each) => each && distance(each, place) < reach);
    if (!isEnd) places.push(place);
    if (CORNERS[kind] ? places.length === CORNERS[kind] : isEnd) this.finish();
    this.changed();
  }

  finish() {
    if (!this.drawing) return;
    const { content, drawing: { kind, places, zone } } = this;
    const least = CORNERS[kind] ?? 3;
    if (places.length < least) {
      this.status = `The ${kind} needs ${least} points.`;
      return this.changed();
    }
    const points = places.map((place) => this.written({ kind }, place));
    const labels = this.shapes.map(({ label }) => label);
    let number = 1;
    while (labels.includes(`${kind}-${number}`)) number += 1;
    const name = `${kind}-${number}`;
    if (kind === "ground") content.ground = { points, metres: [[0, 10], [5, 10], [5, 0], [0, 0]] };
    if (kind === "line") content.lines.push({ name, points });
    if (kind === "zone") content.zones.push({ name, polygon: points });
    if (kind === "hole") (zone.holes ??= []).push(points);
    if (kind === "mask") content.privacy.masks.push(points);
    this.select(this.shapes.find((shape) => shape.points === points).path);
    this.commit();
  }

  // --- changes of the selected shape; `move`, `shift`, and `insert` are steps of a drag, which `commit` completes

  move(place, index = this.point) {
    const { selected } = this;
    selected.points[index] = this.written(selected, place);
    this.changed();
  }

  // Move the shape from the places `from`, but not beyond the edge of the frame.
  shift(from, by) {
    const [dx, dy] = by.map((delta, axis) => {
      const values = from.map((place) => place[axis]);
      return Math.min(Math.max(delta, -Math.min(...values)), this.size[axis] - Math.max(...values));
    });
    from.forEach(([x, y], index) => this.move([x + dx, y + dy], index));
  }

  insert(index, place) {
    const { selected } = this;
    selected.points.splice(index, 0, this.written(selected, place));
    this.select(this.path, index);
  }

  // Remove the selected point, or the shape if too few points would be left.
  remove() {
    if (!this.selected) return;
    const { kind, points, list, entry } = this.selected;
    const isLeft = this.point >= 0 && points.length > (CORNERS[kind] ?? 3);
    if (isLeft) points.splice(this.point, 1);
    else if (list) list.splice(list.indexOf(entry), 1);
    else this.content.ground = null;
    for (const zone of this.content.zones) if (!zone.holes?.length) delete zone.holes;
    this.select(isLeft ? this.path : null, isLeft ? Math.max(0, this.point - 1) : -1);
    this.commit();
  }
}
