// The editor of lines and zones of one camera.
import { el, link } from "./dom.js";
import { openEditor } from "./editor.js";

export function open(main, id) {
  const place = el("div", { class: "editor" });
  const back = el("a", { class: "back", href: link("camera", id) }, id);
  main.append(el("header", { class: "title" }, back, el("h1", {}, "Lines and zones")), place);
  return openEditor(place, id);
}
