// One camera: a large live view, its state, and its counts.
import { el, link, number, setText } from "./dom.js";
import { EventList } from "./event_list.js";
import { mountLive } from "./live_mount.js";
import { dropText, reason, stateText } from "./overview.js";

export function open(main, id, store) {
  const view = el("div", { class: "view large" });
  const place = el("section", { "aria-label": "Events" });
  const badge = el("span", { class: "badge" });
  const why = el("p", { class: "reason" });
  const table = el("dl", { class: "details" });
  const edit = el("a", { class: "button", href: link("edit", id) }, "Edit lines and zones");
  main.append(
    el("header", { class: "title" }, el("a", { class: "back", href: "#/" }, "Cameras"), el("h1", {}, id), badge, edit),
    el("div", { class: "camera" }, view, el("aside", {}, why, table)),
    el("h2", { class: "section" }, "Events"),
    place,
  );
  const events = new EventList(place, { camera: id }, false);
  let seen = null;
  const values = new Map();
  const show = (key, text) => {
    if (!values.has(key)) {
      values.set(key, el("dd"));
      table.append(el("div", {}, el("dt", {}, key), values.get(key)));
    }
    setText(values.get(key), text);
  };
  const stop = store.listen((state) => {
    if (state !== null && seen !== null && seen !== state.events) events.refresh();
    seen = state?.events ?? seen;
    const camera = store.camera(id);
    if (camera === null) {
      setText(badge, state === null ? "" : "unknown camera");
      return;
    }
    edit.hidden = !state.edit;
    main.dataset.state = camera.state;
    setText(badge, stateText(camera));
    setText(why, reason(camera));
    show("frames/s", `${number(camera.published_fps, 1)} of ${number(camera.fps, 1)}`);
    const latency = camera.latency_ms;
    show("latency", latency ? `p50 ${number(latency.p50)} ms, p99 ${number(latency.p99)} ms, max ${number(latency.max)} ms` : "–");
    show("dropped frames", dropText(camera));
    show("objects", number(camera.objects));
    show("frame", camera.width ? `${camera.width} × ${camera.height}` : "–");
    show("decoder", camera.decoder ?? "–");
    show("reconnections", number(camera.reconnects));
    const counts = state.counts[id] ?? { lines: {}, zones: {} };
    for (const [name, line] of Object.entries(counts.lines)) show(`line ${name}`, `${number(line.in)} in, ${number(line.out)} out`);
    for (const [name, zone] of Object.entries(counts.zones)) {
      show(`zone ${name}`, `${number(zone.occupancy)} now, ${number(zone.entered)} entered, ${number(zone.left)} left`);
    }
  });
  events.load(null);
  const close = mountLive(view, id);
  return () => {
    stop();
    close();
    delete main.dataset.state;
  };
}
