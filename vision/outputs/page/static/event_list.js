// A list of events, newest first, with snapshots and video. More events follow on request.
import { el, join, link, request, setRows } from "./dom.js";

const WORDS = { line_crossed: "crossed the line", zone_entered: "entered the zone", zone_left: "left the zone", crowded: "crowd", dwelling: "stayed in the zone" };

export const KIND_NAMES = [
  "line_crossed", "zone_entered", "zone_left", "crowded", "dwelling", "rule",
  "camera_lost", "camera_back", "camera_frozen", "camera_moved",
];

const SOURCES = {
  memory: "These are the events since this page's process started. To keep events, set state_dir in the configuration.",
  journal: "There are no older events. To keep more events, configure an archive, or raise publish.max_events.",
  archive: "There are no older events in the archive.",
};

const LONGEST = 500; // items of the list from which a new event loads it again
const time = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const keyOf = (event) => JSON.stringify([event.camera, event.at, event.kind, event.name, event.track_id, event.number]);
const hint = (text) => el("span", { class: "hint" }, text);

// Return a short description, such as "person crossed the line door (in)".
function title({ data, kind, name }) {
  const text = (value) => (typeof value === "string" ? value : "");
  const how = text(data.direction) || (["begin", "end"].includes(data.phase) ? data.phase : "");
  return join([text(data.class), WORDS[kind] ?? kind.replaceAll("_", " "), name, how && `(${how})`]);
}

function details({ data, verdict }) {
  const rows = Object.entries(data).map(([key, value]) => [key, typeof value === "object" ? JSON.stringify(value) : String(value)]);
  return setRows(el("dl", { class: "data" }), [...rows, [verdict?.check, verdict?.answer]]);
}

function video({ url, offset_s }) {
  const failed = el("p", { class: "hint", hidden: true }, "This browser cannot play the video. ", el("a", { href: url, download: true }, "Save it"), " to use a different player.");
  const onerror = () => {
    element.hidden = true;
    failed.hidden = false;
  };
  const element = el("video", { src: `${url}#t=${Math.max(0, offset_s - 3)}`, controls: true, preload: "metadata", playsinline: true, muted: true, onerror });
  return el("div", {}, element, failed);
}

// Return an item of the list. It requests the picture when it becomes visible, and the video when it is opened.
function item(event, showCamera) {
  const { camera, snapshot, clip, description } = event;
  const none = el("span", { class: "thumb" });
  const picture = snapshot && el("img", { class: "thumb", src: snapshot, alt: "", loading: "lazy", onerror: () => picture.replaceWith(none) });
  const about = join([showCamera && camera, time.format(new Date(event.at)), clip && "video"], " · ");
  const words = el("span", { class: "event-text" }, el("strong", {}, title(event)), hint(about), description && el("span", {}, description.text));
  const body = el("div", { class: "event-body" });
  const ontoggle = () => {
    body.replaceChildren();
    if (!element.open) return;
    if (clip) body.append(video(clip));
    else if (snapshot) body.append(el("a", { href: snapshot, target: "_blank" }, el("img", { class: "shot", src: snapshot, alt: `Snapshot of ${camera}` })));
    body.append(details(event));
    if (showCamera && camera !== "node") body.append(el("a", { href: link("camera", camera) }, `Open ${camera}`));
  };
  const element = el("details", { class: "event", ontoggle }, el("summary", {}, picture ?? none, words), body);
  return el("li", {}, element);
}

export class EventList {
  // Show the events that `filter` chooses: camera, kind, since, and until, as in the query of /api/events.
  constructor(element, filter, showCamera) {
    Object.assign(this, { filter, showCamera, generation: 0 });
    this.items = new Map(); // by key
    this.list = el("ol", { class: "events" });
    this.status = el("p", { class: "hint", role: "status" });
    this.more = el("button", { type: "button", hidden: true, onclick: () => this.load(this.cursor) }, "Older events");
    element.append(this.list, this.status, this.more);
    this.load(null);
  }

  // Refresh the list if there are new events since the previous call. A list with an end does not change.
  follow({ events }) {
    if (events !== (this.seen ?? events) && !this.filter.until) this.refresh();
    this.seen = events;
  }

  // Add new events at the top, and update those whose snapshot or answer has arrived. Open events stay as they are.
  async refresh() {
    if (this.items.size > LONGEST && !this.list.querySelector("details[open]")) return this.load(null);
    const generation = this.generation;
    const { events } = await this.request(null);
    if (generation !== this.generation) return;
    for (const event of events?.reverse() ?? []) {
      const known = this.items.get(keyOf(event));
      if (!known) this.list.prepend(this.item(event));
      else if (known.text !== JSON.stringify(event) && !known.element.querySelector("[open]")) known.element.replaceWith(this.item(event));
    }
    if (events?.length) this.status.textContent = this.status.textContent.replace("No events.", "");
  }

  item(event) {
    const element = item(event, this.showCamera);
    this.items.set(keyOf(event), { element, text: JSON.stringify(event) });
    return element;
  }

  request(cursor) {
    const query = new URLSearchParams(Object.entries({ ...this.filter, cursor }).filter(([, value]) => value));
    return request(`/api/events?${query}`);
  }

  // Load the events of a cursor; null means the newest ones.
  async load(cursor) {
    const generation = (this.generation += 1);
    const page = await this.request(cursor);
    if (generation !== this.generation) return;
    if (page.error) {
      this.status.textContent = page.error;
      return;
    }
    if (cursor === null) {
      this.items.clear();
      this.list.replaceChildren();
    }
    const items = page.events.map((event) => this.item(event));
    this.list.append(...items);
    if (cursor !== null) items[0]?.querySelector("summary").focus();
    this.cursor = page.next;
    this.more.hidden = page.next === null;
    this.status.textContent = join([page.problem, this.items.size ? "" : "No events.", page.next === null && SOURCES[page.source]]);
    // A filter can skip all events of a page.
    if (!items.length && page.next !== null) await this.load(page.next);
  }
}
