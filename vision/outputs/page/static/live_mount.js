// Shows a live view while its element is visible. Tiles that nobody sees cost nothing.
import { LiveView } from "./live.js";

const views = new WeakMap();
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) views.get(entry.target)?.(entry.isIntersecting);
});

// Mount a live view in `element`. Return a function that removes it.
export function mountLive(element, cameraId) {
  let view = null;
  views.set(element, (visible) => {
    if (visible && view === null) {
      view = new LiveView(element, cameraId);
      view.start();
    } else if (!visible && view !== null) {
      view.stop();
      view = null;
    }
  });
  observer.observe(element);
  return () => {
    observer.unobserve(element);
    view?.stop();
    view = null;
  };
}
