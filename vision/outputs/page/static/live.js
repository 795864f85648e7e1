// The live view of one camera: its frames, with the boxes, tracks, lines, and zones of exactly these frames.
//
// The server sends coded frames and their results separately (live_format.py). A decoded frame is held until its result
// arrives, so the boxes on a frame are always those of this frame. A frame without a result was skipped by the program,
// and is not shown, unless no result arrives for two seconds, or too many frames are held.

import { Component, html, join } from "./ui.js";

const HELD_FRAMES = 60;
const HELD_PIXELS = 4e7;
const HELD_MS = 2000;
const HELD_RESULTS = 128;
const RETRY_MS = 1000;
const TRAIL_FRAMES = 30;
const FAILURES = 3; // of a decoder without a frame between them, after which the view shows images
const CODECS = { h264: "avc1.640028", hevc: "hev1.1.6.L120.B0" };
const WAITING = "Waiting for the first frame.";

// --- the connection

// The codecs that this browser decodes. Browsers offer `VideoDecoder` only on pages that are encrypted or local.
const supported = Promise.all(Object.entries(CODECS).map(async ([name, codec]) => {
  const answer = await globalThis.VideoDecoder?.isConfigSupported({ codec });
  return answer?.supported ? [name] : [];
}));

const views = new Map(); // by camera
let socket = null; // for all views of the page, unless the page is hidden

document.addEventListener("visibilitychange", () => (document.hidden ? socket?.close() : open()));

function open() {
  if (socket || !views.size || document.hidden) return;
  socket = new WebSocket(`${location.origin.replace("http", "ws")}/api/live`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => views.forEach(watch);
  socket.onmessage = ({ data }) => receive(data);
  socket.onclose = ({ reason }) => {
    socket = null;
    const problem = `No connection to the program${reason && `: ${reason}`}. Trying again.`;
    for (const view of views.values()) view.wait(document.hidden ? WAITING : problem);
    setTimeout(open, RETRY_MS);
  };
}

function send(wish) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(wish));
}

// Request the live view of a camera, starting with its next key frame.
async function watch({ id, decodes }) {
  const codecs = decodes ? (await supported).flat() : [];
  if (views.has(id)) send({ watch: id, codecs });
}

// Split a message into its records, and pass each to the view of its camera.
function receive(buffer) {
  const numbers = new DataView(buffer);
  for (let at = 0; at < buffer.byteLength; ) {
    const [head, length] = [numbers.getUint32(at), numbers.getUint32(at + 4)];
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, at + 8, head)));
    const data = new Uint8Array(buffer, at + 8 + head, length);
    at += 8 + head + length;
    views.get(header.camera)?.[header.kind](header, data);
  }
}

// --- frames and results

// The live view of a camera. It receives nothing while it or the page is not visible.
export class LiveView extends Component {
  state = { note: WAITING };
  isWaiting = true; // for a frame, which replaces the note
  id = this.props.camera.camera;
  decodes = true; // false if decoders failed repeatedly
  failures = 0;
  stream = 0;
  held = []; // decoded frames in the order of presentation
  results = new Map(); // by stream and time

  componentDidMount() {
    this.overlay = new Overlay(this.canvas);
    this.visibility = new IntersectionObserver((entries) => this.update(entries.at(-1).isIntersecting));
    this.visibility.observe(this.canvas);
  }

  componentWillUnmount() {
    this.visibility.disconnect();
    this.update(false);
  }

  render({ camera: { width, height } }, { note }) {
    const style = width ? { "--ratio": width / height } : null;
    return html`
      <div class="view" style=${style}>
        <canvas role="img" aria-label="Live view of ${this.id}" ref=${(canvas) => (this.canvas = canvas)} />
        <p class="live-note" role="status" hidden=${!note}>${note}</p>
      </div>`;
  }

  update(isVisible) {
    if (isVisible === (views.get(this.id) === this)) return;
    this.reset();
    if (isVisible) {
      views.set(this.id, this);
      if (socket) watch(this);
      else open();
    } else {
      views.delete(this.id);
      send({ leave: this.id });
    }
  }

  // Forget what was received.
  reset() {
    if (this.decoder?.state !== "closed") this.decoder?.close();
    for (const { frame } of this.held) frame.close();
    Object.assign(this, { decoder: null, shown: null }); // `shown` is the last result
    this.held = [];
    this.results.clear();
  }

  // Start again with a key frame, or with images if that fails repeatedly.
  failed() {
    this.failures += 1;
    this.decodes = this.failures < FAILURES;
    this.reset();
    watch(this);
  }

  wait(note) {
    this.reset();
    this.isWaiting = true;
    this.setState({ note });
  }

  // --- one method for each kind of record

  packet({ stream, time, key, codec }, data) {
    if (key && (stream !== this.stream || codec !== this.codec || this.decoder === null)) this.startDecoder(stream, codec);
    if (this.decoder === null || stream !== this.stream) return;
    try {
      this.decoder.decode(new EncodedVideoChunk({ type: key ? "key" : "delta", timestamp: time, data }));
    } catch {
      this.failed();
    }
  }

  result({ stream, time, result }) {
    const key = `${stream}:${time}`;
    this.results.set(key, result);
    if (this.results.size > HELD_RESULTS) this.results.delete(this.results.keys().next().value);
    this.showUpTo(this.held.findIndex((each) => each.key === key));
  }

  async image({ result }, data) {
    const bitmap = await createImageBitmap(new Blob([data], { type: "image/jpeg" })).catch(() => null);
    if (bitmap && views.get(this.id) === this) this.show(bitmap, result);
    bitmap?.close();
  }

