// The overview: one tile per camera.
import { dropText, el, join, link, number, setRows, setText } from "./dom.js";
import { openHealth } from "./health.js";
import { LiveView } from "./live.js";

// The live view of a camera, with its state and the reason why it does not deliver frames.
export class CameraView {
  constructor(id) {
    this.view = el("div", { class: "view" });
    this.badge = el("span", { class: "badge" });
    this.reason = el("p", { class: "reason" });
    this.live = new LiveView(this.view, id);
    this.live.start();
  }

  update(camera) {
    const { state, width, height } = camera;
    setText(this.badge, state === "backing-off" ? "no connection" : state);
    const retry = camera.next_retry_in_s === undefined ? "" : `Next attempt in ${number(camera.next_retry_in_s)} s.`;
    setText(this.reason, join(this.live.reason ? [retry] : [camera.last_error, camera.hint, retry], " – "));
    if (width) this.view.style.setProperty("--ratio", width / height);
  }
}

let lastOpened = ""; // camera, whose tile receives the focus when a person returns

class Tile extends CameraView {
  constructor(id) {
    super(id);
    this.drops = el("p", { class: "drops" });
    this.figures = el("dl", { class: "figures" });
    this.link = el("a", { class: "view-link", href: link("camera", id), "aria-label": `Open ${id}`, onclick: () => (lastOpened = id) }, this.view);
    this.element = el("article", { class: "tile" }, this.link, el("header", {}, el("h2", {}, id), this.badge), this.reason, this.figures, this.drops);
  }

  update(camera) {
    super.update(camera);
    this.element.dataset.state = camera.state;
    const { p50, p99 } = camera.latency_ms ?? {};
    setRows(this.figures, [["frames/s", number(camera.published_fps, 1)], ["p50 ms", number(p50)], ["p99 ms", number(p99)], ["objects", number(camera.objects)]]);
    setText(this.drops, `dropped: ${dropText(camera.dropped)}`);
  }
}

export function open(main, _parameter, store) {
  const grid = el("section", { class: "grid", "aria-label": "Cameras" });
  const tiles = new Map();
  const health = el("section", { "aria-label": "Program" });
  main.append(el("h1", { class: "hidden" }, "Cameras"), health, grid);
  const closeHealth = openHealth(health, store);
  const stop = store.listen((state) => {
    for (const [id, tile] of tiles) {
      if (store.camera(id)) continue;
      tile.live.stop();
      tile.element.remove();
      tiles.delete(id);
    }
    for (const camera of state?.cameras ?? []) {
      const id = camera.camera;
      if (!tiles.has(id)) {
        const tile = new Tile(id);
        tiles.set(id, tile);
        grid.append(tile.element);
        if (id === lastOpened) tile.link.focus();
      }
      tiles.get(id).update(camera);
    }
  });
  return () => {
    stop();
    closeHealth();
    for (const tile of tiles.values()) tile.live.stop();
  };
}
