// Keys of the page as a whole. They stay out of the way of controls that have keys of their own.

const arrowsAreTaken = (target) => target.matches("input[type='radio'], input[type='range']");
const isTaken = (target) => target.matches("select, input[type='number'], input[type='text'], input[type='search']");

// actions: by key what it does, letters in lower case. applies(name): whether a key does anything now.
export function connectKeys(actions, applies = (name) => Boolean(name)) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const { target } = event;
    if (!actions[name] || isTaken(target)) return;
    if (name.startsWith("Arrow") && arrowsAreTaken(target)) return;
    if (!applies(name)) return;
    event.preventDefault();
    actions[name]();
  });
}
