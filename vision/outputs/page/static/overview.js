// The overview: one tile per camera.
import { el, link, number, setText } from "./dom.js";
import { openHealth } from "./health.js";
import { mountLive } from "./live_mount.js";

const STATES = {
  streaming: "streaming",
  connecting: "connecting",
  frozen: "frozen",
  "backing-off": "no connection",
  ended: "ended",
};

export const stateText = (camera) => STATES[camera.state] ?? camera.state;

// Return why a camera does not deliver frames, and what to do about it.
export function reason(camera) {
  const retry = camera.next_retry_in_s === undefined ? "" : `Next attempt in ${number(camera.next_retry_in_s)} s.`;
  return [camera.last_error, camera.hint, retry].filter(Boolean).join(" – ");
}

export function dropText(camera) {
  const reasons = Object.entries(camera.dropped).filter(([, count]) => count > 0);
  return reasons.map(([why, count]) => `${why} ${number(count)}`).join(", ") || "none";
}

let lastOpened = ""; // camera, whose tile receives the focus when a person returns

class Tile {
  constructor(id) {
    this.id = id;
    this.view = el("div", { class: "view" });
    this.badge = el("span", { class: "badge" });
    this.reason = el("p", { class: "reason" });
    this.drops = el("p", { class: "drops" });
    this.values = {};
    const figures = el("dl", { class: "figures" });
    for (const [key, title] of [["fps", "frames/s"], ["p50", "p50 ms"], ["p99", "p99 ms"], ["objects", "objects"]]) {
      this.values[key] = el("dd");
      figures.append(el("div", {}, el("dt", {}, title), this.values[key]));
    }
    this.element = el(
      "article",
      { class: "tile" },
      el("a", { class: "view-link", href: link("camera", id), "aria-label": `Open ${id}` }, this.view),
      el("header", {}, el("h2", {}, id), this.badge),
      this.reason,
      figures,
      this.drops,
    );
    this.element.firstChild.addEventListener("click", () => (lastOpened = id));
    this.close = mountLive(this.view, id);
  }

  update(camera) {
    this.element.dataset.state = camera.state;
    setText(this.badge, stateText(camera));
    setText(this.reason, reason(camera));
    setText(this.values.fps, number(camera.published_fps, 1));
    setText(this.values.p50, number(camera.latency_ms?.p50, 0));
    setText(this.values.p99, number(camera.latency_ms?.p99, 0));
    setText(this.values.objects, number(camera.objects));
    setText(this.drops, `dropped: ${dropText(camera)}`);
  }
}

export function open(main, _parameter, store) {
  const grid = el("section", { class: "grid", "aria-label": "Cameras" });
  const tiles = new Map();
  const health = el("section", { "aria-label": "Program" });
  main.append(el("h1", { class: "hidden" }, "Cameras"), health, grid);
  const closeHealth = openHealth(health, store);
  const stop = store.listen((state) => {
    if (state === null) return;
    for (const [id, tile] of tiles) {
      if (state.cameras.some((camera) => camera.camera === id)) continue;
      tile.close();
      tile.element.remove();
      tiles.delete(id);
    }
    for (const camera of state.cameras) {
      if (!tiles.has(camera.camera)) {
        tiles.set(camera.camera, new Tile(camera.camera));
        const { element } = tiles.get(camera.camera);
        grid.append(element);
        if (camera.camera === lastOpened) element.firstChild.focus();
      }
      tiles.get(camera.camera).update(camera);
    }
  });
  return () => {
    stop();
    closeHealth();
    for (const tile of tiles.values()) tile.close();
  };
}
