// The overview: one tile per camera.
import { Health } from "./health.js";
import { LiveView } from "./live.js";
import { Component, html, join, link, number, Rows, textOf } from "./ui.js";

// The live view of a camera.
export class Live extends Component {
  componentDidMount() {
    this.view = new LiveView(this.element, this.props.camera.camera);
    this.view.start();
  }

  componentWillUnmount() {
    this.view.stop();
  }

  render({ camera: { width, height } }) {
    const style = width ? { "--ratio": width / height } : null;
    return html`<div class="view" style=${style} ref=${(element) => (this.element = element)}></div>`;
  }
}

export const Badge = ({ state }) => html`<span class="badge" data-state=${state}>${state === "backing-off" ? "no connection" : state}</span>`;

// Why a camera does not deliver frames.
export function Reason({ camera: { last_error: error, hint, next_retry_in_s: retry } }) {
  return html`<p class="reason">${join([error, hint, retry !== undefined && `Next attempt in ${number(retry)} s.`], " – ")}</p>`;
}

function Tile({ camera, focus }) {
  const { camera: id, state, latency_ms: { p50, p99 } = {} } = camera;
  const figures = [["frames/s", number(camera.published_fps, 1)], ["p50 ms", number(p50)], ["p99 ms", number(p99)], ["objects", number(camera.objects)]];
  return html`
    <article class="tile" data-state=${state}>
      <a class="view-link" href=${link("camera", id)} aria-label="Open ${id}" ref=${focus}><${Live} camera=${camera} /></a>
      <header><h2>${id}</h2><${Badge} state=${state} /></header>
      <${Reason} camera=${camera} />
      <${Rows} class="figures" rows=${figures} />
      <p class="hint">dropped: ${textOf("", camera.dropped) || "none"}</p>
    </article>`;
}

export class View extends Component {
  // Return the focus to the camera from which a person returns.
  focus = (anchor) => anchor && anchor.href === this.props.previous && anchor.focus();

  render({ program }) {
    return html`
      <h1 class="hidden">Cameras</h1>
      <${Health} program=${program} />
      <section class="grid" aria-label="Cameras">
        ${program.cameras.map((camera) => html`<${Tile} key=${camera.camera} camera=${camera} focus=${this.focus} />`)}
      </section>`;
  }
}
