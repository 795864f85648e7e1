// The live view of one camera: its frames, with the boxes, tracks, lines, and zones of exactly these frames.
//
// The server sends coded frames and their results separately (live_format.py). A decoded frame is held until its result
// arrives, so the boxes on a frame are always those of this frame. A frame without a result was skipped by the program,
// and is not shown, unless no result arrives for two seconds, or too many frames are held.

const HELD_FRAMES = 60;
const HELD_PIXELS = 4e7;
const HELD_MS = 2000;
const HELD_RESULTS = 128;
const RETRY_MS = 1000;
const TAIL_FRAMES = 30;
const FAILURES = 3; // of a decoder, after which the view shows images
const FAILURES_MS = 30000;
const CODECS = { h264: "avc1.640028", hevc: "hev1.1.6.L120.B0" };
const STYLES = { mask: { fill: "#000" }, zone: { stroke: "#78a0ff", fill: "#78a0ff2e", width: 1 }, line: { stroke: "#ffe13c", width: 2 } };
const WAITING = "Waiting for the first frame.";

// --- the connection -------------------------------------------------------------------------------------------------

// The codecs that this browser decodes. Browsers offer `VideoDecoder` only on pages that are encrypted or local.
const supported = Promise.all(Object.entries(CODECS).map(([name, codec]) =>
  globalThis.VideoDecoder?.isConfigSupported({ codec }).then((answer) => answer.supported && name, () => false),
)).then((names) => names.filter(Boolean));

const views = new Map(); // by camera
let socket = null; // for all views of the page

function open() {
  if (socket || !views.size) return;
  const opened = new WebSocket(`${location.origin.replace("http", "ws")}/api/live`);
  opened.binaryType = "arraybuffer";
  opened.onopen = () => {
    for (const view of views.values()) watch(view);
    closeUnused();
  };
  opened.onmessage = ({ data }) => receive(data);
  opened.onclose = ({ reason }) => {
    if (socket !== opened) return;
    socket = null;
    for (const view of views.values()) view.disconnected(reason);
    setTimeout(open, RETRY_MS);
  };
  socket = opened;
}

// Close the connection if no view needs it. Browsers report an error if one that is just being opened is closed.
function closeUnused() {
  if (views.size || socket?.readyState !== WebSocket.OPEN) return;
  socket.close();
  socket = null;
}

function send(wish) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(wish));
}

