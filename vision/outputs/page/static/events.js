// Events, newest first, with snapshots and video: a list for one camera, and a view of all cameras with a filter.
import { Component, html, join, link, request, Rows, Select } from "./ui.js";

const LONGEST = 500; // events of the list from which a new one replaces it by the newest ones
const time = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

// An item of the list. It requests the picture when it becomes visible, and the video when it is opened.
class Item extends Component {
  body({ camera, snapshot, clip, rows }) {
    const video = clip && html`
      <video src="${clip.url}#t=${Math.max(0, clip.offset_s - 3)}" controls muted playsinline preload="metadata" />
      <p class="hint">If this browser cannot play the video, <a href=${clip.url} download>save it</a> to use a different player.</p>`;
    const picture = snapshot && html`<a href=${snapshot} target="_blank"><img class="shot" src=${snapshot} alt="Snapshot of ${camera}" /></a>`;
    return html`
      <div class="event-body">
        ${video || picture}
        <${Rows} class="data" rows=${rows} />
        ${this.props.showCamera && camera !== "node" && html`<a href=${link("camera", camera)}>Open ${camera}</a>`}
      </div>`;
  }

  render({ event, showCamera }, { open }) {
    const { camera, at, snapshot, clip, title, description } = event;
    const about = join([showCamera && camera, time.format(new Date(at)), clip && "video"], " · ");
    return html`
      <li>
        <details class="event" onToggle=${({ target }) => this.setState({ open: target.open })}>
          <summary>
            <span class="thumb">${snapshot && html`<img src=${snapshot} alt="" loading="lazy" />`}</span>
            <span class="event-text"><strong>${title}</strong><span class="hint">${about}</span><span>${description?.text}</span></span>
          </summary>
          ${open && this.body(event)}
        </details>
      </li>`;
  }
}

// The events that `filter` chooses: camera, kind, since, and until, as in the query of /api/events.
// When `count`, the number of events so far, changes, new ones are loaded, unless the list has an end.
export class EventList extends Component {
  state = { events: [] };

  componentDidMount() {
    this.load();
  }

  componentDidUpdate({ count }) {
    if (count !== this.props.count && !this.props.filter.until) this.load();
  }

  // Load the events of a cursor; the newest ones without it. Events that are already shown are updated.
  async load(cursor = "") {
    const { events, ...page } = await request(`/api/events?${new URLSearchParams({ ...this.props.filter, cursor })}`);
    if (page.error) return this.setState(page);
    const { events: shown, next } = this.state;
    const isNew = next === undefined || (!cursor && shown.length > LONGEST && !document.querySelector(".event[open]"));
    const merged = new Map([...(isNew ? [] : shown), ...events].map((event) => [event.key, event]));
    const sorted = [...merged.values()].sort((one, other) => other.at_us - one.at_us);
    this.setState({ ...(isNew || cursor ? page : {}), error: "", events: sorted });
    // A filter can skip all events of a page.
    if ((isNew || cursor) && page.next && !events.length) await this.load(page.next);
  }

  render({ showCamera }, { events, next, problem, end, error }) {
    return html`
      <section aria-label="Events">
        <ol class="events">${events.map((event) => html`<${Item} key=${event.key} event=${event} showCamera=${showCamera} />`)}</ol>
        <p class="hint" role="status">${error || join([problem, next === null && !events.length && "No events.", end])}</p>
        ${next && html`<button onClick=${() => this.load(next)}>Older events</button>`}
      </section>`;
  }
}

export class View extends Component {
  state = { filter: {} };

  apply = ({ currentTarget: form }) => setTimeout(() => { // after a reset
    const filter = Object.fromEntries(new FormData(form));
    for (const key of ["since", "until"]) filter[key] &&= new Date(filter[key]).toISOString();
    this.setState({ filter });
  });

  render({ program }, { filter }) {
    const cameras = program.cameras.map(({ camera }) => [camera, camera]);
    return html`
      <h1>Events</h1>
      <form class="filter" aria-label="Filter" onChange=${this.apply} onReset=${this.apply}>
        <${Select} label="Camera" name="camera" options=${[["", "all cameras"], ...cameras]} />
        <${Select} label="Kind" name="kind" options=${[["", "all kinds"], ...program.kinds]} />
        <label>From <input name="since" type="datetime-local" /></label>
        <label>Until <input name="until" type="datetime-local" /></label>
        <button type="reset">Clear</button>
      </form>
      <${EventList} key=${JSON.stringify(filter)} filter=${filter} count=${program.events} showCamera />`;
  }
}
