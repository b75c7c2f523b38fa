// What belongs together under the pointer or the focus: all that has the same place in a part of the page.

function lightUp(part, place) {
  for (const one of part.querySelectorAll(".mi-lit")) one.classList.remove("mi-lit");
  if (place === undefined) return;
  for (const one of part.querySelectorAll(`[data-place="${place}"]`)) one.classList.add("mi-lit");
}

export function connectLight(part) {
  const placeOf = (event) => event.target.closest("[data-place]")?.dataset.place;
  for (const kind of ["mouseover", "focusin"]) part.addEventListener(kind, (event) => lightUp(part, placeOf(event)));
  for (const kind of ["mouseleave", "focusout"]) part.addEventListener(kind, () => lightUp(part, undefined));
}
