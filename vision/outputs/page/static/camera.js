// One camera: a large live view, its state, its counts, and its events.
import { dropText, el, link, number, setRows, setText } from "./dom.js";
import { EventList } from "./event_list.js";
import { CameraView } from "./overview.js";

export function open(main, id, store) {
  const view = new CameraView(id);
  const table = el("dl", { class: "details" });
  const place = el("section", { "aria-label": "Events" });
  const edit = el("a", { class: "button", href: link("edit", id) }, "Edit lines and zones");
  main.append(
    el("header", { class: "title" }, el("a", { class: "back", href: "#/" }, "Cameras"), el("h1", {}, id), view.badge, edit),
    el("div", { class: "camera" }, view.view, el("aside", {}, view.reason, table)),
    el("h2", { class: "section" }, "Events"),
    place,
  );
  const events = new EventList(place, { camera: id }, false);
  const stop = store.listen((state) => {
    if (state === null) return;
    events.follow(state);
    const camera = store.camera(id);
    if (!camera) return setText(view.badge, "unknown camera");
    edit.hidden = !state.edit;
    main.dataset.state = camera.state;
    view.update(camera);
    const { p50, p99, max } = camera.latency_ms ?? {};
    const { lines = {}, zones = {} } = state.counts[id] ?? {};
    setRows(table, [
      ["frames/s", `${number(camera.published_fps, 1)} of ${number(camera.fps, 1)}`],
      ["latency", camera.latency_ms ? `p50 ${number(p50)} ms, p99 ${number(p99)} ms, max ${number(max)} ms` : "–"],
      ["dropped frames", dropText(camera.dropped)],
      ["objects", number(camera.objects)],
      ["frame", camera.width ? `${camera.width} × ${camera.height}` : "–"],
      ["decoder", camera.decoder ?? "–"],
      ["reconnections", number(camera.reconnects)],
      ...Object.entries(lines).map(([name, line]) => [`line ${name}`, `${number(line.in)} in, ${number(line.out)} out`]),
      ...Object.entries(zones).map(([name, zone]) => [`zone ${name}`, `${number(zone.occupancy)} now, ${number(zone.entered)} entered, ${number(zone.left)} left`]),
    ]);
  });
  return () => {
    stop();
    view.live.stop();
    delete main.dataset.state;
  };
}
