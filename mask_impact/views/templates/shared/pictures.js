// Pictures with a canvas of patches over them: their elements, their sizes, and frames around patches.

import { element } from "./elements.js";

// A picture no higher than so many pixels; without a preview, the canvas alone.
export function makePicture(image, canvas, height, alt) {
  const picture = element("div", { className: "picture" });
  const aspect = image.size[0] / image.size[1];
  const maxWidth = `${Math.round(height * Math.max(aspect, 0.2))}px`;
  Object.assign(picture.style, { aspectRatio: String(aspect), maxWidth });
  if (image.preview) picture.append(element("img", { alt, src: `data:image/jpeg;base64,${image.preview}` }));
  picture.append(canvas);
  return picture;
}

// Where the pointer is in the grid as [row, column], with fractions.
export function placeInGrid(event, canvas, [rows, columns]) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientY - box.top) / box.height) * rows, ((event.clientX - box.left) / box.width) * columns];
}

// Gives the canvas the screen's pixels; a patch is then `wide` by `high` of them, `ratio` of them are one of the
// page's.
export function fitCanvas(canvas, [rows, columns]) {
  const box = canvas.getBoundingClientRect();
  const ratio = Math.max(devicePixelRatio || 1, 1);
  canvas.width = Math.max(Math.round(box.width * ratio), columns);
  canvas.height = Math.max(Math.round(box.height * ratio), rows);
  return { wide: canvas.width / columns, high: canvas.height / rows, ratio, context: canvas.getContext("2d") };
}

// A frame in a colour on white, `inset` pixels within the patch.
export function strokeFrame(context, rect, inset, ratio, frame) {
  const [x, y, w, h] = rect;
  for (const [colour, width] of [["#ffffff", 5], [frame, 3]]) {
    context.strokeStyle = colour;
    context.lineWidth = width * ratio;
    context.strokeRect(x + inset, y + inset, w - 2 * inset, h - 2 * inset);
  }
}
