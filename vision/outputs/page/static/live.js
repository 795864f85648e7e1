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
const COLORS = ["#4fc3f7", "#ffb74d", "#81c784", "#f06292", "#fff176", "#ba68c8", "#4db6ac", "#ff8a65", "#90a4ae", "#dce775"];
const LINE_COLOR = "#ffe13c";
const ZONE_COLOR = "#78a0ff";
const STATES = {
  connecting: "Connecting to the camera.",
  frozen: "The camera repeats the same frame.",
  "backing-off": "No connection to the camera.",
  ended: "The source has ended.",
  removed: "The camera was removed.",
};

// --- the connection -------------------------------------------------------------------------------------------------

let supported = null; // a promise of the codecs that this browser decodes

function supportedCodecs() {
  supported ??= (async () => {
    if (typeof VideoDecoder === "undefined") return [];
    const names = [];
    for (const [name, codec] of Object.entries(CODECS)) {
      const answer = await VideoDecoder.isConfigSupported({ codec }).catch(() => ({ supported: false }));
      if (answer.supported) names.push(name);
    }
    return names;
  })();
  return supported;
}

// One web socket for all views of the page.
class Connection {
  constructor() {
    this.views = new Map(); // a set of views by camera
    this.socket = null;
    this.timer = 0;
  }

  add(view) {
    if (!this.views.has(view.cameraId)) this.views.set(view.cameraId, new Set());
    this.views.get(view.cameraId).add(view);
    if (this.socket === null) this.open();
    else this.watch(view.cameraId);
  }

  remove(view) {
    const views = this.views.get(view.cameraId);
    if (!views?.delete(view) || views.size) return;
    this.views.delete(view.cameraId);
    if (this.views.size) {
      this.send({ leave: view.cameraId });
      return;
    }
    clearTimeout(this.timer);
    const { socket } = this;
    this.socket = null;
    // A browser reports an error if a connection that is just being opened is closed.
    if (socket?.readyState === WebSocket.CONNECTING) socket.onopen = () => socket.close();
    else socket?.close();
  }

  open() {
    clearTimeout(this.timer);
    const url = new URL("/api/live", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      for (const camera of this.views.keys()) this.watch(camera);
    };
    socket.onmessage = ({ data }) => this.receive(data);
    socket.onclose = ({ reason }) => {
      if (this.socket !== socket) return;
      this.each((view) => view.disconnected(reason));
      this.timer = setTimeout(() => this.open(), RETRY_MS);
    };
    this.socket = socket;
  }

  // Request the live view of a camera, starting with its next key frame.
  async watch(camera) {
    const codecs = await supportedCodecs();
    const views = this.views.get(camera);
    if (!views) return;
    const decodes = [...views].every((view) => view.decodes);
    this.send({ watch: camera, codecs: decodes ? codecs : [] });
  }

  send(wish) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(wish));
  }

  each(call) {
    for (const views of this.views.values()) views.forEach(call);
  }

  // Split a message into its records, and pass each to the views of its camera.
  receive(buffer) {
    const numbers = new DataView(buffer);
    for (let at = 0; at < buffer.byteLength; ) {
      const [head, length] = [numbers.getUint32(at), numbers.getUint32(at + 4)];
      const header = JSON.parse(text.decode(new Uint8Array(buffer, at + 8, head)));
      const data = new Uint8Array(buffer, at + 8 + head, length);
      at += 8 + head + length;
      this.views.get(header.camera)?.forEach((view) => view.receive(header, data));
    }
  }
}

const text = new TextDecoder();
const connection = new Connection();

// --- frames and results ---------------------------------------------------------------------------------------------

// Decodes the packets of one camera, and holds each frame until its result arrives.
class Frames {
  // `show(frame, result)` draws a frame, which is closed afterwards. `failed()` is called after an error.
  constructor(show, failed) {
    this.show = show;
    this.failed = failed;
    this.decoder = null;
    this.stream = 0;
    this.codec = "";
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
    this.stream = stream;
    this.codec = codec;
    const decoder = new VideoDecoder({
      output: (frame) => this.decoded(frame, stream),
      error: () => decoder === this.decoder && this.failed(),
    });
    this.decoder = decoder;
    decoder.configure({ codec, optimizeForLatency: true });
  }

  decoded(frame, stream) {
    const pixels = frame.codedWidth * frame.codedHeight;
    this.held.push({ frame, stream, key: `${stream}:${frame.timestamp}`, at: performance.now() });
    this.held.sort((a, b) => a.stream - b.stream); // the last frames of an old stream can arrive late
    const known = this.held.findLastIndex(({ key }) => this.results.has(key));
    if (known >= 0) this.showUpTo(known);
    const now = performance.now();
    const most = Math.min(HELD_FRAMES, HELD_PIXELS / pixels);
    while (this.held.length > most || (this.held.length && now - this.held[0].at > HELD_MS)) {
      const { frame: oldest } = this.held.shift();
      this.show(oldest, null);
      oldest.close();
    }
  }

