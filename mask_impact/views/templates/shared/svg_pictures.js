// Drawings of the page as SVG by themselves: with their styles as attributes, and with the pictures that they use.

import { hundredths, named, paintOf, tagOf } from "./svg.js";

const XLINK = "http://www.w3.org/1999/xlink";

// Drawings of the page, with their styles as attributes.
export function svgOf(node, corner) {
  const copy = node.cloneNode(true);
  const place = node.getBoundingClientRect();
  const scale = node.viewBox.baseVal?.width ? place.width / node.viewBox.baseVal.width : 1;
  const copies = [copy, ...copy.querySelectorAll("*")];
  [node, ...node.querySelectorAll("*")].forEach((one, nth) => styleInto(one, copies[nth], scale));
  for (const one of copy.querySelectorAll("title, [data-gone]")) one.remove();
  const box = { x: place.x - corner.x, y: place.y - corner.y, width: place.width, height: place.height };
  for (const [key, value] of Object.entries(box)) copy.setAttribute(key, hundredths(value));
  return new XMLSerializer().serializeToString(copy);
}

const SHAPES = ["rect", "path", "line", "circle", "polygon", "polyline", "text", "tspan"];

function shapeStyle(style, scale) {
  const width = parseFloat(style.strokeWidth) / (style.vectorEffect === "non-scaling-stroke" ? scale : 1);
  return {
    ...paintOf("fill", style.fill, Number(style.fillOpacity)),
    ...paintOf("stroke", style.stroke, Number(style.strokeOpacity)),
    "stroke-width": hundredths(width), "stroke-linecap": style.strokeLinecap,
    "stroke-dasharray": style.strokeDasharray.replace("none", ""),
  };
}

function textStyle(style) {
  const { fontFamily, fontSize, fontWeight, textAnchor } = style;
  return { "font-family": fontFamily, "font-size": fontSize, "font-weight": fontWeight, "text-anchor": textAnchor };
}

function styleInto(one, copy, scale) {
  const style = getComputedStyle(one);
  if (style.display === "none" || style.visibility === "hidden") copy.setAttribute("data-gone", "");
  for (const name of [...copy.attributes].map((attribute) => attribute.name)) {
    if (/^(class|style|tabindex|role|aria-|data-(?!gone))/.test(name)) copy.removeAttribute(name);
  }
  const blur = style.filter.match(/^blur\(([\d.]+)px\)$/)?.[1];
  const look = {
    ...(SHAPES.includes(one.localName) ? shapeStyle(style, scale) : {}),
    ...(SHAPES.indexOf(one.localName) >= SHAPES.indexOf("text") ? textStyle(style) : {}),
    opacity: style.opacity.replace(/^1$/, ""), filter: blur ? `url(#${blurring(blur)})` : "",
  };
  for (const [key, value] of Object.entries(look)) if (value) copy.setAttribute(key, value);
  const used = copy.getAttribute("href");
  if (!used) return;
  copy.removeAttribute("href");
  copy.setAttributeNS(XLINK, "xlink:href", used);
  if (used.startsWith("#")) named.set(used, pictureNamed(used.slice(1)));
}

function blurring(by) {
  const id = `blur-${by.replace(".", "-")}`;
  named.set(id, tagOf("filter", { id }, tagOf("feGaussianBlur", { stdDeviation: by })));
  return id;
}

function pictureNamed(id) {
  const one = document.getElementById(id);
  const { width, height } = one.getBBox();
  return tagOf("image", { id, width, height, "xlink:href": one.getAttribute("href"), preserveAspectRatio: "none" });
}
