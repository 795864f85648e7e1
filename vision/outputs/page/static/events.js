// The events of all cameras, with a filter.
import { choice, el, filterForm } from "./dom.js";
import { EventList, KIND_NAMES } from "./event_list.js";

const utc = ({ value }) => value && new Date(value).toISOString();

export function open(main, _parameter, store) {
  const camera = choice("camera", [["", "all cameras"]]);
  const kind = choice("kind", [["", "all kinds"], ...KIND_NAMES.map((name) => [name, name.replaceAll("_", " ")])]);
  const [since, until] = ["since", "until"].map((id) => el("input", { id, name: id, type: "datetime-local" }));
  const place = el("section", { "aria-label": "Events" });
  const apply = () => {
    list.filter = { camera: camera.value, kind: kind.value, since: utc(since), until: utc(until) };
    list.load(null);
  };
  const form = filterForm({ Camera: camera, Kind: kind, From: since, Until: until }, apply, el("button", { type: "reset" }, "Clear"));
  main.append(el("h1", {}, "Events"), form, place);
  const list = new EventList(place, {}, true);
  return store.listen((state) => {
    if (state === null) return;
    const known = [...camera.options].map((option) => option.value);
    for (const { camera: id } of state.cameras) if (!known.includes(id)) camera.append(el("option", { value: id }, id));
    list.follow(state);
  });
}
