// The events of all cameras, with a filter.
import { el } from "./dom.js";
import { EventList, KIND_NAMES } from "./event_list.js";

const utc = (value) => (value ? new Date(value).toISOString() : "");

export function open(main, _parameter, store) {
  const camera = el("select", { id: "camera", name: "camera" }, el("option", { value: "" }, "all cameras"));
  const kind = el(
    "select",
    { id: "kind", name: "kind" },
    el("option", { value: "" }, "all kinds"),
    ...KIND_NAMES.map((name) => el("option", { value: name }, name.replaceAll("_", " "))),
  );
  const since = el("input", { id: "since", name: "since", type: "datetime-local" });
  const until = el("input", { id: "until", name: "until", type: "datetime-local" });
  const form = el(
    "form",
    { class: "filter", "aria-label": "Filter" },
    ...[[camera, "Camera"], [kind, "Kind"], [since, "From"], [until, "Until"]].map(([input, text]) => el("label", {}, el("span", {}, text), input)),
    el("button", { type: "reset" }, "Clear"),
  );
  const place = el("section", { "aria-label": "Events" });
  main.append(el("h1", {}, "Events"), form, place);
  const list = new EventList(place, {}, true);

  const apply = () => {
    list.filter = { camera: camera.value, kind: kind.value, since: utc(since.value), until: utc(until.value) };
    list.load(null);
  };
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));

  let seen = null;
  const stop = store.listen((state) => {
    if (state === null) return;
    const known = [...camera.options].map((option) => option.value);
    for (const { camera: id } of state.cameras) if (!known.includes(id)) camera.append(el("option", { value: id }, id));
    if (seen !== null && seen !== state.events && !until.value) list.refresh();
    seen = state.events;
  });
  list.load(null);
  return stop;
}
