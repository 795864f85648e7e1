// What is drawn for one camera, with undo and redo. Points are in the units of the configuration.

const DIGITS = { fraction: 4, percent: 2, pixels: 0 };
const LEAST = { line: 2, zone: 3, hole: 3, ground: 4, mask: 3 };

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

  undo() {
    this.restore(this.past, this.future);
  }

  redo() {
    this.restore(this.future, this.past);
  }

  restore(from, to) {
    if (!from.length) return;
    to.push(this.now);
    this.now = from.pop();
    this.content = JSON.parse(this.now);
    this.onChange();
  }

  all() {
    const { lines, zones, ground, privacy } = this.content;
    const found = lines.map((line, i) => ({ kind: "line", path: `lines/${i}`, label: line.name, points: line.points }));
    zones.forEach((zone, i) => {
      found.push({ kind: "zone", path: `zones/${i}`, label: zone.name, points: zone.polygon, holes: zone.holes });
      (zone.holes ?? []).forEach((points, j) => found.push({ kind: "hole", path: `zones/${i}/holes/${j}`, label: `${j + 1} of ${zone.name}`, points }));
    });
    if (ground) found.push({ kind: "ground", path: "ground", label: "", points: ground.points });
    privacy.masks.forEach((points, i) => found.push({ kind: "mask", path: `masks/${i}`, label: `${i + 1}`, points }));
    return found;
  }

  find(path) {
    return this.all().find((shape) => shape.path === path);
  }

  // Return the path of the shape that a fault is about; undefined if there is none.
  pathOf(key) {
    const [, list, i, j, ground] = /\.(lines|zones|masks)\[(\d+)\](?:\.holes\[(\d+)\])?|\.(ground)\b/.exec(key) ?? [];
    return this.find(ground ?? `${list}/${i}${j === undefined ? "" : `/holes/${j}`}`)?.path;
  }

  // Return the smallest change of x and y, as parts of the frame's width and height.
  step({ kind }) {
    const units = kind === "mask" ? this.content.privacy.units : this.content.units;
    return units === "pixels" ? this.size.map((side) => 1 / side) : [1e-4, 1e-4];
  }

  // Return what one unit of x and y is, as parts of the frame's width and height, and the number of digits to write.
  scale({ kind }) {
    const units = kind === "mask" ? this.content.privacy.units : this.content.units;
    const scale = { fraction: [1, 1], percent: [0.01, 0.01], pixels: this.size.map((side) => 1 / side) }[units];
    return { scale, digits: DIGITS[units] };
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

  // --- changes; a method without `commit` is one step of a drag, which `commit` completes

  // Add a shape, and return its path. `path` is the zone of a hole.
  add(kind, places, path) {
    const points = places.map((place) => this.written({ kind }, place));
    const { lines, zones, privacy } = this.content;
    let added = "ground";
    if (kind === "line") added = `lines/${lines.push({ name: this.newName(kind), points }) - 1}`;
    else if (kind === "zone") added = `zones/${zones.push({ name: this.newName(kind), polygon: points }) - 1}`;
    else if (kind === "mask") added = `masks/${privacy.masks.push(points) - 1}`;
    else if (kind === "hole") {
      const zone = path.split("/")[1];
      added = `zones/${zone}/holes/${(zones[zone].holes ??= []).push(points) - 1}`;
    } else this.content.ground = { points, metres: [[0, 10], [5, 10], [5, 0], [0, 0]] };
    this.commit();
    return added;
  }

  newName(kind) {
    const used = new Set([...this.content.lines, ...this.content.zones].map((each) => each.name));
    let number = 1;
    while (used.has(`${kind}-${number}`)) number += 1;
    return `${kind}-${number}`;
  }

  move(path, index, place) {
    const shape = this.find(path);
    shape.points[index] = this.written(shape, place);
  }

  // Move a shape from its places `from`, but not beyond the edge of the frame.
  shift(path, from, dx, dy) {
    const by = [dx, dy].map((delta, axis) => {
      const parts = from.map((place) => place[axis]);
      return Math.min(Math.max(delta, -Math.min(...parts)), 1 - Math.max(...parts));
    });
    from.forEach((place, index) => this.move(path, index, [place[0] + by[0], place[1] + by[1]]));
  }

  insert(path, index, place) {
    const shape = this.find(path);
    shape.points.splice(index, 0, this.written(shape, place));
  }

  // Remove a point, or the shape if `index` is -1 or too few points would be left. Return true if the shape is left.
  remove(path, index) {
    const { kind, points } = this.find(path);
    const [list, i, , j] = path.split("/");
    const isLeft = index >= 0 && points.length > LEAST[kind];
    if (isLeft) points.splice(index, 1);
    else if (kind === "ground") this.content.ground = null;
    else if (kind === "hole") this.content.zones[i].holes.splice(j, 1);
    else (kind === "mask" ? this.content.privacy : this.content)[list].splice(i, 1);
    if (kind === "hole" && !this.content.zones[i].holes.length) delete this.content.zones[i].holes;
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
  return sides.some(([a, b], first) =>
    sides.slice(first + 1).some(([c, d], after) => {
      if (after === 0) return touches(a, b, d) || touches(c, d, a);
      if (first === 0 && after === sides.length - 2) return touches(c, d, b) || touches(a, b, c);
      return meet(a, b, c, d);
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