  result({ stream, time, result }) {
    const key = `${stream}:${time}`;
    this.results.set(key, result);
    if (this.results.size > HELD_RESULTS) this.results.delete(this.results.keys().next().value);
    const index = this.held.findIndex((each) => each.key === key);
    if (index >= 0) this.showUpTo(index);
  }

  // Show a held frame. The frames before it have no results.
  showUpTo(index) {
    const passed = this.held.splice(0, index + 1);
    for (const { frame, key } of passed) {
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
  // detail is the result, or null.
  constructor(element, cameraId) {
    this.element = element;
    this.cameraId = cameraId;
    this.decodes = true; // false if a decoder failed repeatedly
    this.failures = [];
    this.canvas = document.createElement("canvas");
    this.canvas.className = "live-canvas";
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `Live view of ${cameraId}`);
    this.note = document.createElement("p");
    this.note.className = "live-note";
    this.note.setAttribute("role", "status");
    this.overlay = new Overlay(this.canvas);
    this.frames = null;
    this.shown = null; // epoch and frame number of the last frame
    this.running = false;
    this.visible = true;
    this.observer = new IntersectionObserver((entries) => {
      this.visible = entries.at(-1).isIntersecting;
      this.update();
    });
    this.sizes = new ResizeObserver(() => this.overlay.resize());
    this.update = () => this.wants(this.running && this.visible && !document.hidden);
  }

  start() {
    if (this.running) return;
    this.running = true;
    this.element.append(this.canvas, this.note);
    this.say("Waiting for the first frame.");
    this.observer.observe(this.element);
    this.sizes.observe(this.canvas);
    document.addEventListener("visibilitychange", this.update);
    this.update();
  }

  stop() {
    this.running = false;
    this.update();
    this.observer.disconnect();
    this.sizes.disconnect();
    document.removeEventListener("visibilitychange", this.update);
    this.canvas.remove();
    this.note.remove();
  }

  wants(wanted) {
    if (wanted === (this.frames !== null)) return;
    if (wanted) {
      this.frames = new Frames((frame, result) => this.show(frame, result), () => this.failed());
      connection.add(this);
    } else {
      connection.remove(this);
      this.frames.close();
      this.frames = null;
    }
    this.shown = null;
  }

  receive(header, data) {
    if (this.frames === null) return;
    switch (header.kind) {
      case "packet":
        this.frames.packet(header, data);
        break;
      case "result":
        this.frames.result(header);
        break;
      case "image":
        this.image(header.result, data);
        break;
      case "scene":
        this.overlay.scene = header;
        break;
      case "counts":
        this.overlay.counts = header;
        break;
      case "state":
        this.say(header.state === "streaming" ? "" : [STATES[header.state] ?? header.state, header.reason].join(" "));
        break;
    }
  }

  async image(result, data) {
    const bitmap = await createImageBitmap(new Blob([data], { type: "image/jpeg" })).catch(() => null);
    if (bitmap === null) return;
    this.show(bitmap, result);
    bitmap.close();
  }

  show(image, result) {
    if (this.frames === null || (result !== null && this.isOld(result))) return;
    if (result !== null) this.shown = [result.epoch, result.frame];
    this.overlay.draw(image, result);
    if (this.note.dataset.waiting) this.say("");
    this.element.dispatchEvent(new CustomEvent("visionframe", { detail: result, bubbles: true }));
  }

  isOld({ epoch, frame }) {
    return this.shown !== null && (epoch < this.shown[0] || (epoch === this.shown[0] && frame <= this.shown[1]));
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
    this.frames?.close();
    this.shown = null;
    this.say(`No connection to the program${reason ? `: ${reason}` : ""}. Trying again.`);
    this.note.dataset.waiting = "yes";
  }

  say(words) {
    if (this.note.textContent !== words) this.note.textContent = words;
    if (words === "Waiting for the first frame.") this.note.dataset.waiting = "yes";
    else delete this.note.dataset.waiting;
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
    this.colors = new Map(); // by class
    this.frame = 0;
    this.pixels = [0, 0];
  }

  // Note the size of the canvas on the screen, so that drawing a frame needs no layout.
  resize() {
    const ratio = window.devicePixelRatio || 1;
    this.pixels = [this.canvas.clientWidth * ratio, this.canvas.clientHeight * ratio];
  }

  // Draw an image with its result. If the result is null, draw only what does not depend on the frame.
  draw(image, result) {
    const { canvas, context } = this;
    const width = result?.width ?? image.displayWidth ?? image.width;
    const height = result?.height ?? image.displayHeight ?? image.height;
    if (!this.pixels[0]) this.resize();
    const scale = Math.min(1, Math.max(this.pixels[0] / width, this.pixels[1] / height) || 1);
    const size = [Math.round(width * scale), Math.round(height * scale)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(image, 0, 0, ...size);
    context.setTransform(size[0] / width, 0, 0, size[1] / height, 0, 0);
    this.unit = Math.max(1, (1.5 * (window.devicePixelRatio || 1)) / (size[0] / width)); // a stroke, in frame pixels
    context.lineJoin = "round";
    this.drawScene(width, height);
    if (result !== null) this.drawObjects(result);
  }

  drawScene(width, height) {
    const { context, unit } = this;
    const place = (units) => {
      const [x, y] = { fraction: [width, height], percent: [width / 100, height / 100] }[units] ?? [1, 1];
      return (point) => [point[0] * x, point[1] * y];
    };
    for (const { units, polygon } of this.scene.masks) {
      this.path([polygon.map(place(units))]);
      context.fillStyle = "#000";
      context.fill();
    }
    for (const { name, units, polygon, holes } of this.scene.zones) {
      const rings = [polygon, ...holes].map((ring) => ring.map(place(units)));
      this.path(rings);
      context.fillStyle = `${ZONE_COLOR}2e`;
      context.fill("evenodd");
      context.strokeStyle = ZONE_COLOR;
      context.lineWidth = unit;
      context.stroke();
      const occupancy = this.counts.zones[name]?.occupancy;
      this.label(occupancy === undefined ? name : `${name} ${occupancy}`, ...rings[0][0], ZONE_COLOR);
    }
    for (const { name, units, points } of this.scene.lines) {
      const [from, to] = points.map(place(units));
      context.beginPath();
      context.moveTo(...from);
      context.lineTo(...to);
      context.strokeStyle = LINE_COLOR;
      context.lineWidth = 2 * unit;
      context.stroke();
      const counts = this.counts.lines[name];
      this.label(counts ? `${name} ${counts.in} in ${counts.out} out` : name, ...from, LINE_COLOR);
    }
  }

  drawObjects(result) {
    const { context, unit } = this;
    this.frame += 1;
    for (const object of result.objects) {
      const color = this.color(object.class);
      const [left, top, right, bottom] = object.box;
      context.strokeStyle = color;
      context.lineWidth = 1.5 * unit;
      for (const polygon of object.mask?.polygons ?? []) {
        this.path([polygon]);
        context.fillStyle = `${color}66`;
        context.fill();
      }
      if (object.corners) this.path([object.corners]);
      else {
        context.beginPath();
        context.rect(left, top, right - left, bottom - top);
      }
      context.stroke();
      this.drawTail(object, color);
      const words = [object.class, object.track_id, ...(object.attributes ?? []).map((each) => each.class)];
      this.label(words.filter((word) => word !== undefined).join(" "), left, top, color);
    }
    for (const [id, tail] of this.tails) if (this.frame - tail.frame > TAIL_FRAMES) this.tails.delete(id);
  }

  drawTail({ track_id: id, box: [left, , right, bottom] }, color) {
    if (id === undefined) return;
    const tail = this.tails.get(id) ?? { points: [], frame: 0 };
    tail.points = [...tail.points, [(left + right) / 2, bottom]].slice(-TAIL_FRAMES);
    tail.frame = this.frame;
    this.tails.set(id, tail);
    this.context.beginPath();
    tail.points.forEach((point) => this.context.lineTo(...point));
    this.context.strokeStyle = color;
    this.context.lineWidth = this.unit;
    this.context.stroke();
  }

  path(rings) {
    this.context.beginPath();
    for (const ring of rings) {
      ring.forEach((point, index) => this.context[index ? "lineTo" : "moveTo"](...point));
      this.context.closePath();
    }
  }

  // Write text on a dark plate above a point, inside the frame.
  label(words, x, y, color) {
    const { context, unit } = this;
    const size = 8 * unit;
    context.font = `${size}px system-ui, sans-serif`;
    const width = context.measureText(words).width + size / 2;
    const left = Math.max(0, Math.min(x, context.canvas.width / context.getTransform().a - width));
    const top = Math.max(0, y - 1.3 * size);
    context.fillStyle = "#000000b0";
    context.fillRect(left, top, width, 1.3 * size);
    context.fillStyle = color;
    context.fillText(words, left + size / 4, top + size);
  }

  color(name) {
    if (!this.colors.has(name)) this.colors.set(name, COLORS[this.colors.size % COLORS.length]);
    return this.colors.get(name);
  }
}
