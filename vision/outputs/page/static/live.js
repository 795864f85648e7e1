// The live view of one camera: its frames, with the boxes, tracks, lines, and zones of exactly these frames.
//
// The server sends coded frames and their results separately (live_format.py). A decoded frame is held until its result
// arrives, so the boxes on a frame are always those of this frame. A frame without a result was skipped by the program,
// and is not shown, unless no result arrives for two seconds, or too many frames are held.
import { el, join, setText } from "./dom.js";

const HELD_FRAMES = 60;
const HELD_PIXELS = 4e7;
const HELD_MS = 2000;
const HELD_RESULTS = 128;
const RETRY_MS = 1000;
const TAIL_FRAMES = 30;
const FAILURES = 3; // of a decoder, after which the view shows images
const FAILURES_MS = 30000;
const CODECS = { h264: "avc1.640028", hevc: "hev1.1.6.L120.B0" };
const COLORS = ["#4fc3f7", "#ffb74d", "#81c784", "#f06292", "#fff176", "#ba68c8", "#4db6ac", "#ff8a65", "#90a4ae", "#dce775"];
const LINE_COLOR = "#ffe13c";
const ZONE_COLOR = "#78a0ff";
const WAITING = "Waiting for the first frame.";
const STATES = {
  streaming: "",
  connecting: "Connecting to the camera.",
  frozen: "The camera repeats the same frame.",
  "backing-off": "No connection to the camera.",
  ended: "The source has ended.",
  removed: "The camera was removed.",
};

// --- the connection -------------------------------------------------------------------------------------------------

// The codecs that this browser decodes. Browsers offer `VideoDecoder` only on pages that are encrypted or local.
const supported = Promise.all(Object.entries(CODECS).map(([name, codec]) =>
  globalThis.VideoDecoder?.isConfigSupported({ codec }).then((answer) => answer.supported && name, () => false),
)).then((names) => names.filter(Boolean));

// One web socket for all views of the page.
const connection = {
  views: new Map(), // a set of views by camera
  socket: null,

  add(view) {
    if (!this.views.has(view.cameraId)) this.views.set(view.cameraId, new Set());
    this.views.get(view.cameraId).add(view);
    if (this.socket === null) this.open();
    else this.watch(view.cameraId);
  },

  remove(view) {
    const views = this.views.get(view.cameraId);
    if (!views?.delete(view) || views.size) return;
    this.views.delete(view.cameraId);
    if (this.views.size) return this.send({ leave: view.cameraId });
    clearTimeout(this.timer);
    const { socket } = this;
    this.socket = null;
    // A browser reports an error if a connection that is just being opened is closed.
    if (socket.readyState === WebSocket.CONNECTING) socket.onopen = () => socket.close();
    else socket.close();
  },

  open() {
    const socket = new WebSocket(`${location.origin.replace("http", "ws")}/api/live`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => [...this.views.keys()].forEach((camera) => this.watch(camera));
    socket.onmessage = ({ data }) => this.receive(data);
    socket.onclose = ({ reason }) => {
      if (this.socket !== socket) return;
      for (const views of this.views.values()) views.forEach((view) => view.disconnected(reason));
      this.timer = setTimeout(() => this.open(), RETRY_MS);
    };
    this.socket = socket;
  },

  // Request the live view of a camera, starting with its next key frame.
  async watch(camera) {
    const codecs = await supported;
    const views = this.views.get(camera);
    if (views) this.send({ watch: camera, codecs: [...views].every((view) => view.decodes) ? codecs : [] });
  },

  send(wish) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(wish));
  },

  // Split a message into its records, and pass each to the views of its camera.
  receive(buffer) {
    const numbers = new DataView(buffer);
    for (let at = 0; at < buffer.byteLength; ) {
      const [head, length] = [numbers.getUint32(at), numbers.getUint32(at + 4)];
      const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, at + 8, head)));
      const data = new Uint8Array(buffer, at + 8 + head, length);
      at += 8 + head + length;
      this.views.get(header.camera)?.forEach((view) => view.receive(header, data));
    }
  },
};

