// One camera: a large live view, its state, its counts, and its events.
import { EventList } from "./events.js";
import { Badge, Live, Reason } from "./overview.js";
import { html, link, Rows, rowsOf, textOf } from "./ui.js";

export function View({ id, program }) {
  const camera = program.cameras.find((each) => each.camera === id) ?? { camera: id, state: "unknown camera" };
  const { published_fps, fps, latency_ms, dropped, objects, width, height, decoder, reconnects } = camera;
  const { lines, zones } = program.counts[id] ?? {};
  const values = { published_fps, fps, latency_ms, dropped: textOf("", dropped) || "none", objects, decoder, reconnects, frame: width && `${width} × ${height}` };
  return html`
    <header class="title">
      <a href="#/">Cameras</a><h1>${id}</h1><${Badge} state=${camera.state} />
      ${program.edit && html`<a class="button" href=${link("edit", id)}>Edit lines and zones</a>`}
    </header>
    <div class="camera">
      <${Live} camera=${camera} />
      <aside>
        <${Reason} camera=${camera} />
        <${Rows} class="details" rows=${[...rowsOf(values), ...rowsOf(lines, "line "), ...rowsOf(zones, "zone ")]} />
      </aside>
    </div>
    <h2>Events</h2>
    <${EventList} filter=${{ camera: id }} count=${program.events} />`;
}
