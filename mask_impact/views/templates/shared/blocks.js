// Blocks of numbers: from the text in the page to float32 values. mask_impact/views/blocks.py describes the layout.

export function bytesOf(base64) {
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

export async function unzipped(base64) {
  const stream = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The float32 values of a block.
export async function distancesOf(base64) {
  const bytes = await unzipped(base64);
  const digits = bytes[0];
  const n = new DataView(bytes.buffer).getUint32(1, true);
  const nKept = digits === 23 ? 32 : 8 + digits;
  const turned = new Uint32Array(n);
  let at = 5;
  let place = 24;
  for (; place >= 32 - nKept; place -= 8, at += n) for (let i = 0; i < n; i++) turned[i] |= bytes[at + i] << place;
  for (place += 7; place >= 32 - nKept; place--, at += Math.ceil(n / 8)) {
    for (let i = 0; i < n; i++) turned[i] |= ((bytes[at + (i >> 3)] >> (7 - (i & 7))) & 1) << place;
  }
  for (let i = 0; i < n; i++) turned[i] = (turned[i] >>> 1) | (turned[i] << 31);
  return new Float32Array(turned.buffer);
}
