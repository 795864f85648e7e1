// The overview: one tile per camera.
import { Health } from "./health.js";
import { LiveView } from "./live.js";
import { Component, html, link, Rows } from "./ui.js";

export const Badge = ({ level, label }) => html`<span class="badge ${level}">${label}</span>`;

function Tile({ camera, focus }) {
  const id = camera.camera;
  return html`
    <article class="tile" data-state=${camera.state}>
      <a class="view-link" href=${link("camera", id)} aria-label="Open ${id}" ref=${focus}><${LiveView} camera=${camera} /></a>
      <header><h2>${id}</h2><${Badge} ...${camera} /></header>
      <p class="reason">${camera.reason}</p>
      <${Rows} class="figures" rows=${camera.figures} />
      <p class="hint">dropped: ${camera.dropped}</p>
    </article>`;
}

export class View extends Component {
  // Return the focus to the camera from which a person returns.
  focus = (anchor) => anchor && anchor.href === this.props.previous && anchor.focus();

  render({ program }) {
    return html`
      <h1 class="hidden">Cameras</h1>
      <${Health} summary=${program.summary} />
      <section class="grid" aria-label="Cameras">
        ${program.cameras.map((camera) => html`<${Tile} key=${camera.camera} camera=${camera} focus=${this.focus} />`)}
      </section>`;
  }
}
