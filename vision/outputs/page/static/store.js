// The state of the program, which the page requests once per second while it is visible.
import { getJson } from "./dom.js";

const INTERVAL_MS = 1000;

export class Store {
  // `state` is the last answer of the server, or null. `problem` says why there is no newer one, or is empty.
  constructor() {
    this.state = null;
    this.problem = "";
    this.listeners = new Set();
    this.timer = null;
    this.busy = false;
    document.addEventListener("visibilitychange", () => this.refresh());
  }

  // Call `listener` now and after each answer. Return a function that ends this.
  listen(listener) {
    this.listeners.add(listener);
    if (this.state !== null) listener(this.state);
    return () => this.listeners.delete(listener);
  }

  camera(id) {
    return this.state?.cameras.find((camera) => camera.camera === id) ?? null;
  }

  // Request the state, and again after the interval. A hidden page requests nothing.
  async refresh() {
    clearTimeout(this.timer);
    if (document.hidden || this.busy) return;
    this.busy = true;
    try {
      this.state = await getJson("/api/state");
      this.problem = "";
    } catch (error) {
      this.problem = error.message;
    }
    this.busy = false;
    for (const listener of this.listeners) listener(this.state, this.problem);
    this.timer = setTimeout(() => this.refresh(), INTERVAL_MS);
  }
}