  scene({ shapes }) {
    this.overlay.shapes = shapes;
  }

  counts(counts) {
    this.overlay.counts = counts;
  }

  status({ text }) {
    this.isWaiting = false;
    this.setState({ note: text });
  }

  // --- decoded frames

  startDecoder(stream, codec) {
    const old = this.decoder;
    if (old?.state === "configured") old.flush().then(() => old.close(), () => {});
    const decoder = new VideoDecoder({
      output: (frame) => this.decoded(frame, stream),
      error: () => decoder === this.decoder && this.failed(),
    });
    Object.assign(this, { stream, codec, decoder });
    decoder.configure({ codec, optimizeForLatency: true });
  }

  decoded(frame, stream) {
    const now = performance.now();
    this.failures = 0;
    this.held.push({ frame, stream, key: `${stream}:${frame.timestamp}`, at: now });
    this.held.sort((a, b) => a.stream - b.stream); // the last frames of an old stream can arrive late
    const most = Math.min(HELD_FRAMES, HELD_PIXELS / (frame.codedWidth * frame.codedHeight));
    this.showUpTo(this.held.findLastIndex(({ key }) => this.results.has(key)));
    while (this.held.length > most || now - this.held[0]?.at > HELD_MS) {
      const { frame: oldest } = this.held.shift();
      this.show(oldest, null);
      oldest.close();
    }
  }

  // Show a held frame; none if `index` is -1. The frames before it have no results.
  showUpTo(index) {
    for (const { frame, key } of this.held.splice(0, index + 1)) {
      const result = this.results.get(key);
      if (result) this.show(frame, result);
      this.results.delete(key);
      frame.close();
    }
  }

  show(image, result) {
    if (result) {
      const { epoch, frame } = result;
      if (this.shown && (epoch - this.shown.epoch || frame - this.shown.frame) <= 0) return; // an older one
      this.shown = result;
    }
    this.overlay.draw(image, result);
    if (this.isWaiting) this.status({ text: "" });
  }
}

// --- drawing

export class Overlay {
  shapes = []; // lines, zones, and masks
  counts = { texts: {} }; // of lines and zones
  trails = new Map(); // the last places of each track
  frame = 0;

  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
  }

  // Draw an image with its result. If the result is null, draw only what does not depend on the frame.
  draw(image, result) {
    const { canvas, context } = this;
    const { width, height } = result ?? { width: image.displayWidth, height: image.displayHeight };
    const [shownWidth, shownHeight] = [canvas.clientWidth * devicePixelRatio, canvas.clientHeight * devicePixelRatio];
    const scale = Math.min(1, Math.max(shownWidth / width, shownHeight / height) || 1);
    const size = [width, height].map((side) => Math.round(side * scale));
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    const excess = (shownWidth * height) / (shownHeight * width);
    canvas.style.objectFit = Math.abs(excess - 1) < 0.01 ? "fill" : ""; // no bars of a part of a pixel
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(image, 0, 0, ...size);
    context.setTransform(size[0] / width, 0, 0, size[1] / height, 0, 0);
    context.lineJoin = context.lineCap = "round"; // a short line is a dot
    this.size = [width, height];
    this.unit = Math.max(1, (1.5 * devicePixelRatio * width) / size[0]); // a stroke, in frame pixels
    this.drawScene();
    if (result) this.drawObjects(result);
  }

  drawScene() {
    for (const { key, name, moves, relative, path, at, style } of this.shapes) {
      const place = new DOMMatrix(moves ? this.counts.view : undefined);
      if (relative) place.scaleSelf(...this.size);
      const placed = new Path2D();
      placed.addPath(new Path2D(path), place);
      this.paint(placed, style);
      const { x, y } = place.transformPoint(new DOMPoint(...at));
      if (name) this.label(join([name, this.counts.texts[key]]), [x, y], style.stroke);
    }
  }

  drawObjects({ objects }) {
    this.frame += 1;
    for (const { id, color, text, at, paths, foot } of objects) {
      for (const [path, style] of paths) this.paint(new Path2D(path), style);
      if (foot) {
        const places = [...(this.trails.get(id)?.places ?? []), foot].slice(-TRAIL_FRAMES);
        this.trails.set(id, { places, frame: this.frame });
        this.paint(new Path2D(`M${places.join("L")}`), { stroke: color, width: 1 });
      }
      this.label(text, at, color);
    }
    for (const [id, { frame }] of this.trails) if (this.frame - frame > TRAIL_FRAMES) this.trails.delete(id);
  }

  // Fill and stroke a path. `width` is the width of the stroke in units.
  paint(path, { fill, stroke, width }) {
    const { context } = this;
    Object.assign(context, { fillStyle: fill, strokeStyle: stroke, lineWidth: width * this.unit });
    if (fill) context.fill(path, "evenodd");
    if (stroke) context.stroke(path);
  }

  // Write a text on a dark plate above a point, inside the frame.
  label(text, [x, y], color) {
    const { context, unit } = this;
    const size = 8 * unit;
    context.font = `${size}px system-ui, sans-serif`;
    const width = context.measureText(text).width + size / 2;
    const left = Math.max(0, Math.min(x, this.size[0] - width));
    const top = Math.max(0, y - 1.3 * size);
    context.fillStyle = "#000000b0";
    context.fillRect(left, top, width, 1.3 * size);
    context.fillStyle = color;
    context.fillText(text, left + size / 4, top + size);
  }
}
