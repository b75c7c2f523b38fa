// What each panel was drawn for last: one that costs time is drawn again only for something else.

const drawnFor = {};

// Whether a panel was drawn for something else before.
export function changed(panel, ...what) {
  const key = JSON.stringify(what);
  if (drawnFor[panel] === key) return false;
  drawnFor[panel] = key;
  return true;
}
