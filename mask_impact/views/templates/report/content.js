// New content for an element that may have the focus in it.

// What had the focus gives it to what is at its place now.
export function replaceContent(parent, children) {
  const inner = () => [...parent.querySelectorAll("button")];
  const at = inner().indexOf(document.activeElement);
  parent.replaceChildren(...children);
  if (at >= 0) (inner()[at] ?? inner().at(-1))?.focus();
}
