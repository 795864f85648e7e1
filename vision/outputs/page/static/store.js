// The state of the program, which the page requests once per second while it is visible.
import { request } from "./dom.js";

const INTERVAL_MS = 1000;

export class Store {
  // `state` is the last answer of the server, or null. `problem` is the reason why there is no newer one; empty if there is none.
  constructor() {
    this.state = null;
    this.listeners = new Set();
    document.addEventListener("visibilitychange", () => this.refresh());
  }

  // Call `listener(state, problem)` after each request, and now if a state is known. Return a function that ends this.
  listen(listener) {
    this.listeners.add(listener);
    if (this.state !== null) listener(this.state, this.problem);
    return () => this.listeners.delete(listener);
  }

  // Return the state of a camera; undefined if it is unknown.
  camera(id) {
    return this.state?.cameras.find(({ camera }) => camera === id);
  }

  // Request the state, and again after the interval. A hidden page requests nothing.
  async refresh() {
    clearTimeout(this.timer);
    if (document.hidden || this.busy) return;
    this.busy = true;
    const answer = await request("/api/state");
    this.busy = false;
    this.problem = answer.error ?? "";
    if (!this.problem) this.state = answer;
    for (const listener of this.listeners) listener(this.state, this.problem);
    this.timer = setTimeout(() => this.refresh(), INTERVAL_MS);
  }
}