// --- frames and results ---------------------------------------------------------------------------------------------

// Decodes the packets of one camera, and holds each frame until its result arrives.
class Frames {
  // `show(frame, result)` draws a frame, which is closed afterwards. `failed()` is called after an error.
  constructor(show, failed) {
    Object.assign(this, { show, failed, stream: 0, codec: "", decoder: null });
    this.held = []; // decoded frames in the order of presentation
    this.results = new Map(); // by stream and time
  }

  packet({ stream, time, key, codec }, data) {
    if (key && (stream !== this.stream || codec !== this.codec || this.decoder === null)) this.start(stream, codec);
    if (this.decoder === null || stream !== this.stream) return;
    try {
      this.decoder.decode(new EncodedVideoChunk({ type: key ? "key" : "delta", timestamp: time, data }));
    } catch {
      this.failed();
    }
  }

  start(stream, codec) {
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

  result({ stream, time, result }) {
    const key = `${stream}:${time}`;
    this.results.set(key, result);
    if (this.results.size > HELD_RESULTS) this.results.delete(this.results.keys().next().value);
    this.showUpTo(this.held.findIndex((each) => each.key === key));
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

  close() {
    if (this.decoder?.state !== "closed") this.decoder?.close();
    this.decoder = null;
    for (const { frame } of this.held) frame.close();
    this.held = [];
    this.results.clear();
  }
}

// --- the view -------------------------------------------------------------------------------------------------------

export class LiveView {
  // `start` adds a canvas and a note to `element`. Each frame is also announced by the event `visionframe`, whose
  // detail is the result, or null. Nothing is received while the element or the page is not visible.
  constructor(element, cameraId) {
    Object.assign(this, { element, cameraId, frames: null, reason: "", visible: false });
    this.decodes = true; // false if a decoder failed repeatedly
    this.failures = [];
    this.canvas = el("canvas", { class: "live-canvas", role: "img", "aria-label": `Live view of ${cameraId}` });
    this.note = el("p", { class: "live-note", role: "status" });
    this.overlay = new Overlay(this.canvas);
    this.observer = new IntersectionObserver((entries) => {
      this.visible = entries.at(-1).isIntersecting;
      this.update();
    });
    this.sizes = new ResizeObserver(() => this.overlay.resize());
    this.update = () => this.wants(this.visible && !document.hidden);
  }

  start() {
    this.element.append(this.canvas, this.note);
    this.say(WAITING);
    this.observer.observe(this.element);
    this.sizes.observe(this.canvas);
    document.addEventListener("visibilitychange", this.update);
  }

  stop() {
    this.wants(false);
    this.observer.disconnect();
    this.sizes.disconnect();
    document.removeEventListener("visibilitychange", this.update);
    this.canvas.remove();
    this.note.remove();
  }

  wants(wanted) {
    if (wanted === (this.frames !== null)) return;
    this.shown = null; // epoch and frame number of the last frame
    if (wanted) {
      this.frames = new Frames((frame, result) => this.show(frame, result), () => this.failed());
      connection.add(this);
    } else {
      connection.remove(this);
      this.frames.close();
      this.frames = null;
    }
  }

  receive(header, data) {
    const { kind, state, reason } = header;
    if (kind === "packet" || kind === "result") this.frames[kind](header, data);
    else if (kind === "image") this.image(header.result, data);
    else if (kind === "state") this.say(join([STATES[state] ?? state, state !== "streaming" && reason]), reason);
    else this.overlay[kind] = header; // scene or counts
  }

  async image(result, data) {
    const bitmap = await createImageBitmap(new Blob([data], { type: "image/jpeg" })).catch(() => null);
    if (bitmap) this.show(bitmap, result);
    bitmap?.close();
  }

  show(image, result) {
    if (this.frames === null || (result && this.isOld(result))) return;
    if (result) this.shown = [result.epoch, result.frame];
    this.overlay.draw(image, result);
    if (this.isWaiting) this.say("");
    this.element.dispatchEvent(new CustomEvent("visionframe", { detail: result, bubbles: true }));
  }

  isOld({ epoch, frame }) {
    return this.shown && (epoch < this.shown[0] || (epoch === this.shown[0] && frame <= this.shown[1]));
  }

  // Start again with a key frame, or with images if that fails repeatedly.
  failed() {
    const now = performance.now();
    this.failures = [...this.failures.filter((at) => now - at < FAILURES_MS), now];
    this.decodes = this.failures.length < FAILURES;
    this.frames?.close();
    connection.watch(this.cameraId);
  }

  disconnected(reason) {
    this.frames.close();
    this.shown = null;
    this.say(`No connection to the program${reason && `: ${reason}`}. Trying again.`);
    this.isWaiting = true;
  }

  // Show a note. `reason` is the part of it that says why the camera does not deliver frames.
  say(words, reason = "") {
    Object.assign(this, { reason, isWaiting: words === WAITING });
    setText(this.note, words);
    this.note.hidden = !words;
  }
}

// --- drawing --------------------------------------------------------------------------------------------------------

class Overlay {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.scene = { lines: [], zones: [], masks: [] };
    this.counts = { lines: {}, zones: {} };
    this.tails = new Map(); // the last positions of each track
    this.classes = []; // in the order of their colors
    this.frame = 0;
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
    const place = ({ units }, points) => {
      const [x, y] = { fraction: [width, height], percent: [width / 100, height / 100] }[units] ?? [1, 1];
      return points.map((point) => [point[0] * x, point[1] * y]);
    };
    // The positions in the present view of a camera that was moved.
    const [xx, xy, dx, yx, yy, dy] = this.counts.view ?? [1, 0, 0, 0, 1, 0];
    const follow = (shape, points) => place(shape, points).map(([x, y]) => [xx * x + xy * y + dx, yx * x + yy * y + dy]);
    for (const mask of this.scene.masks) this.path([place(mask, mask.polygon)], "", 0, "#000");
    for (const zone of this.scene.zones) {
      const rings = [zone.polygon, ...zone.holes].map((ring) => follow(zone, ring));
      this.path(rings, ZONE_COLOR, 1, `${ZONE_COLOR}2e`);
      this.label([zone.name, this.counts.zones[zone.name]?.occupancy], rings[0][0], ZONE_COLOR);
    }
    for (const line of this.scene.lines) {
      const points = follow(line, line.points);
      this.path([points], LINE_COLOR, 2);
      const counts = this.counts.lines[line.name];
      this.label([line.name, counts && `${counts.in} in ${counts.out} out`], points[0], LINE_COLOR);
    }
  }

  drawObjects({ objects }) {
    this.frame += 1;
    for (const { class: name, track_id: id, box, corners, mask, attributes } of objects) {
      if (!this.classes.includes(name)) this.classes.push(name);
      const color = COLORS[this.classes.indexOf(name) % COLORS.length];
      const [left, top, right, bottom] = box;
      for (const polygon of mask?.polygons ?? []) this.path([polygon], "", 0, `${color}66`);
      this.path([corners ?? [[left, top], [right, top], [right, bottom], [left, bottom]]], color, 1.5);
      if (id !== undefined) {
        const points = [...(this.tails.get(id)?.points ?? []), [(left + right) / 2, bottom]].slice(-TAIL_FRAMES);
        this.tails.set(id, { points, frame: this.frame });
        this.path([points], color, 1, "", false);
      }
      this.label([name, id, ...(attributes ?? []).map((each) => each.class)], [left, top], color);
    }
    for (const [id, { frame }] of this.tails) if (this.frame - frame > TAIL_FRAMES) this.tails.delete(id);
  }

  // Draw rings of points, filled with the color `fill` if it is not empty. `width` is the width of the stroke in units.
  path(rings, stroke, width, fill = "", isClosed = true) {
    const { context } = this;
    context.beginPath();
    for (const ring of rings) {
      ring.forEach((point, index) => context[index ? "lineTo" : "moveTo"](...point));
      if (isClosed) context.closePath();
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
