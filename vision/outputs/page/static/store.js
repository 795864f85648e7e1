// The state of the program, which the page requests once per second while it is visible.
import { getJson } from "./dom.js";

const INTERVAL_MS = 1000;

export class Store {
  // `state` is the last answer of the server, or null. `problem` is the reason why there is no newer one; empty if there is none.
  constructor() {
    this.state = null;
    this.problem = "";
    this.listeners = new Set();
    this.timer = null;
    this.busy = false;
    document.addEventListener("visibilitychange", () => this.refresh());
  }

  // Call `listener` after each request, and now if a state is known. Return a function that removes the listener.
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
