// One camera: a large live view, its state, its counts, and its events.
import { EventList } from "./events.js";
import { LiveView } from "./live.js";
import { Badge } from "./overview.js";
import { html, link, Rows } from "./ui.js";

export function View({ id, program }) {
  const unknown = { camera: id, label: "unknown camera" };
  const camera = program.cameras.find((each) => each.camera === id) ?? unknown;
  return html`
    <header class="title">
      <a href="#/">Cameras</a><h1>${id}</h1><${Badge} ...${camera} />
      ${program.edit && camera.state && html`<a class="button" href=${link("edit", id)}>Edit lines and zones</a>`}
    </header>
    <div class="camera">
      <${LiveView} camera=${camera} />
      <aside>
        <p class="reason">${camera.reason}</p>
        <${Rows} class="details" rows=${camera.details ?? []} />
      </aside>
    </div>
    <h2>Events</h2>
    <${EventList} filter=${{ camera: id }} count=${program.events} />`;
}
