// What stands between the patches of an image, and in those that have no value.

// Where a patch has no value.
export function drawCross(context, rect) {
  const [x, y, w, h] = rect;
  context.fillStyle = "rgb(128 128 128 / 55%)";
  context.fillRect(x, y, w, h);
  context.strokeStyle = "#ffffff";
  context.lineWidth = 2;
  context.beginPath();
  context.moveTo(x + w * 0.3, y + h * 0.3);
  context.lineTo(x + w * 0.7, y + h * 0.7);
  context.moveTo(x + w * 0.7, y + h * 0.3);
  context.lineTo(x + w * 0.3, y + h * 0.7);
  context.stroke();
}

// Lines between patches that are large enough.
export function drawGrid(context, [rows, columns], wide, high) {
  const { width, height } = context.canvas;
  context.strokeStyle = "rgb(128 128 128 / 45%)";
  context.lineWidth = 1;
  context.beginPath();
  if (Math.min(wide, high) > 5) {
    for (let column = 1; column < columns; column++) {
      context.moveTo(column * wide, 0);
      context.lineTo(column * wide, height);
    }
    for (let row = 1; row < rows; row++) {
      context.moveTo(0, row * high);
      context.lineTo(width, row * high);
    }
  }
  context.stroke();
}