// Request the live view of a camera, starting with its next key frame.
async function watch({ cameraId, decodes }) {
  const codecs = decodes ? await supported : [];
  if (views.has(cameraId)) send({ watch: cameraId, codecs });
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

// --- frames and results ---------------------------------------------------------------------------------------------

export class LiveView {
  decodes = true; // false if a decoder failed repeatedly
  failures = [];
  stream = 0;
  isVisible = false;

  // `start` adds a canvas and a note to `element`. Each frame is also announced by the event `visionframe`, whose
  // detail is the result, or null. Nothing is received while the element or the page is not visible.
  constructor(element, cameraId) {
    Object.assign(this, { element, cameraId });
    this.canvas = document.createElement("canvas");
    Object.assign(this.canvas, { role: "img", ariaLabel: `Live view of ${cameraId}` });
    this.note = document.createElement("p");
    Object.assign(this.note, { role: "status", className: "live-note" });
    this.overlay = new Overlay(this.canvas);
    this.observer = new IntersectionObserver((entries) => {
      this.isVisible = entries.at(-1).isIntersecting;
      this.update();
    });
    this.sizes = new ResizeObserver(() => this.overlay.resize());
    this.reset();
  }

  start() {
    this.element.append(this.canvas, this.note);
    this.say(WAITING);
    this.observer.observe(this.element);
    this.sizes.observe(this.canvas);
    document.addEventListener("visibilitychange", this.update);
  }

  stop() {
    this.observer.disconnect();
    this.sizes.disconnect();
    document.removeEventListener("visibilitychange", this.update);
    this.isVisible = false;
    this.update();
  }

  update = () => {
    const isWanted = this.isVisible && !document.hidden;
    if (isWanted === (views.get(this.cameraId) === this)) return;
    this.reset();
    if (isWanted) {
      views.set(this.cameraId, this);
      if (socket) watch(this);
      else open();
    } else {
      views.delete(this.cameraId);
      send({ leave: this.cameraId });
      closeUnused();
    }
  };

  // Forget what was received.
  reset() {
    if (this.decoder?.state !== "closed") this.decoder?.close();
    for (const { frame } of this.held ?? []) frame.close();
    Object.assign(this, { decoder: null, shown: null }); // `shown` is the last result
    this.held = []; // decoded frames in the order of presentation
    this.results = new Map(); // by stream and time
  }

  // Start again with a key frame, or with images if that fails repeatedly.
  failed() {
    const now = performance.now();
    this.failures = [...this.failures.filter((at) => now - at < FAILURES_MS), now];
    this.decodes = this.failures.length < FAILURES;
    this.reset();
    watch(this);
  }

  disconnected(reason) {
    this.reset();
    this.say(`No connection to the program${reason && `: ${reason}`}. Trying again.`);
    this.isWaiting = true;
  }

  say(words) {
    this.isWaiting = words === WAITING;
    this.note.textContent = words;
    this.note.hidden = !words;
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
    if (bitmap && views.get(this.cameraId) === this) this.show(bitmap, result);
    bitmap?.close();
  }

  scene({ shapes }) {
    this.overlay.shapes = shapes;
  }

  counts(counts) {
    this.overlay.counts = counts;
  }

  state({ text }) {
    this.say(text);
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
    if (this.isWaiting) this.say("");
    this.element.dispatchEvent(new CustomEvent("visionframe", { detail: result, bubbles: true }));
  }
}

// --- drawing --------------------------------------------------------------------------------------------------------

// Colors of successive classes differ by the golden angle.
const colorOf = (classId, alpha = 1) => `hsl(${Math.round(classId * 137.5 + 200) % 360} 90% 70% / ${alpha})`;

class Overlay {
  shapes = []; // lines, zones, and masks
  counts = { texts: {} }; // of lines and zones
  tails = new Map(); // the last positions of each track
  frame = 0;

  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
  }

  // Note the size of the canvas on the screen, so that drawing a frame needs no layout.
  resize() {
    this.ratio = window.devicePixelRatio || 1;
    this.pixels = [this.canvas.clientWidth * this.ratio, this.canvas.clientHeight * this.ratio];
  }

  // Draw an image with its result. If the result is null, draw only what does not depend on the frame.
  draw(image, result) {
    const { canvas, context } = this;
    const [width, height] = [result?.width ?? image.displayWidth ?? image.width, result?.height ?? image.displayHeight ?? image.height];
    if (!this.pixels?.[0]) this.resize();
    const scale = Math.min(1, Math.max(this.pixels[0] / width, this.pixels[1] / height) || 1);
    const size = [width, height].map((side) => Math.round(side * scale));
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    const excess = (this.pixels[0] * height) / (this.pixels[1] * width);
    canvas.style.objectFit = Math.abs(excess - 1) < 0.01 ? "fill" : ""; // no bars of a part of a pixel
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(image, 0, 0, ...size);
    context.setTransform(size[0] / width, 0, 0, size[1] / height, 0, 0);
    context.lineJoin = "round";
    this.size = [width, height];
    this.unit = Math.max(1, (1.5 * this.ratio * width) / size[0]); // a stroke, in frame pixels
    this.drawScene();
    if (result) this.drawObjects(result);
  }

  drawScene() {
    const [width, height] = this.size;
    for (const { kind, name, units, rings } of this.shapes) {
      const [x, y] = { fraction: [width, height], percent: [width / 100, height / 100] }[units] ?? [1, 1];
      // The positions in the present view of a camera that was moved. Masks stay where they are.
      const [xx, xy, dx, yx, yy, dy] = (kind !== "mask" && this.counts.view) || [1, 0, 0, 0, 1, 0];
      const place = (px, py) => [xx * px + xy * py + dx, yx * px + yy * py + dy];
      const places = rings.map((points) => points.map((point) => place(point[0] * x, point[1] * y)));
      this.path(places, STYLES[kind]);
      if (name) this.label([name, this.counts.texts[`${kind} ${name}`]], places[0][0], STYLES[kind].stroke);
    }
  }

  drawObjects({ objects }) {
    this.frame += 1;
    for (const { class: name, class_id: classId, track_id: id, box, corners, mask, attributes } of objects) {
      const color = colorOf(classId);
      const [left, top, right, bottom] = box;
      for (const polygon of mask?.polygons ?? []) this.path([polygon], { fill: colorOf(classId, 0.4) });
      this.path([corners ?? [[left, top], [right, top], [right, bottom], [left, bottom]]], { stroke: color, width: 1.5 });
      if (id !== undefined) {
        const points = [...(this.tails.get(id)?.points ?? []), [(left + right) / 2, bottom]].slice(-TAIL_FRAMES);
        this.tails.set(id, { points, frame: this.frame });
        this.path([points], { stroke: color, width: 1, isOpen: true });
      }
      this.label([name, id, ...(attributes ?? []).map((each) => each.class)], [left, top], color);
    }
    for (const [id, { frame }] of this.tails) if (this.frame - frame > TAIL_FRAMES) this.tails.delete(id);
  }

  // Draw rings of points. `width` is the width of the stroke in units.
  path(rings, { stroke, width, fill, isOpen }) {
    const { context } = this;
    context.beginPath();
    for (const ring of rings) {
      context.moveTo(...ring[0]);
      for (const point of ring) context.lineTo(...point);
      if (!isOpen) context.closePath();
    }
    Object.assign(context, { fillStyle: fill, strokeStyle: stroke, lineWidth: width * this.unit });
    if (fill) context.fill("evenodd");
    if (stroke) context.stroke();
  }

  // Write words on a dark plate above a point, inside the frame.
  label(words, [x, y], color) {
    const { context, unit } = this;
    const text = words.filter((word) => word !== undefined).join(" ");
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
