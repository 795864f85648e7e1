// A list of events, newest first, with snapshots and video. More events follow on request.
import { el, getJson, link, number } from "./dom.js";

const KINDS = {
  line_crossed: "crossed the line",
  zone_entered: "entered the zone",
  zone_left: "left the zone",
  crowded: "crowd",
  dwelling: "stayed in the zone",
  rule: "rule",
};

export const KIND_NAMES = [
  "line_crossed", "zone_entered", "zone_left", "crowded", "dwelling", "rule",
  "camera_lost", "camera_back", "camera_frozen", "camera_moved",
];

const time = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

// Return a short description, such as "person crossed the line door (in)".
function title(event) {
  const { data } = event;
  const who = typeof data.class === "string" ? data.class : "";
  const what = KINDS[event.kind] ?? event.kind.replaceAll("_", " ");
  const how = typeof data.direction === "string" ? `(${data.direction})` : ["begin", "end"].includes(data.phase) ? `(${data.phase})` : "";
  return [who, what, event.name, how].filter(Boolean).join(" ");
}

function details(event) {
  const rows = Object.entries(event.data).map(([key, value]) => {
    const text = typeof value === "object" ? JSON.stringify(value) : String(value);
    return el("div", {}, el("dt", {}, key), el("dd", {}, text));
  });
  if (event.verdict) rows.push(el("div", {}, el("dt", {}, event.verdict.check), el("dd", {}, event.verdict.answer)));
  return rows.length ? el("dl", { class: "data" }, ...rows) : null;
}

function video(clip) {
  const element = el("video", { src: `${clip.url}#t=${Math.max(0, clip.offset_s - 3)}`, controls: true, preload: "metadata", playsinline: true, muted: true });
  const failed = el("p", { class: "hint", hidden: true }, "This browser cannot play the video. ", el("a", { href: clip.url, download: true }, "Save it"), " to use a different player.");
  element.addEventListener("error", () => {
    element.hidden = true;
    failed.hidden = false;
  });
  return el("div", {}, element, failed);
}

// Return an item of the list. It requests the picture when it becomes visible, and the video when it is opened.
function item(event, showCamera) {
  const body = el("div", { class: "event-body" });
  const picture = event.snapshot
    ? el("img", { class: "thumb", src: event.snapshot, alt: "", loading: "lazy", width: 96, height: 54 })
    : el("span", { class: "thumb", "aria-hidden": "true" });
  picture.addEventListener("error", () => picture.replaceWith(el("span", { class: "thumb" })));
  const summary = el(
    "summary",
    {},
    picture,
    el(
      "span",
      { class: "event-text" },
      el("strong", {}, title(event)),
      el("span", { class: "hint" }, [showCamera ? event.camera : "", time.format(new Date(event.at)), event.clip ? "video" : ""].filter(Boolean).join(" · ")),
      event.description ? el("span", {}, event.description.text) : null,
    ),
  );
  const element = el("details", { class: "event" }, summary, body);
  element.addEventListener("toggle", () => {
    if (!element.open) {
      body.replaceChildren();
      return;
    }
    if (event.clip) body.append(video(event.clip));
    else if (event.snapshot) body.append(el("a", { href: event.snapshot, target: "_blank" }, el("img", { class: "shot", src: event.snapshot, alt: `Snapshot of ${event.camera}` })));
    const data = details(event);
    if (data) body.append(data);
    if (showCamera && event.camera !== "node") body.append(el("a", { href: link("camera", event.camera) }, `Open ${event.camera}`));
  });
  return el("li", {}, element);
}

const SOURCES = {
  memory: "These are the events since this page's process started. To keep events, set state_dir in the configuration.",
  journal: "There are no older events. To keep more events, configure an archive, or raise publish.max_events.",
  archive: "There are no older events in the archive.",
};

const LONGEST = 500; // items of the list from which a new event loads it again
const keyOf = (event) => JSON.stringify([event.camera, event.at, event.kind, event.name, event.track_id, event.number]);

export class EventList {
  // Show the events that `filter` chooses: camera, kind, since, and until, as in the query of /api/events.
  constructor(element, filter, showCamera) {
    this.filter = filter;
    this.showCamera = showCamera;
    this.generation = 0;
    this.cursor = null;
    this.items = new Map(); // by key
    this.list = el("ol", { class: "events" });
    this.status = el("p", { class: "hint", role: "status" });
    this.more = el("button", { type: "button", hidden: true, onclick: () => this.load(this.cursor) }, "Older events");
    element.append(this.list, this.status, this.more);
  }

  // Add new events at the top, and update those whose snapshot or answer has arrived. Open events stay as they are.
  async refresh() {
    if (this.list.children.length > LONGEST && !this.list.querySelector("details[open]")) {
      await this.load(null);
      return;
    }
    const number = this.generation;
    const page = await this.request(null).catch(() => null);
    if (page === null || number !== this.generation) return;
    for (const event of page.events.reverse()) {
      const known = this.items.get(keyOf(event));
      if (known === undefined) this.list.prepend(this.item(event));
      else if (known.text !== JSON.stringify(event) && !known.element.querySelector("[open]")) known.element.replaceWith(this.item(event));
    }
    if (page.events.length) this.status.textContent = this.status.textContent.replace("No events.", "");
  }

  // Return a new item of the list.
  item(event) {
    const element = item(event, this.showCamera);
    this.items.set(keyOf(event), { element, text: JSON.stringify(event) });
    return element;
  }

  request(cursor) {
    const query = new URLSearchParams(Object.entries(this.filter).filter(([, value]) => value));
    if (cursor !== null) query.set("cursor", cursor);
    return getJson(`/api/events?${query}`);
  }

  // Load the events of a cursor; null means the newest ones.
  async load(cursor) {
    const number = (this.generation += 1);
    let page;
    try {
      page = await this.request(cursor);
    } catch (error) {
      if (number === this.generation) this.status.textContent = error.message;
      return;
    }
    if (number !== this.generation) return;
    if (cursor === null) this.items.clear();
    const items = page.events.map((event) => this.item(event));
    if (cursor === null) {
      this.list.replaceChildren(...items);
    } else {
      this.list.append(...items);
      items[0]?.querySelector("summary").focus();
    }
    this.cursor = page.next;
    this.more.hidden = page.next === null;
    const end = page.next === null ? SOURCES[page.source] : "";
    this.status.textContent = [page.problem, this.list.children.length ? "" : "No events.", end].filter(Boolean).join(" ");
    // A filter can skip all events of a page.
    if (!items.length && page.next !== null) await this.load(page.next);
  }
}
