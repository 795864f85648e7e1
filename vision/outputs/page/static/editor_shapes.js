// What is drawn for one camera, with undo and redo. Points are in the units of the configuration.

const DIGITS = { fraction: 4, percent: 2, pixels: 0 };
const LEAST = { line: 2, ground: 4 }; // points; 3 for other kinds

export class Shapes {
  constructor(onChange) {
    this.onChange = onChange;
    this.size = [1920, 1080]; // of the frame, in pixels; assumed until the camera connects
    this.load({ units: "fraction", lines: [], zones: [], ground: null, privacy: { units: "fraction", masks: [] } });
  }

  load({ units, lines, zones, ground, privacy }) {
    this.now = this.loaded = JSON.stringify({ units, lines, zones, ground, privacy });
    this.content = JSON.parse(this.now);
    this.past = [];
    this.future = [];
  }

  get isChanged() {
    return this.now !== this.loaded;
  }

  // Keep the present content as a step that can be undone.
  commit() {
    const now = JSON.stringify(this.content);
    if (now === this.now) return;
    this.past.push(this.now);
    this.future = [];
    this.now = now;
    this.onChange();
  }

  // Replace the content, given as JSON.
  replace(content) {
    this.content = JSON.parse(content);
    this.commit();
  }

  // Go one step back, or forward after steps back.
  undo(from = this.past, to = this.future) {
    if (!from.length) return;
    to.push(this.now);
    this.now = from.pop();
    this.content = JSON.parse(this.now);
    this.onChange();
  }

  redo() {
    this.undo(this.future, this.past);
  }

  all() {
    const { lines, zones, ground, privacy } = this.content;
    return [
      ...lines.map(({ name, points }, i) => ({ kind: "line", path: `lines/${i}`, label: name, points })),
      ...zones.flatMap(({ name, polygon, holes = [] }, i) => [
        { kind: "zone", path: `zones/${i}`, label: name, points: polygon, holes },
        ...holes.map((points, j) => ({ kind: "hole", path: `zones/${i}/holes/${j}`, label: `${j + 1} of ${name}`, points })),
      ]),
      ...(ground ? [{ kind: "ground", path: "ground", label: "", points: ground.points }] : []),
      ...privacy.masks.map((points, i) => ({ kind: "mask", path: `masks/${i}`, label: `${i + 1}`, points })),
    ];
  }

  find(path) {
    return this.all().find((shape) => shape.path === path);
  }

  // Return the path of the shape that a fault is about; undefined if there is none.
  pathOf(key) {
    const [found] = /(lines|zones|masks)\[\d+\](\.holes\[\d+\])?|\bground(?=$|\.(points|metres))/.exec(key) ?? [""];
    return this.find(found.replace(/[[.]/g, "/").replaceAll("]", ""))?.path;
  }

  // Return what one unit of x and y is, as parts of the frame's width and height, and the number of digits to write.
  scale({ kind }) {
    const { units } = kind === "mask" ? this.content.privacy : this.content;
    const scale = { fraction: [1, 1], percent: [0.01, 0.01], pixels: this.size.map((side) => 1 / side) }[units];
    return { scale, digits: DIGITS[units] };
  }

  // Return the smallest change of x and y, as parts of the frame's width and height.
  step(shape) {
    const { scale, digits } = this.scale(shape);
    return scale.map((unit) => unit / 10 ** digits);
  }

  // Return the points of a shape as parts of the frame's width and height.
  fractions(shape) {
    const { scale } = this.scale(shape);
    return shape.points.map((point) => [point[0] * scale[0], point[1] * scale[1]]);
  }

  written(shape, place) {
    const { scale, digits } = this.scale(shape);
    return place.map((part, axis) => Number((Math.min(1, Math.max(0, part)) / scale[axis]).toFixed(digits)));
  }

  // Return the list of the content that contains a shape.
  listOf(kind, path) {
    const { lines, zones, privacy } = this.content;
    return kind === "hole" ? (zones[path.split("/")[1]].holes ??= []) : { line: lines, zone: zones, mask: privacy.masks }[kind];
  }

  // --- changes; a method without `commit` is one step of a drag, which `commit` completes

  // Add a shape, and return its path. `zone` is the path of the zone of a hole.
  add(kind, places, zone) {
    const points = places.map((place) => this.written({ kind }, place));
    const name = this.newName(kind);
    if (kind === "ground") this.content.ground = { points, metres: [[0, 10], [5, 10], [5, 0], [0, 0]] };
    else this.listOf(kind, zone).push({ line: { name, points }, zone: { name, polygon: points } }[kind] ?? points);
    this.commit();
    return this.all().findLast((shape) => shape.kind === kind && (kind !== "hole" || shape.path.startsWith(`${zone}/`))).path;
  }

  newName(kind) {
    const used = this.all().map((shape) => shape.label);
    let number = 1;
    while (used.includes(`${kind}-${number}`)) number += 1;
    return `${kind}-${number}`;
  }

  move(path, index, place) {
    const shape = this.find(path);
    shape.points[index] = this.written(shape, place);
  }

  // Move a shape from its places `from`, but not beyond the edge of the frame.
  shift(path, from, ...by) {
    const [dx, dy] = by.map((delta, axis) => {
      const parts = from.map((place) => place[axis]);
      return Math.min(Math.max(delta, -Math.min(...parts)), 1 - Math.max(...parts));
    });
    from.forEach(([x, y], index) => this.move(path, index, [x + dx, y + dy]));
  }

  insert(path, index, place) {
    const shape = this.find(path);
    shape.points.splice(index, 0, this.written(shape, place));
  }

  // Remove a point, or the shape if `index` is -1 or too few points would be left. Return true if the shape is left.
  remove(path, index) {
    const { kind, points } = this.find(path);
    const isLeft = index >= 0 && points.length > (LEAST[kind] ?? 3);
    if (isLeft) points.splice(index, 1);
    else if (kind === "ground") this.content.ground = null;
    else this.listOf(kind, path).splice(path.split("/").at(-1), 1);
    for (const zone of this.content.zones) if (!zone.holes?.length) delete zone.holes;
    this.commit();
    return isLeft;
  }

  swap(path) {
    this.find(path).points.reverse();
    this.commit();
  }

  rename(path, name) {
    const [list, index] = path.split("/");
    this.content[list][index].name = name;
    this.commit();
  }

  // Set a coordinate of a ground point, in meters.
  measure(index, axis, meters) {
    if (!Number.isFinite(meters)) return;
    this.content.ground.metres[index][axis] = meters;
    this.commit();
  }
}

// Return true if two sides of a polygon cross or touch, or if a line has no length.
export function crossesItself(points, closed) {
  if (!closed) return String(points[0]) === String(points[1]);
  const sides = points.map((point, index) => [point, points[(index + 1) % points.length]]);
  return sides.some(([a, b], first) => sides.slice(first + 1).some(([c, d]) => {
    if (b === c) return touches(a, b, d) || touches(c, d, a);
    return a === d ? touches(c, d, b) || touches(a, b, c) : meet(a, b, c, d);
  }));
}

const turn = (a, b, c) => Math.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]));

function touches(a, b, c) {
  const isBetween = [0, 1].every((axis) => Math.min(a[axis], b[axis]) <= c[axis] && c[axis] <= Math.max(a[axis], b[axis]));
  return isBetween && turn(a, b, c) === 0;
}

function meet(a, b, c, d) {
  if (turn(c, d, a) * turn(c, d, b) < 0 && turn(a, b, c) * turn(a, b, d) < 0) return true;
  return touches(c, d, a) || touches(c, d, b) || touches(a, b, c) || touches(a, b, d);
}
