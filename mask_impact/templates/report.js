// The page of a result. One state, changed only by `set`; every panel is drawn from the state and from `view`, which holds the
// distances of the current step, metric and variant. A panel that costs time remembers what it was drawn for (`changed`).
(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const $ = (id) => document.getElementById(id);
  const EXACT = 23; // binary digits of float32
  const MOST_TOKENS = 8; // in the profile
  const PLAY_MS = 450;
  const PICTURE_HEIGHT = 420; // pixels, at most
  const MOST_POINTS = 4000; // of the scatter
  const METRIC_NAMES = { l2: "L2", cosine: "Cosine" };
  const MEASURES = { logprob: "change of the log-probability", kl: "KL divergence" }; // of the effect, in the order of the file's blocks
  const SCALES = ["linear", "sqrt", "log"];
  const SCALE_NAMES = { linear: "linear scale", sqrt: "square-root scale", log: "logarithmic scale" };
  const EMPTY = () => ({
    prompt: 0, step: 0, layer: 0, range: "all", from: 0, to: Infinity, metric: "l2", variant: "", scale: "sqrt", colours: "layer",
    kept: [], tokens: [], focus: -1, unfolded: [], opacity: 70, unit: "share", measure: "logprob", theme: "auto",
  });
  let state = EMPTY();
  let view = null;

  // ---- what the file holds -----------------------------------------------------------------------------------------------

  for (const prompt of page.prompts) {
    prompt.cellAt = new Map(prompt.cells.map(([position, image, row, column]) => [position, { image, row, column }]));
    prompt.specialAt = new Set(prompt.special);
    prompt.heads = prompt.variants.map((name, index) => ({ name, index })).filter(({ name }) => name.startsWith("Head_"));
    for (const step of prompt.steps) step.positions ??= Array.from({ length: step.n_positions }, (_, position) => position);
  }
  const prompt = () => page.prompts[state.prompt];
  const step = () => prompt().steps[state.step];
  const rounded = () => page.digits < EXACT && state.variant.startsWith("Head_");

  const blocks = new Map();
  const block = (metric, variantIndex) => blockNamed(`b-${state.prompt}-${state.step}-${metric}-${variantIndex}`);
  function blockNamed(name) {
    if (!blocks.has(name)) {
      if (blocks.size > 600) blocks.clear();
      blocks.set(name, distancesOf($(name).textContent));
    }
    return blocks.get(name);
  }

  // The step's effects, null where there are none: of each measure and the most probable token's id, [layer, group]; and where
  // each position was hidden by itself norms, [layer, variant], rank correlations and the number of tokens that they are of,
  // [measure, metric, variant, layer].
  async function effectBlocks() {
    if (!prompt().effect) return null;
    const names = [...Object.keys(MEASURES), "top1", ...(step().effect.groups ? [] : ["norm", "rho", "n"])];
    const values = await Promise.all(names.map((name) => blockNamed(`e-${state.prompt}-${state.step}-${name}`)));
    return Object.fromEntries(names.map((name, nth) => [name, values[nth]]));
  }

  function tokenName(position, width = Infinity) {
    const cell = prompt().cellAt.get(position);
    return cell ? `image ${cell.image} [${cell.row}, ${cell.column}]` : quoted(prompt().texts[position], width);
  }
  const tokenTitle = (position) => `${position} ${tokenName(position, 40)}`;

  function distanceText(value, isRounded = rounded()) {
    if (!Number.isFinite(value)) return "no value";
    return isRounded ? `≈ ${Number(value.toPrecision(4))}` : float32Text(value);
  }

  // ---- state -------------------------------------------------------------------------------------------------------------

  const clamp = (number, low, high) => Math.min(Math.max(Math.trunc(number) || 0, low), high);
  const oneOf = (value, accepted, otherwise) => (accepted.includes(value) ? value : otherwise);

  // Whatever a link says, the state is one that the file has.
  function normalise(wanted) {
    const start = EMPTY();
    const next = { ...start, ...wanted };
    next.prompt = clamp(next.prompt, 0, page.prompts.length - 1);
    const file = page.prompts[next.prompt];
    const lastLayer = file.n_layers - 1;
    next.step = clamp(next.step, 0, file.steps.length - 1);
    next.layer = clamp(next.layer, 0, lastLayer);
    next.from = clamp(next.from, 0, lastLayer);
    next.to = next.to === Infinity ? lastLayer : clamp(next.to, next.from, lastLayer);
    next.opacity = clamp(next.opacity, 0, 100);
    next.range = oneOf(next.range, ["layer", "band", "all"], start.range);
    next.metric = oneOf(next.metric, Object.keys(METRIC_NAMES), start.metric);
    next.variant = oneOf(next.variant, file.variants, file.variants[0]);
    next.scale = oneOf(next.scale, SCALES, start.scale);
    next.colours = oneOf(next.colours, ["layer", "global"], start.colours);
    next.measure = oneOf(next.measure, Object.keys(MEASURES), start.measure);
    next.unit = oneOf(next.unit, ["share", "distance"], start.unit);
    next.theme = oneOf(next.theme, ["auto", "light", "dark"], start.theme);
    const masked = new Set(file.steps[next.step].positions);
    next.tokens = [...new Set(next.tokens)].filter((position) => masked.has(position)).slice(-MOST_TOKENS);
    const sinks = file.sinks.map((sink) => sink.position);
    next.kept = next.kept.filter((position) => sinks.includes(position));
    next.unfolded = next.unfolded.filter((image) => image >= 0 && image < file.images.length);
    if (!masked.has(next.focus)) next.focus = -1;
    return next;
  }

  function fragment() {
    const start = normalise({ prompt: state.prompt });
    const pairs = Object.entries(state).filter(([name, value]) => name === "prompt" ? value > 0 : String(value) !== String(start[name]));
    return new URLSearchParams(pairs.map(([name, value]) => [name, String(value)])).toString();
  }

  function fromFragment() {
    const wanted = {};
    for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
      const like = EMPTY()[name];
      if (like === undefined) continue;
      if (Array.isArray(like)) wanted[name] = text.split(",").filter(Boolean).map(Number).filter(Number.isInteger);
      else wanted[name] = typeof like === "number" ? Number(text) : text;
    }
    return normalise(wanted);
  }

  // When something was there for the first time, for measurements; true where it was there before.
  function firstMark(name) {
    if (performance.getEntriesByName(name).length) return true;
    performance.mark(name);
    return false;
  }
  const nextFrame = () => new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve)); });

  let latest = 0;
  async function set(changes) {
    if ("prompt" in changes && changes.prompt !== state.prompt) {
      const { metric, scale, colours, opacity, unit, measure, theme: kept } = state;
      changes = { metric, scale, colours, opacity, unit, measure, theme: kept, ...changes };
      state = normalise(changes);
    } else state = normalise({ ...state, ...changes });
    const ticket = ++latest;
    document.documentElement.dataset.drawn = "false"; // for whoever drives the page
    showTheme();
    const variantIndex = prompt().variants.indexOf(state.variant);
    const [l2, cosine, effect] = await Promise.all([block("l2", variantIndex), block("cosine", variantIndex), effectBlocks()]);
    if (ticket !== latest) return;
    view = Object.assign(makeView({ l2, cosine }), { effect });
    drawPage();
    if (!firstMark("text")) await nextFrame();
    await plotlyReady;
    if (ticket !== latest) return;
    await drawCharts();
    if (ticket !== latest) return;
    firstMark("charts");
    document.documentElement.dataset.drawn = "true";
  }

  // ---- numbers behind the panels -----------------------------------------------------------------------------------------

  function layersShown() {
    if (state.range === "layer") return [state.layer];
    const [from, to] = state.range === "band" ? [state.from, state.to] : [0, prompt().n_layers - 1];
    return Array.from({ length: to - from + 1 }, (_, i) => from + i);
  }

  function layersText() {
    const layers = layersShown();
    return layers.length === 1 ? `layer ${layers[0]}` : `layers ${layers[0]}–${layers.at(-1)}`;
  }

  // positions[i] of the sequence has its distances at [layer * n + i]. shares: of each layer's sum, NaN where a token is left out or
  // has no value; a layer in which nothing had an impact has none. scores: mean share over the layers shown.
  function makeView(distances) {
    const positions = step().positions;
    const [n, nLayers] = [positions.length, prompt().n_layers];
    const values = distances[state.metric];
    const leftOut = new Set(prompt().sinks.map((sink) => sink.position).filter((position) => !state.kept.includes(position)));
    const counted = positions.map((position) => !leftOut.has(position));
    const shares = new Float64Array(n * nLayers).fill(NaN);
    for (let layer = 0; layer < nLayers; layer++) {
      let total = 0;
      for (let i = 0; i < n; i++) if (counted[i] && values[layer * n + i] > 0) total += values[layer * n + i];
      if (!(total > 0)) continue;
      for (let i = 0; i < n; i++) if (counted[i]) shares[layer * n + i] = Math.max(values[layer * n + i], 0) / total;
    }
    const meanShare = (i, layers) => {
      let [sum, number] = [0, 0];
      for (const layer of layers) {
        const share = shares[layer * n + i];
        if (Number.isNaN(share)) continue;
        sum += share;
        number++;
      }
      return number ? sum / number : NaN;
    };
    const made = { positions, n, nLayers, distances, values, leftOut, counted, shares };
    made.at = new Map(positions.map((position, i) => [position, i]));
    made.scores = positions.map((_, i) => meanShare(i, layersShown()));
    const everywhere = Array.from({ length: nLayers }, (_, layer) => layer);
    const overall = positions.map((_, i) => meanShare(i, everywhere));
    made.ranked = positions.map((_, i) => i).filter((i) => overall[i] > 0).sort((a, b) => overall[b] - overall[a] || a - b).map((i) => positions[i]);
    return made;
  }

  const chosenTokens = () => (state.tokens.length ? state.tokens : view.ranked.slice(0, 3));
  function focusToken() {
    const chosen = chosenTokens();
    return chosen.includes(state.focus) ? state.focus : state.tokens.length ? chosen.at(-1) : chosen[0];
  }
  const chosenColour = (position) => LINES[theme()][chosenTokens().indexOf(position)];

  function toggleToken(position) {
    if (!view.at.has(position)) return;
    const present = state.tokens.includes(position);
    set({ tokens: present ? state.tokens.filter((one) => one !== position) : [...state.tokens, position], focus: present ? -1 : position });
  }

  // The scale of shares for some of the positions (places i): of the layers shown, or with colours over all layers of any layer.
  function shareScale(places) {
    if (state.range !== "layer" || state.colours === "layer") return makeScale(state.scale, ...extent(places.map((i) => view.scores[i])));
    const all = [];
    for (let layer = 0; layer < view.nLayers; layer++) for (const i of places) all.push(view.shares[layer * view.n + i]);
    return makeScale(state.scale, ...extent(all));
  }

  // Tokens one by one, a folded image as one: { positions, image (null for one token), title }, in the order of first positions.
  function makeColumns() {
    const made = [];
    const folded = new Map();
    for (const position of view.positions) {
      const cell = prompt().cellAt.get(position);
      if (!cell || state.unfolded.includes(cell.image)) made.push({ positions: [position], image: null });
      else if (folded.has(cell.image)) folded.get(cell.image).positions.push(position);
      else {
        folded.set(cell.image, { positions: [position], image: cell.image });
        made.push(folded.get(cell.image));
      }
    }
    return made;
  }

  // What a column shows in a layer: its token's distance, of a folded image the largest; null where there is none.
  function columnValue(values, column, layer) {
    let found = null;
    for (const position of column.positions) {
      const i = view.at.get(position);
      const value = values[layer * view.n + i];
      if (view.counted[i] && Number.isFinite(value) && (found === null || value > found)) found = value;
    }
    return found;
  }

  // ---- texts of tips -----------------------------------------------------------------------------------------------------

  function cellTip(position, layer) {
    const place = layer * view.n + view.at.get(position);
    const lines = [`layer ${layer} · position ${position} · ${tokenName(position)}`];
    for (const [metric, name] of Object.entries(METRIC_NAMES)) lines.push(`${name} ${distanceText(view.distances[metric][place])}`);
    if (view.leftOut.has(position)) lines.push("attention sink, left out");
    else if (Number.isFinite(view.shares[place])) lines.push(`${percentText(view.shares[place])} of the layer`);
    return lines.join("\n");
  }

  function imageTip(column, layer) {
    const { image } = column;
    const [rows, columns] = prompt().images[image].grid;
    const counted = column.positions.filter((position) => Number.isFinite(view.values[layer * view.n + view.at.get(position)]) && !view.leftOut.has(position));
    const lines = [`layer ${layer} · image ${image}, ${rows} × ${columns} patches`];
    if (!counted.length) return [...lines, "no value"].join("\n");
    const valueOf = (position) => view.values[layer * view.n + view.at.get(position)];
    const best = counted.reduce((one, other) => (valueOf(other) > valueOf(one) ? other : one));
    const share = counted.reduce((sum, position) => sum + (view.shares[layer * view.n + view.at.get(position)] || 0), 0);
    const mean = counted.reduce((sum, position) => sum + valueOf(position), 0) / counted.length;
    lines.push(`strongest patch ${tokenName(best)}: ${METRIC_NAMES[state.metric]} ${distanceText(valueOf(best))}`);
    lines.push(`mean of ${counted.length} patches ${shortText(mean)}`, `together ${percentText(share)} of the layer`);
    return lines.join("\n");
  }

  function scoreTip(position) {
    if (!view.at.has(position)) return `position ${position} · ${tokenName(position)}\nnot masked`;
    if (state.range === "layer") return cellTip(position, state.layer);
    const score = view.scores[view.at.get(position)];
    const what = view.leftOut.has(position) ? "attention sink, left out" : Number.isFinite(score) ? `${percentText(score)} of the impact, mean of ${layersText()}` : "no value";
    return `position ${position} · ${tokenName(position)}\n${what}`;
  }

  function showTip(text, x, y) {
    const tip = $("tip");
    tip.textContent = text;
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 8))}px`;
    tip.style.top = `${y + 18 + height > innerHeight ? Math.max(4, y - height - 12) : y + 18}px`;
  }
  const hideTip = () => { $("tip").hidden = true; };

  // ---- page: everything but charts ---------------------------------------------------------------------------------------

  const drawnFor = {};
  // Whether a panel was drawn for something else before.
  function changed(panel, ...what) {
    const key = JSON.stringify(what);
    if (drawnFor[panel] === key) return false;
    drawnFor[panel] = key;
    return true;
  }

  function showTheme() {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = state.theme === "auto" ? (dark ? "dark" : "light") : state.theme;
    $("theme-name").textContent = { auto: "automatic", light: "light", dark: "dark" }[state.theme];
  }

  function drawPage() {
    drawControls();
    drawAnswer();
    drawText();
    drawImages();
    drawChips();
    drawStrongest();
    drawEffectText();
    try {
      history.replaceState(null, "", `#${fragment()}`);
    } catch {
      // a page inside another one may have no address of its own
    }
    const said = `Layer ${state.layer}, produced token ${state.step}, ${METRIC_NAMES[state.metric]}, ${state.variant}, ${SCALE_NAMES[state.scale]}${prompt().effect ? `, effect as ${MEASURES[state.measure]}` : ""}`;
    if (!playing && $("live").textContent !== said) $("live").textContent = said;
  }

  function choose(group, value) {
    for (const input of $(group).querySelectorAll("input")) input.checked = input.value === value;
  }

  function drawControls() {
    const file = prompt();
    if (changed("controls", state.prompt)) {
      $("prompt").value = state.prompt;
      $("variant").replaceChildren(...file.variants.map((name) => element("option", { value: name, textContent: name })));
      for (const name of ["layer", "from", "to"]) $(name).max = file.n_layers - 1;
      $("sinks-part").hidden = !file.sinks.length;
      $("sinks").replaceChildren(...file.sinks.map(({ position, share }) => {
        const box = element("input", { type: "checkbox", value: position });
        box.addEventListener("change", () => set({ kept: box.checked ? state.kept.filter((one) => one !== position) : [...state.kept, position] }));
        const about = share === null ? "" : `, ${percentText(share)} of attention`;
        return element("label", {}, box, ` leave out ${tokenTitle(position)}${about}`);
      }));
    }
    for (const box of $("sinks").querySelectorAll("input")) box.checked = !state.kept.includes(Number(box.value));
    $("layer").value = state.layer;
    $("layer").setAttribute("aria-valuetext", `layer ${state.layer} of 0 to ${file.n_layers - 1}`);
    $("layer-value").textContent = `${state.layer} / ${file.n_layers - 1}`;
    $("from").value = state.from;
    $("to").value = state.to;
    $("band").hidden = state.range !== "band";
    $("variant").value = state.variant;
    for (const name of ["range", "metric", "scale", "colours"]) choose(name, state[name]);
    choose("profile-unit", state.unit);
    choose("measure", state.measure);
    $("opacity").value = state.opacity;
    $("opacity-value").textContent = `${state.opacity} %`;
  }

  function stepName(index) {
    const { text } = prompt().steps[index];
    return text === "" ? `token ${index}` : text;
  }

  function drawAnswer() {
    const file = prompt();
    if (changed("steps", state.prompt)) {
      $("steps").replaceChildren(...file.steps.map((_, index) => tokenElement(stepName(index), `produced token ${index}: ${quoted(stepName(index))}`, () => set({ step: index }))));
      $("about").replaceChildren(...file.about.flatMap(([name, text]) => [element("dt", { textContent: name }), element("dd", { textContent: visible(text) })]));
      $("notices").replaceChildren(...[...page.notes, ...file.notices].map((note) => element("li", { textContent: visible(note) })));
    }
    [...$("steps").querySelectorAll(".token")].forEach((button, index) => {
      button.setAttribute("aria-pressed", index === state.step);
      button.tabIndex = index === state.step ? 0 : -1;
    });
    if (!changed("candidates", state.prompt, state.step)) return;
    const { candidates, id } = step();
    $("candidates-title").textContent = `Candidates for ${stepName(state.step) === step().text ? quoted(step().text, 30) : stepName(state.step)}`;
    $("candidates").hidden = !candidates.length;
    $("no-candidates").hidden = candidates.length > 0;
    $("candidates").tBodies[0].replaceChildren(...candidates.map((one) => {
      const bar = element("td", { className: "number", textContent: `${(100 * one.probability).toFixed(3)} %` });
      bar.style.setProperty("--bar", `${100 * one.probability}%`);
      const name = element("td", { textContent: quoted(one.text) + (one.id === id ? " (produced)" : "") });
      return element("tr", { className: one.id === id ? "produced" : "" }, name, element("td", { className: "number", textContent: one.id }), bar);
    }));
  }

  // A token in running text. A line break is written out and made.
  function tokenElement(text, label, onChoose) {
    const made = element("span", { className: "token", role: "button", tabIndex: -1, textContent: visible(text) || "\u2205", "aria-label": label });
    made.addEventListener("click", onChoose);
    return made;
  }

  function drawText() {
    const file = prompt();
    const n = step().n_positions;
    if (changed("text", state.prompt, state.step)) {
      const parts = [];
      let image = -1;
      for (let position = 0; position < n; position++) {
        if (position === file.n_prompt) parts.push(element("br"), element("span", { className: "hint", textContent: "answer so far " }));
        const cell = file.cellAt.get(position);
        if (!cell) {
          const made = tokenElement(file.texts[position], tokenTitle(position), () => toggleToken(position));
          made.dataset.position = position;
          if (file.specialAt.has(position)) made.classList.add("special");
          if (visible(file.texts[position]) !== file.texts[position]) made.classList.add("mark");
          parts.push(made);
          if (file.texts[position].includes("\n")) parts.push("\n");
        } else if (cell.image !== image) {
          ({ image } = cell);
          const made = tokenElement(`image ${image}`, "", () => toggleImage(cell.image));
          made.classList.add("image");
          made.dataset.image = image;
          parts.push(made);
        }
      }
      $("text").replaceChildren(...parts);
      const first = $("text").querySelector(".token");
      if (first) first.tabIndex = 0;
    }
    const { textLevels, textScale } = textShades();
    for (const made of $("text").querySelectorAll(".token")) {
      const isImage = made.dataset.image !== undefined;
      const key = isImage ? `image ${made.dataset.image}` : Number(made.dataset.position);
      const level = textLevels.get(key);
      const shaded = level !== undefined && !Number.isNaN(level);
      made.style.background = shaded ? colourAt(level) : "";
      made.style.color = shaded ? inkOn(rgbAt(level)) : "";
      if (isImage) drawImageChip(made);
      else {
        made.classList.toggle("none", !shaded && view.leftOut.has(key));
        made.classList.toggle("chosen", chosenTokens().includes(key));
        made.style.setProperty("--chosen", chosenColour(key) ?? "");
        made.setAttribute("aria-pressed", state.tokens.includes(key));
        made.setAttribute("aria-label", scoreTip(key).replaceAll("\n", ", "));
      }
    }
    $("text-hint").textContent = `Shaded by the share of the impact in ${layersText()} on ${answerName()}.${view.leftOut.size ? " Attention sinks are struck out." : ""} Choose tokens for their profiles.`;
    drawLegend("text-legend", textScale);
  }

  const answerName = () => (step().text === "" ? `produced token ${state.step}` : quoted(step().text, 30));

  // Level of each token of the prompt by position, of each image by name (its strongest patch), and their scale.
  function textShades() {
    const best = new Map();
    view.positions.forEach((position, i) => {
      const cell = prompt().cellAt.get(position);
      const key = cell ? `image ${cell.image}` : position;
      const score = view.scores[i];
      if (!best.has(key) || !(best.get(key) >= score)) best.set(key, Number.isNaN(score) ? best.get(key) ?? NaN : score);
    });
    const textScale = shareScale(view.positions.map((_, i) => i));
    const textLevels = new Map([...best].map(([key, score]) => [key, Number.isNaN(score) ? NaN : textScale.level(score)]));
    return { textLevels, textScale };
  }

  function imageShare(image) {
    let share = 0;
    view.positions.forEach((position, i) => {
      if (prompt().cellAt.get(position)?.image === image) share += view.scores[i] || 0;
    });
    return share;
  }

  function drawImageChip(made) {
    const image = Number(made.dataset.image);
    const [rows, columns] = prompt().images[image].grid;
    made.textContent = `image ${image} · ${rows} × ${columns} patches · ${percentText(imageShare(image))}`;
    made.setAttribute("aria-expanded", state.unfolded.includes(image));
    made.setAttribute("aria-label", `${made.textContent}, unfolds in the chart of layers and tokens`);
  }

  function toggleImage(image) {
    set({ unfolded: state.unfolded.includes(image) ? state.unfolded.filter((one) => one !== image) : [...state.unfolded, image].sort((a, b) => a - b) });
  }

  function drawLegend(id, scale) {
    const bar = element("i");
    bar.style.background = `linear-gradient(to right, ${STOPS[theme()].join(",")})`;
    const low = scale.bottom ? `≤ ${percentText(scale.bottom)}`.replace("≤ <", "<") : "0 %";
    $(id).replaceChildren(low, bar, `${percentText(scale.high)} · ${SCALE_NAMES[state.scale]}`);
  }

  // New content for an element; what had the focus in it gives it to what is at its place now.
  function replaceContent(parent, children) {
    const inner = () => [...parent.querySelectorAll("button")];
    const at = inner().indexOf(document.activeElement);
    parent.replaceChildren(...children);
    if (at >= 0) (inner()[at] ?? inner().at(-1))?.focus();
  }

  function drawChips() {
    const chosen = chosenTokens();
    replaceContent($("chips"), chosen.map((position) => {
      const name = element("button", { type: "button", textContent: tokenTitle(position), title: "Show its layers and heads", "aria-pressed": position === focusToken() });
      name.addEventListener("click", () => set({ tokens: chosen, focus: position }));
      const remove = element("button", { type: "button", textContent: "×", "aria-label": `Remove ${tokenTitle(position)}` });
      remove.addEventListener("click", () => set({ tokens: chosen.filter((one) => one !== position), focus: -1 }));
      const chip = element("span", { className: "chip" }, name, remove);
      chip.style.setProperty("--chosen", chosenColour(position));
      return chip;
    }));
    if (changed("add-token", state.prompt, state.step)) {
      $("add-token").replaceChildren(element("option", { value: "", textContent: "a token …" }), ...view.positions.map((position) => element("option", { value: position, textContent: tokenTitle(position) })));
    }
    $("add-token").value = "";
  }

  function drawStrongest() {
    if (!changed("strongest", state.prompt, state.step, state.variant, state.metric, state.kept, state.colours)) return;
    const found = [];
    for (let place = 0; place < view.values.length; place++) {
      if (view.counted[place % view.n] && view.values[place] > 0) found.push(place);
    }
    const by = state.colours === "layer" ? view.shares : view.values;
    found.sort((a, b) => by[b] - by[a] || a - b);
    $("strongest").tBodies[0].replaceChildren(...found.slice(0, 10).map((place) => {
      const position = view.positions[place % view.n];
      const texts = [Math.floor(place / view.n), position, tokenName(position), distanceText(view.values[place]), percentText(view.shares[place])];
      return element("tr", {}, ...texts.map((text, i) => element("td", { textContent: text, className: i > 2 ? "number" : "" })));
    }));
  }

  // ---- images ------------------------------------------------------------------------------------------------------------

  const cursors = []; // of each image the [row, column] that the keyboard is at

  function drawImages() {
    const { images } = prompt();
    $("images-card").hidden = !images.length;
    if (!images.length) return;
    if (changed("images", state.prompt)) {
      $("images").replaceChildren(...images.map(makeFigure));
      images.forEach((_, image) => { cursors[image] = [0, 0]; });
    }
    const places = view.positions.map((_, i) => i).filter((i) => prompt().cellAt.has(view.positions[i]));
    const scale = shareScale(places);
    images.forEach((image, number) => {
      const figure = $("images").children[number];
      drawOverlay(figure.querySelector("canvas"), number, scale);
      const name = image.source ? `image ${number}: ${visible(image.source)}` : `image ${number}`;
      const [rows, columns] = image.grid;
      figure.querySelector("figcaption").textContent = `${name} · ${rows} × ${columns} patches, together ${percentText(imageShare(number))} of ${layersText()}`;
    });
    drawLegend("images-legend", scale);
  }

  function makeFigure(image, number) {
    const canvas = element("canvas", { tabIndex: 0, role: "application", "aria-label": `Patches of image ${number}: arrow keys move, Enter chooses` });
    const picture = element("div", { className: "picture" });
    const aspect = image.size[0] / image.size[1];
    Object.assign(picture.style, { aspectRatio: String(aspect), maxWidth: `${Math.round(PICTURE_HEIGHT * Math.max(aspect, 0.2))}px` });
    if (image.preview) picture.append(element("img", { alt: `Image ${number} of the prompt`, src: `data:image/jpeg;base64,${image.preview}` }));
    picture.append(canvas);
    const cellOf = (event) => {
      const box = canvas.getBoundingClientRect();
      const [rows, columns] = image.grid;
      return [clamp(((event.clientY - box.top) / box.height) * rows, 0, rows - 1), clamp(((event.clientX - box.left) / box.width) * columns, 0, columns - 1)];
    };
    canvas.addEventListener("click", (event) => toggleToken(positionOf(number, ...cellOf(event))));
    canvas.addEventListener("mousemove", (event) => showTip(scoreTip(positionOf(number, ...cellOf(event))), event.clientX, event.clientY));
    canvas.addEventListener("mouseleave", hideTip);
    canvas.addEventListener("keydown", (event) => moveCell(event, number, canvas));
    canvas.addEventListener("focus", () => drawImages());
    canvas.addEventListener("blur", () => { hideTip(); drawImages(); });
    return element("figure", {}, picture, element("figcaption"));
  }

  function positionOf(image, row, column) {
    return prompt().cells.find((cell) => cell[1] === image && cell[2] === row && cell[3] === column)[0];
  }

  function moveCell(event, number, canvas) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const position = () => positionOf(number, ...cursors[number]);
    if (event.key === "Enter" || event.key === " ") toggleToken(position());
    else if (moves[event.key]) {
      const { grid } = prompt().images[number];
      cursors[number] = cursors[number].map((place, axis) => clamp(place + moves[event.key][axis], 0, grid[axis] - 1));
      const box = canvas.getBoundingClientRect();
      const tip = scoreTip(position());
      drawImages();
      showTip(tip, box.left + ((cursors[number][1] + 0.5) / grid[1]) * box.width, box.top + ((cursors[number][0] + 0.5) / grid[0]) * box.height);
      $("live").textContent = tip;
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  function drawOverlay(canvas, number, scale) {
    const { preview, grid: [rows, columns] } = prompt().images[number];
    const box = canvas.getBoundingClientRect();
    const ratio = Math.max(devicePixelRatio || 1, 1);
    canvas.width = Math.max(Math.round(box.width * ratio), columns);
    canvas.height = Math.max(Math.round(box.height * ratio), rows);
    const [wide, high] = [canvas.width / columns, canvas.height / rows];
    const context = canvas.getContext("2d");
    const focused = document.activeElement === canvas ? positionOf(number, ...cursors[number]) : -1;
    const marked = [];
    for (const [position, image, row, column] of prompt().cells) {
      if (image !== number) continue;
      const i = view.at.get(position);
      const score = i === undefined ? NaN : view.scores[i];
      const rect = [column * wide, row * high, wide, high];
      if (Number.isNaN(score)) drawCross(context, rect);
      else {
        const level = scale.level(score);
        // Over a picture, what matters little covers little of it.
        context.globalAlpha = preview ? (state.opacity / 100) * (0.2 + 0.8 * level) : 1;
        context.fillStyle = colourAt(level);
        context.fillRect(...rect);
        context.globalAlpha = 1;
      }
      if (position === focused || chosenTokens().includes(position)) marked.push([rect, position]);
    }
    context.strokeStyle = "rgb(128 128 128 / 45%)";
    context.lineWidth = 1;
    context.beginPath();
    if (Math.min(wide, high) > 5) {
      for (let column = 1; column < columns; column++) { context.moveTo(column * wide, 0); context.lineTo(column * wide, canvas.height); }
      for (let row = 1; row < rows; row++) { context.moveTo(0, row * high); context.lineTo(canvas.width, row * high); }
    }
    context.stroke();
    for (const [[x, y, w, h], position] of marked) {
      for (const [colour, width] of [["#ffffff", 5], [position === focused ? "#000000" : chosenColour(position), 3]]) {
        context.strokeStyle = colour;
        context.lineWidth = width * ratio;
        context.strokeRect(x + 2, y + 2, w - 4, h - 4);
      }
    }
  }

  function drawCross(context, [x, y, w, h]) {
    context.fillStyle = "rgb(128 128 128 / 55%)";
    context.fillRect(x, y, w, h);
    context.strokeStyle = "#ffffff";
    context.lineWidth = 2;
    context.beginPath();
    context.moveTo(x + w * 0.3, y + h * 0.3); context.lineTo(x + w * 0.7, y + h * 0.7);
    context.moveTo(x + w * 0.7, y + h * 0.3); context.lineTo(x + w * 0.3, y + h * 0.7);
    context.stroke();
  }

  // ---- charts ------------------------------------------------------------------------------------------------------------

  const plotlyReady = (async () => {
    const source = new TextDecoder().decode(await unzipped($("plotly-source").textContent));
    $("plotly-source").remove();
    document.head.append(element("script", { textContent: source }));
  })();

  const CONFIG = { displayModeBar: false, responsive: true, doubleClick: "reset" };

  function baseLayout(height, more) {
    const [ink, card, grid] = ["--ink", "--card", "--grid"].map(cssColour);
    const axis = { color: ink, gridcolor: grid, zeroline: false, fixedrange: false, automargin: true };
    const layout = {
      height, paper_bgcolor: card, plot_bgcolor: card, font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      margin: { l: 52, r: 12, t: 14, b: 44 }, showlegend: false, hovermode: "closest", dragmode: "zoom", ...more,
    };
    layout.xaxis = { ...axis, ...more.xaxis };
    layout.yaxis = { ...axis, ...more.yaxis };
    return layout;
  }

  const handlers = new WeakMap();
  // Draws a chart; `tip(point)` is the text for what the pointer is on, `click(point)` what a click there does.
  async function drawChart(id, data, layout, tip, click) {
    const chart = $(id);
    const isNew = !handlers.has(chart);
    handlers.set(chart, { tip, click });
    chart.style.height = `${layout.height}px`; // plotly takes the element's when the window changes
    await Plotly.react(chart, data, layout, CONFIG);
    if (!isNew) return;
    chart.on("plotly_hover", ({ points, event }) => showTip(handlers.get(chart).tip(points[0]), event.clientX, event.clientY));
    chart.on("plotly_unhover", hideTip);
    chart.on("plotly_click", ({ points }) => handlers.get(chart).click(points[0]));
    chart.on("plotly_relayout", (what) => { if (BY_COLUMNS.includes(id) && Object.keys(what).some((name) => name.startsWith("xaxis.range") || name === "xaxis.autorange")) labelColumns(id); });
  }

  async function drawCharts() {
    await drawHeat();
    await drawProfile();
    await drawHeads();
    await drawSplit();
    await drawEffect();
    await drawScatter();
    await drawAgreement();
  }

  // Levels of a matrix [layer][column] of distances (null: none) under the scale, each layer's own or one for all; and colour bar.
  function matrixLevels(matrix) {
    const perLayer = state.colours === "layer";
    const whole = makeScale(state.scale, ...extent(matrix.flat().filter((value) => value !== null)));
    const scales = matrix.map((row) => (perLayer ? makeScale(state.scale, ...extent(row.filter((value) => value !== null))) : whole));
    const ends = perLayer ? { tickvals: [0, 1], ticktext: ["least", "most"] } : { tickvals: TICKS, ticktext: TICKS.map((level) => shortText(whole.value(level))) };
    if (perLayer && state.scale !== "log") ends.ticktext[0] = "0";
    const title = { text: perLayer ? "of each layer" : METRIC_NAMES[state.metric], side: "right", font: { size: 11 } };
    const colorbar = { ...ends, title, thickness: 10, outlinewidth: 0, len: 1, lenmode: "fraction", y: 0.5, tickfont: { size: 11 } };
    return { levels: matrix.map((row, layer) => row.map((value) => (value === null ? null : scales[layer].level(value)))), colorbar };
  }

  // Lines around the layers shown.
  function bandShapes(high) {
    const layers = layersShown();
    if (layers.length === prompt().n_layers && layers.length > 1) return [];
    const line = { color: cssColour("--accent"), width: 2 };
    return [{ type: "rect", xref: "paper", x0: 0, x1: 1, y0: layers[0] - 0.5, y1: layers.at(-1) + 0.5, line, fillcolor: "rgba(0,0,0,0)", ...high }];
  }

  // The layers shown in charts that have layers from left to right.
  function layerShapes() {
    const layers = layersShown();
    if (layers.length === view.nLayers && layers.length > 1) return [];
    return [{ type: "rect", yref: "paper", y0: 0, y1: 1, x0: layers[0] - 0.5, x1: layers.at(-1) + 0.5, line: { width: 0 }, fillcolor: cssColour("--accent"), opacity: 0.14 }];
  }

  const layerAxis = () => {
    const n = prompt().n_layers;
    const every = [1, 2, 5, 10, 20, 50].find((one) => n <= 16 * one) ?? 100;
    return { tickmode: "linear", tick0: 0, dtick: every, range: [-0.5, n - 0.5] };
  };
  const chartHeight = (least = 170) => Math.min(Math.max(11 * prompt().n_layers, least), 620);

  const BY_COLUMNS = ["heat", "effect"]; // charts of layers by columns
  const laidOut = {}; // of each its { columns, edges }, edges in columns of one token

  function layOut(id, columns) {
    const block = Math.max(2, Math.round(columns.length / 14));
    const edges = [0];
    for (const column of columns) edges.push(edges.at(-1) + (column.image === null ? 1 : block));
    laidOut[id] = { columns, edges };
    return laidOut[id];
  }

  async function drawHeat() {
    const what = [state.prompt, state.step, state.variant, state.metric, state.kept, state.unfolded, state.scale, state.colours, theme()];
    const draw = async () => {
      const { columns } = layOut("heat", makeColumns());
      const matrix = Array.from({ length: prompt().n_layers }, (_, layer) => columns.map((column) => columnValue(view.values, column, layer)));
      const { levels, colorbar } = matrixLevels(matrix);
      const heat = { z: levels, customdata: matrix, zmin: 0, zmax: 1, colorscale: colourScale(), colorbar };
      await drawByColumns("heat", heat, (column, layer) => (column.image === null ? cellTip(column.positions[0], layer) : imageTip(column, layer)));
      describe("heat", `Heat map of ${view.nLayers} layers by ${columns.length} tokens`);
      drawFolds();
    };
    await drawOrMark("heat", what, draw);
  }

  // Draws a chart of layers by columns where it was drawn for something else, else its marks where these have changed.
  async function drawOrMark(id, what, draw, shapes = () => []) {
    if (changed(id, ...what)) await draw();
    else if (changed(`${id}-marks`, what, layersShown(), chosenTokens())) await Plotly.update(id, markers(id), { shapes: [...bandShapes(), ...shapes()] }, [1]);
    changed(`${id}-marks`, what, layersShown(), chosenTokens());
  }

  // `tip(column, layer)` is the text for a cell, `shapes` lie over the cells.
  async function drawByColumns(id, heat, tip, shapes = []) {
    const { columns, edges } = laidOut[id];
    const gap = edges.at(-1) < 120 ? 1 : 0;
    const cells = { type: "heatmap", x: edges, y: heat.z.map((_, layer) => layer), xgap: gap, ygap: gap, hoverinfo: "none", hoverongaps: true, ...heat };
    const layout = baseLayout(chartHeight(240) + 130, {
      plot_bgcolor: cssColour("--none"), margin: { l: 44, r: 10, t: 18, b: 130 }, shapes: [...bandShapes(), ...shapes],
      xaxis: { range: [0, edges.at(-1)], showgrid: false, tickangle: -90, tickfont: { size: 11 }, automargin: false },
      yaxis: { ...layerAxis(), showgrid: false, title: { text: "layer", standoff: 4 }, fixedrange: true },
    });
    const marks = { type: "scatter", mode: "markers", hoverinfo: "skip", cliponaxis: false, ...only(markers(id)) };
    await drawChart(id, [cells, marks], layout, ({ pointNumber: [layer, index] }) => tip(columns[index], layer), ({ pointNumber: [layer, index] }) => {
      const { image, positions } = columns[index];
      if (image === null && positions.length === 1) {
        state = normalise({ ...state, layer, range: "layer" });
        toggleToken(positions[0]);
      } else if (image === null) set({ layer, range: "layer", tokens: positions, focus: -1 });
      else set({ layer, range: "layer" });
    });
    await labelColumns(id);
  }

  // Marks of the chosen tokens above their columns.
  function markers(id) {
    const { columns, edges } = laidOut[id];
    const [x, colour] = [[], []];
    for (const position of chosenTokens()) {
      columns.forEach((column, index) => {
        if (!column.positions.includes(position)) return;
        x.push((edges[index] + edges[index + 1]) / 2);
        colour.push(chosenColour(position));
      });
    }
    return { x: [x], y: [x.map(() => prompt().n_layers - 0.5)], marker: [{ symbol: "triangle-down", size: 11, color: colour, line: { width: 1, color: cssColour("--card") } }] };
  }
  const only = (updates) => Object.fromEntries(Object.entries(updates).map(([name, [value]]) => [name, value]));

  // Texts under the columns that are in sight: all, or as many as there is room for.
  async function labelColumns(id) {
    const chart = $(id);
    const { columns, edges } = laidOut[id];
    const isMarked = id === "heat" ? (position) => view.leftOut.has(position) : isSink;
    const [from, to] = chart.layout.xaxis.range ?? [0, edges.at(-1)];
    const inSight = columns.map((_, index) => index).filter((index) => edges[index + 1] > from && edges[index] < to);
    const room = Math.max(Math.floor((chart.getBoundingClientRect().width - 130) / 13), 4);
    const every = Math.ceil(inSight.length / room);
    const labelled = inSight.filter((index, nth) => nth % every === 0 || columns[index].image !== null);
    const ticktext = labelled.map((index) => {
      const { positions, image, groups: inColumn } = columns[index];
      const mark = positions.some(isMarked) ? " ×" : "";
      if (inColumn && groups()) return plotlyText(`${quoted(groups()[inColumn[0]][0], 18)}${mark}`);
      if (image !== null) return plotlyText(`${positions[0]}–${positions.at(-1)} image ${image}`);
      return plotlyText(`${positions[0]} ${tokenName(positions[0], 14)}${mark}`);
    });
    const longest = Math.max(...ticktext.map((text) => [...text].length), 8);
    await Plotly.relayout(chart, { "margin.b": Math.min(22 + 6.4 * longest, 150), "xaxis.tickvals": labelled.map((index) => (edges[index] + edges[index + 1]) / 2), "xaxis.ticktext": ticktext });
  }

  function drawFolds() {
    replaceContent($("folds"), prompt().images.map((_, number) => {
      const isOpen = state.unfolded.includes(number);
      const made = element("button", { type: "button", textContent: `${isOpen ? "Fold" : "Unfold"} image ${number}`, "aria-expanded": isOpen });
      made.addEventListener("click", () => toggleImage(number));
      return made;
    }));
    const folded = laidOut.heat.columns.some((column) => column.image !== null) ? " A folded image shows its strongest patch." : "";
    const grey = view.leftOut.size ? " Grey columns marked × are attention sinks, left out." : "";
    $("heat-hint").textContent = `${METRIC_NAMES[state.metric]} distance of ${state.variant}, ${SCALE_NAMES[state.scale]}, for ${answerName()}.${folded}${grey}`;
  }

  function describe(id, text) {
    $(id).setAttribute("aria-label", `${text}. ${METRIC_NAMES[state.metric]} of ${state.variant}. Its numbers can be saved as CSV.`);
  }

  function profileValues(position) {
    const i = view.at.get(position);
    return Array.from({ length: view.nLayers }, (_, layer) => {
      const place = layer * view.n + i;
      return state.unit === "distance" ? view.values[place] : view.leftOut.has(position) ? NaN : view.shares[place];
    });
  }

  async function drawProfile() {
    const what = [state.prompt, state.step, state.variant, state.metric, state.kept, state.scale, state.unit, theme(), chosenTokens()];
    if (!changed("profile", ...what)) {
      if (changed("profile-marks", layersShown(), what)) await Plotly.relayout("profile", { shapes: layerShapes() });
      return;
    }
    changed("profile-marks", layersShown(), what);
    const chosen = chosenTokens();
    const profiles = chosen.map(profileValues);
    const [high] = extent(profiles.flat());
    const up = state.scale === "sqrt" ? (value) => Math.sqrt(Math.max(value, 0)) : (value) => value;
    const unitText = state.unit === "share" ? percentText : shortText;
    const data = chosen.map((position, nth) => ({
      type: "scatter", mode: "lines+markers", x: profiles[nth].map((_, layer) => layer), customdata: profiles[nth], hoverinfo: "none",
      y: profiles[nth].map((value) => (Number.isFinite(value) && (state.scale !== "log" || value > 0) ? up(value) : null)),
      line: { color: chosenColour(position), dash: DASHES[nth], width: 2 }, marker: { symbol: SYMBOLS[nth], size: 6 }, name: plotlyText(tokenTitle(position)),
    }));
    const yaxis = { title: { text: state.unit === "share" ? "share of the layer" : METRIC_NAMES[state.metric], standoff: 8 }, rangemode: "tozero" };
    if (state.scale === "log") Object.assign(yaxis, { type: "log", dtick: 1, exponentformat: "power", tickformat: state.unit === "share" ? "~%" : undefined });
    else {
      const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => part * (high || 1));
      Object.assign(yaxis, { tickvals: ticks.map(up), ticktext: ticks.map(unitText), range: [0, up((high || 1) * 1.06)], type: "linear" });
    }
    const layout = baseLayout(chartHeight(300), { shapes: layerShapes(), xaxis: { ...layerAxis(), title: { text: "layer", standoff: 6 } }, yaxis });
    await drawChart("profile", data, layout, ({ curveNumber, x }) => cellTip(chosenTokens()[curveNumber], x), ({ x }) => set({ layer: x, range: "layer" }));
    describe("profile", `Profile over layers of ${chosen.map((position) => tokenTitle(position)).join(", ") || "no token"}`);
  }

  async function headMatrix() {
    const i = view.at.get(focusToken());
    const all = await Promise.all(prompt().heads.map(({ index }) => block(state.metric, index)));
    return Array.from({ length: view.nLayers }, (_, layer) => all.map((values) => (Number.isFinite(values[layer * view.n + i]) ? values[layer * view.n + i] : null)));
  }

  async function drawHeads() {
    const { heads } = prompt();
    const position = focusToken();
    $("heads-card").hidden = !heads.length || position === undefined;
    if ($("heads-card").hidden) return;
    const what = [state.prompt, state.step, state.metric, state.scale, state.colours, theme(), position];
    if (!changed("heads", ...what)) {
      if (changed("heads-marks", layersShown(), what)) await Plotly.relayout("heads", { shapes: bandShapes() });
      return;
    }
    changed("heads-marks", layersShown(), what);
    const matrix = await headMatrix();
    const { levels, colorbar } = matrixLevels(matrix);
    $("heads-hint").textContent = `${METRIC_NAMES[state.metric]} distance of each head when ${tokenTitle(position)} is hidden${page.digits < EXACT ? ", rounded" : ""}`;
    const data = [{ type: "heatmap", x: heads.map((_, nth) => nth), y: matrix.map((_, layer) => layer), z: levels, customdata: matrix, zmin: 0, zmax: 1, colorscale: colourScale(), colorbar, xgap: 1, ygap: 1, hoverinfo: "none", hoverongaps: true }];
    const ticks = heads.map((_, nth) => nth).filter((nth) => heads.length <= 16 || nth % Math.ceil(heads.length / 16) === 0);
    const layout = baseLayout(chartHeight(270) + 30, {
      plot_bgcolor: cssColour("--none"), shapes: bandShapes(), xaxis: { tickvals: ticks, ticktext: ticks.map((nth) => plotlyText(visible(heads[nth].name.slice(5, 17)))), title: { text: "head", standoff: 4 }, showgrid: false },
      yaxis: { ...layerAxis(), showgrid: false, title: { text: "layer", standoff: 4 } },
    });
    await drawChart("heads", data, layout, ({ pointNumber: [layer, nth] }) => `layer ${layer} · ${heads[nth].name} · ${tokenTitle(position)}\n${METRIC_NAMES[state.metric]} ${distanceText(matrix[layer][nth] ?? NaN, page.digits < EXACT)}`,
      ({ pointNumber: [layer, nth] }) => set({ layer, range: "layer", variant: heads[nth].name }));
    describe("heads", `Heat map of ${view.nLayers} layers by ${heads.length} heads for ${tokenTitle(position)}`);
  }

  // Share of image tokens in each layer, NaN where nothing had an impact.
  function imageShares() {
    return Array.from({ length: view.nLayers }, (_, layer) => {
      let [share, any] = [0, false];
      view.positions.forEach((position, i) => {
        const one = view.shares[layer * view.n + i];
        if (Number.isNaN(one)) return;
        any = true;
        if (prompt().cellAt.has(position)) share += one;
      });
      return any ? share : NaN;
    });
  }

  async function drawSplit() {
    const hasBoth = view.positions.some((position) => prompt().cellAt.has(position)) && view.positions.some((position) => !prompt().cellAt.has(position));
    $("split-card").hidden = !hasBoth;
    if (!hasBoth || !changed("split", state.prompt, state.step, state.variant, state.metric, state.kept, theme())) return;
    const shares = imageShares();
    const layers = shares.map((_, layer) => layer);
    const bars = (name, values, color) => ({ type: "bar", name, x: layers, y: values.map((value) => (Number.isNaN(value) ? null : 100 * value)), marker: { color }, hoverinfo: "none" });
    const layout = baseLayout(260, {
      barmode: "stack", bargap: 0.12, showlegend: true, legend: { orientation: "h", traceorder: "normal", y: 1.02, yanchor: "bottom", x: 0 }, margin: { l: 52, r: 12, t: 36, b: 44 },
      xaxis: { ...layerAxis(), title: { text: "layer", standoff: 6 }, showgrid: false }, yaxis: { range: [0, 100], ticksuffix: " %" },
    });
    $("split-hint").textContent = `Of each layer's ${METRIC_NAMES[state.metric]} distances of ${state.variant}, how much falls on image tokens and how much on text.`;
    await drawChart("split", [bars("image", shares, LINES[theme()][0]), bars("text", shares.map((share) => 1 - share), cssColour("--none"))], layout,
      ({ x }) => `layer ${x}\nimage ${percentText(imageShares()[x])}\ntext ${percentText(1 - imageShares()[x])}`, ({ x }) => set({ layer: x, range: "layer" }));
    describe("split", "Share of image and text in each layer");
  }

  // ---- effect on the answer ----------------------------------------------------------------------------------------------

  const isSink = (position) => prompt().sinks.some((sink) => sink.position === position);
  const effectFloor = () => step().effect.floors[state.measure];
  const isNone = (value) => Math.abs(value) <= effectFloor();
  // What was hidden at once is a group; without other groups each position is one, at its own place.
  const groups = () => step().effect.groups;
  const nGroups = () => (groups() ?? view.positions).length;
  const hiddenIn = (group) => (groups() ? groups()[group][1] : [view.positions[group]]);
  const placeOf = (group, layer) => layer * nGroups() + group;
  const isChanged = (group, layer) => view.effect.top1[placeOf(group, layer)] !== step().effect.likeliest;
  const atPosition = (position, layer) => placeOf(view.at.get(position), layer);

  function signedText(value) {
    if (!Number.isFinite(value)) return "no value";
    return `${value < 0 ? "−" : value > 0 ? "+" : ""}${float32Text(Math.abs(value))}`;
  }

  // The columns of the chart: those of the other one, or a group each; `groups` are the effects' columns within one.
  function effectColumns() {
    if (groups()) return groups().map(([, positions], group) => ({ positions, image: null, groups: [group] }));
    return makeColumns().map((column) => ({ ...column, groups: column.positions.map((position) => view.at.get(position)) }));
  }

  function groupName(group, width = Infinity) {
    if (!groups()) return `position ${view.positions[group]} · ${tokenName(view.positions[group], width)}`;
    const [name, positions] = groups()[group];
    const [first, last] = [Math.min(...positions), Math.max(...positions)];
    const where = first === last ? `position ${first}` : `${positions.length} tokens within ${first}–${last}`;
    return `${quoted(name, width)} · ${where}`;
  }

  // Of a column in a layer the group with the largest effect, -1 where none has a value.
  function strongestOf(column, layer) {
    let [best, most] = [-1, -1];
    for (const group of column.groups) {
      const size = Math.abs(view.effect[state.measure][placeOf(group, layer)]);
      if (Number.isFinite(size) && size > most) [best, most] = [group, size];
    }
    return best;
  }

  function windowText(layer) {
    const { window: width } = prompt().effect;
    if (width === null || width === 1) return "";
    if (width === "all") return " (hidden in all)";
    return ` (hidden in ${Math.max(layer - ((width - 1) >> 1), 0)}–${Math.min(layer + (width >> 1), view.nLayers - 1)})`;
  }

  function effectTip(group, layer) {
    const place = placeOf(group, layer);
    const { logprob, kl, top1 } = view.effect;
    const lines = [`layer ${layer}${windowText(layer)} · ${groupName(group)}`];
    if (Number.isNaN(logprob[place]) && Number.isNaN(kl[place])) return [...lines, "no value"].join("\n");
    lines.push(`log-probability ${signedText(logprob[place])} nats, KL ${distanceText(kl[place], false)} nats`);
    const most = quoted(step().effect.top1_texts[top1[place]] ?? "", 40);
    lines.push(isChanged(group, layer) ? `the most probable token becomes ${most}` : `${most} stays the most probable token`);
    if (isNone(view.effect[state.measure][place])) lines.push(`no more than the noise floor, ${natsText(effectFloor())} nats`);
    if (hiddenIn(group).some(isSink)) lines.push(groups() ? "with an attention sink" : "attention sink");
    return lines.join("\n");
  }

  function effectColumnTip(column, layer) {
    if (column.image === null) return effectTip(column.groups[0], layer);
    const { image } = column;
    const [rows, columnsOf] = prompt().images[image].grid;
    const best = strongestOf(column, layer);
    const lines = [`image ${image}, ${rows} × ${columnsOf} patches`];
    if (best < 0) return [...lines, "no value"].join("\n");
    const nChanged = column.groups.filter((group) => isChanged(group, layer)).length;
    lines.push(`of ${nChanged} the most probable token changes`, "the patch with the largest effect:", effectTip(best, layer));
    return lines.join("\n");
  }

  // Sizes of effects go over many decades.
  const natsText = (size) => (size > 0 && size < 0.001 ? size.toExponential(2).replace(/\.?0*e/, "e").replace("-", "−") : shortText(size));

  // Levels from -1 to 1, null for what is no more than the floor; all layers have one scale, since nats are the same in each.
  function effectLevels(matrix) {
    const sizes = matrix.flat().map((value) => (value === null || isNone(value) ? 0 : Math.abs(value)));
    const scale = makeScale(state.scale, ...extent(sizes));
    const levels = matrix.map((row) => row.map((value) => (value === null || isNone(value) ? null : Math.sign(value) * scale.level(Math.abs(value)))));
    const ticks = state.measure === "kl" ? TICKS : [-1, -0.5, 0, 0.5, 1];
    const text = (level) => (level === 0 && state.scale !== "log" ? "0" : `${level < 0 ? "−" : ""}${natsText(scale.value(Math.abs(level)))}`);
    const colorbar = { tickvals: ticks, ticktext: ticks.map(text), title: { text: "nats", side: "right", font: { size: 11 } }, thickness: 10, outlinewidth: 0, len: 1, lenmode: "fraction", y: 0.5, tickfont: { size: 11 } };
    return { levels, scale, colorbar };
  }

  // A line through each cell in which another token becomes the most probable, dark within light.
  function changedShapes() {
    const { columns, edges } = laidOut.effect;
    const parts = [];
    columns.forEach((column, index) => {
      const [left, wide] = [edges[index], edges[index + 1] - edges[index]];
      for (let layer = 0; layer < view.nLayers; layer++) {
        if (!column.groups.some((group) => isChanged(group, layer))) continue;
        parts.push(`M${left + 0.2 * wide},${layer - 0.3}L${left + 0.8 * wide},${layer + 0.3}`);
      }
    });
    if (!parts.length) return [];
    const path = parts.join("");
    return [["--card", 3], ["--ink", 1.3]].map(([colour, width]) => ({ type: "path", name: "changed", path, line: { color: cssColour(colour), width } }));
  }

  async function drawEffect() {
    if (!prompt().effect) return;
    const what = [state.prompt, state.step, state.unfolded, state.scale, state.measure, theme()];
    const draw = async () => {
      const { columns } = layOut("effect", effectColumns());
      const best = Array.from({ length: view.nLayers }, (_, layer) => columns.map((column) => strongestOf(column, layer)));
      const matrix = best.map((row, layer) => row.map((group) => (group < 0 ? null : view.effect[state.measure][placeOf(group, layer)])));
      const { levels, scale, colorbar } = effectLevels(matrix);
      const colours = state.measure === "kl" ? { zmin: 0, zmax: 1, colorscale: colourScale() } : { zmin: -1, zmax: 1, colorscale: signedColours() };
      await drawByColumns("effect", { z: levels, customdata: matrix, colorbar, ...colours }, effectColumnTip, changedShapes());
      $("effect").setAttribute("aria-label", `Heat map of the effect, ${MEASURES[state.measure]}, at most ${natsText(scale.high)} nats, ${view.nLayers} layers by ${columns.length} ${groups() ? "groups of tokens" : "tokens"}. Its numbers can be saved as CSV.`);
      drawEffectLegend();
    };
    await drawOrMark("effect", what, draw, changedShapes);
  }

  function drawEffectLegend() {
    const sign = (colours, text) => {
      const bar = element("i");
      bar.style.background = `linear-gradient(to right, ${colours.join(",")})`;
      return element("span", {}, bar, text);
    };
    const { negative, positive } = SIGNED[theme()];
    const name = answerName();
    const signs = state.measure === "kl" ? [sign(STOPS[theme()], "the whole distribution changes")] : [sign(negative, `${name} becomes less likely`), sign(positive, `${name} becomes more likely`)];
    const floor = effectFloor() > 0 ? `no more than the noise floor, ${natsText(effectFloor())} nats` : "no effect at all";
    $("effect-legend").replaceChildren(...signs, element("span", {}, element("i", { className: "cell" }), floor), element("span", {}, element("i", { className: "cell struck" }), "another token becomes the most probable"));
  }

  // What is said of the effect, and the two tables.
  function drawEffectText() {
    const { effect, sinks } = prompt();
    $("effect-part").hidden = !effect;
    if (!effect || !changed("effect-text", state.prompt, state.step, state.unfolded, state.scale, state.metric, state.variant, state.measure, chosenTokens())) return;
    $("effect-about").textContent = visible(effect.about);
    const { n_layers: nLayers } = prompt();
    const nChanged = view.effect.top1.reduce((sum, id) => sum + (id !== step().effect.likeliest), 0);
    const folded = effectColumns().some((column) => column.image !== null) ? " A folded image shows its patch with the largest effect." : "";
    const hidden = new Set(Array.from({ length: nGroups() }, (_, group) => hiddenIn(group)).flat());
    const anySink = sinks.some((sink) => hidden.has(sink.position));
    const which = groups() ? " Columns marked × have an attention sink among their tokens." : " Columns marked × are attention sinks: they are shown here, and not counted in what is said of agreement below.";
    const alone = groups() ? " Local impact is of single tokens and does not add up, so there is none to put beside these." : "";
    const marked = (anySink ? which : "") + alone;
    const unit = state.measure === "kl" ? "Kullback-Leibler divergence of the next token's distribution, unmasked from masked" : `Change of the log-probability of ${answerName()}`;
    $("effect-hint").textContent = `${unit}, in nats, ${SCALE_NAMES[state.scale]}, one for all layers. In ${nChanged.toLocaleString("en")} of ${(nGroups() * nLayers).toLocaleString("en")} (layer, ${groups() ? "group" : "token"}) another token than ${answerName()} becomes the most probable.${folded}${marked}`;
    $("effect-beside").hidden = $("apart-card").hidden = groups() !== null;
    if (groups()) return;
    $("apart-hint").textContent = `Tokens are ranked twice over all layers: by the mean of their shares of the layers' ${METRIC_NAMES[state.metric]} distances of ${state.variant}, and by the mean size of their effect (${MEASURES[state.measure]}, nats; what is no more than the noise floor counts as 0). Here are the tokens of the stronger half of one ranking that are furthest behind in the other, at most five. Attention sinks are not counted.`;
    for (const [name, rows] of Object.entries(apartLists())) {
      const made = rows.map(([position, share, shareRank, size, sizeRank]) => {
        const button = element("button", { type: "button", className: "link", textContent: tokenTitle(position), title: "Choose it" });
        button.addEventListener("click", () => toggleToken(position));
        const numbers = [percentText(share), shareRank, size ? natsText(size) : "none", sizeRank].map((textContent) => element("td", { className: "number", textContent }));
        return element("tr", { className: chosenTokens().includes(position) ? "current" : "" }, element("td", {}, button), ...numbers);
      });
      replaceContent($(`apart-${name}`).tBodies[0], made.length ? made : [element("tr", {}, element("td", { colSpan: 5, textContent: "none" }))]);
    }
  }

  function apartLists() {
    const [local, effect] = step().effect.apart[state.measure][state.metric][state.variant];
    return { local, effect };
  }

  const hasNorms = () => view.effect.norm.every(Number.isFinite);

  // The distance over the norm of the unmasked quantity where there are norms; cosine distance as it is.
  function localImpact(position, layer) {
    const value = view.values[layer * view.n + view.at.get(position)];
    if (state.metric !== "l2" || !hasNorms()) return value;
    const norm = view.effect.norm[layer * prompt().variants.length + prompt().variants.indexOf(state.variant)];
    return norm > 0 ? value / norm : NaN;
  }
  const localName = () => `${METRIC_NAMES[state.metric]} of ${visible(state.variant)}${state.metric === "l2" && hasNorms() ? ", over the norm" : ""}`;

  // Points of the scatter: { position, layer, x, y } of the layers shown, and how many can't stand on its scales.
  function scatterPoints() {
    const points = [];
    let nLeft = 0;
    for (const layer of layersShown()) {
      for (const position of view.positions) {
        const [x, y] = [localImpact(position, layer), Math.abs(view.effect[state.measure][atPosition(position, layer)])];
        if (x > 0 && y > 0 && Number.isFinite(x + y)) points.push({ position, layer, x, y });
        else nLeft++;
      }
    }
    return { points, nLeft };
  }

  async function drawScatter() {
    if (!prompt().effect || groups()) return;
    if (!changed("scatter", state.prompt, state.step, state.variant, state.metric, state.measure, layersShown(), chosenTokens(), theme())) return;
    const { points, nLeft } = scatterPoints();
    const chosen = chosenTokens();
    const named = new Set([...chosen, ...Object.values(apartLists()).flat().map(([position]) => position)]);
    const every = Math.ceil(points.length / MOST_POINTS);
    const drawn = points.filter(({ position }, nth) => nth % every === 0 || named.has(position) || isSink(position));
    const kinds = [
      { name: "token", marker: { symbol: "circle", color: cssColour("--accent"), size: 6, opacity: 0.55 }, has: ({ position, y }) => !isSink(position) && !isNone(y) },
      { name: "no more than the noise floor", marker: { symbol: "circle", color: cssColour("--soft"), size: 5, opacity: 0.4 }, has: ({ position, y }) => !isSink(position) && isNone(y) },
      { name: "attention sink", marker: { symbol: "x", color: cssColour("--ink"), size: 7, opacity: 0.8 }, has: ({ position }) => isSink(position) },
    ].map((kind) => ({ ...kind, points: drawn.filter((point) => !chosen.includes(point.position) && kind.has(point)) }));
    for (const position of chosen) {
      const marker = { symbol: isSink(position) ? "x" : SYMBOLS[chosen.indexOf(position)], color: chosenColour(position), size: 9, line: { width: 1, color: cssColour("--card") } };
      kinds.push({ name: tokenTitle(position) + (isSink(position) ? ", attention sink" : ""), marker, points: drawn.filter((point) => point.position === position) });
    }
    const shown = kinds.filter((kind) => kind.points.length);
    const data = shown.map(({ name, marker, points: own }) => ({ type: "scatter", mode: "markers", name: plotlyText(name), x: own.map(({ x }) => x), y: own.map(({ y }) => y), customdata: own.map(({ layer, position }) => [layer, position]), marker, hoverinfo: "none" }));
    const log = { type: "log", exponentformat: "power", autorange: true, tickangle: 0 };
    const [high, low] = extent(drawn.map(({ x }) => x));
    const decades = Math.max(Math.ceil(Math.log10(high / low) / ($("scatter").clientWidth / 70)), 1) || 1; // between ticks
    const line = effectFloor() > 0 ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: effectFloor(), y1: effectFloor(), line: { color: cssColour("--soft"), width: 1, dash: "dot" } }] : [];
    const layout = baseLayout(440, {
      shapes: line, showlegend: true, legend: { orientation: "h", y: 1.01, yanchor: "bottom", x: 0, font: { size: 11 }, itemclick: false, itemdoubleclick: false }, margin: { l: 62, r: 12, t: 14, b: 48 },
      xaxis: { ...log, dtick: decades, title: { text: plotlyText(localName()), standoff: 6 } }, yaxis: { ...log, dtick: 1, title: { text: `size of the ${MEASURES[state.measure]}, nats`, standoff: 8 } },
    });
    await drawChart("scatter", data, layout, ({ customdata: [layer, position] }) => `${effectTip(view.at.get(position), layer)}\n${localName()} ${rounded() ? "≈ " : ""}${shortText(localImpact(position, layer))}`, ({ customdata: [layer, position] }) => {
      state = normalise({ ...state, layer });
      toggleToken(position);
    });
    const norms = state.metric === "l2" && !hasNorms() ? " The result has no norms, and L2 distances as they are can't be compared between layers." : "";
    const left = nLeft ? ` ${nLeft.toLocaleString("en")} without an effect or an impact have no place on logarithmic scales.` : "";
    const some = drawn.length < points.length ? ` ${drawn.length.toLocaleString("en")} of ${points.length.toLocaleString("en")} are drawn, all of chosen tokens, of sinks and of those in the tables below; fewer layers or the CSV show all.` : "";
    $("scatter-hint").textContent = `Each token in ${layersText()}.${norms}${left}${some}`;
    $("scatter").setAttribute("aria-label", `Scatter of ${drawn.length} (layer, token): ${localName()} against the size of the ${MEASURES[state.measure]}, logarithmic scales. Its numbers can be saved as CSV.`);
  }

  // Of each layer the rank correlation, NaN where there is none, and how many tokens it is of.
  function layerAgreement() {
    const [measures, metrics] = [Object.keys(MEASURES), Object.keys(METRIC_NAMES)];
    const row = (measures.indexOf(state.measure) * metrics.length + metrics.indexOf(state.metric)) * prompt().variants.length + prompt().variants.indexOf(state.variant);
    return Array.from({ length: view.nLayers }, (_, layer) => ({ rho: view.effect.rho[row * view.nLayers + layer], n: view.effect.n[row * view.nLayers + layer] }));
  }
  const rhoText = (rho) => (Number.isNaN(rho) ? "none" : rho.toFixed(3).replace("-", "−"));

  async function drawAgreement() {
    if (!prompt().effect || groups()) return;
    const what = [state.prompt, state.step, state.variant, state.metric, state.measure, theme()];
    if (!changed("agreement", ...what)) {
      if (changed("agreement-marks", layersShown(), what)) await Plotly.relayout("agreement", { shapes: layerShapes() });
      return;
    }
    changed("agreement-marks", layersShown(), what);
    const found = layerAgreement();
    const line = { type: "scatter", mode: "lines+markers", x: found.map((_, layer) => layer), y: found.map(({ rho }) => (Number.isNaN(rho) ? null : rho)), customdata: found.map(({ n }) => n), line: { color: LINES[theme()][0], width: 2 }, marker: { size: 6 }, hoverinfo: "none" };
    const layout = baseLayout(440, {
      shapes: layerShapes(), xaxis: { ...layerAxis(), title: { text: "layer", standoff: 6 } },
      yaxis: { range: [-1.05, 1.05], dtick: 0.5, zeroline: true, zerolinecolor: cssColour("--soft"), title: { text: "rank correlation", standoff: 8 } },
    });
    await drawChart("agreement", [line], layout, ({ x }) => `layer ${x}\nrank correlation ${rhoText(found[x].rho)}\nof ${found[x].n} tokens`, ({ x }) => set({ layer: x, range: "layer" }));
    const numbers = found.map(({ n }) => n);
    const [fewest, most] = [Math.min(...numbers), Math.max(...numbers)];
    const none = found.filter(({ rho }) => Number.isNaN(rho)).length;
    const missing = none ? ` ${none} of ${view.nLayers} layers have none: fewer than 3 such tokens, or all alike.` : "";
    $("agreement-hint").textContent = `Spearman's rank correlation in each layer of the ${METRIC_NAMES[state.metric]} distance of ${visible(state.variant)} with the size of the ${MEASURES[state.measure]}, over the tokens that are no attention sinks and whose effect is above the noise floor: ${fewest === most ? most : `${fewest} to ${most}`} tokens.${missing}`;
    $("agreement").setAttribute("aria-label", `Rank correlation of local impact and effect over ${view.nLayers} layers. Its numbers can be saved as CSV.`);
  }

  // ---- saving what is shown ----------------------------------------------------------------------------------------------

  const COLUMNS = ["generation_step", "layer", "token_masked", "token_position", "variant", "l2_distance", "cosine_distance"];
  const numberOrNothing = (value) => (Number.isFinite(value) ? float32Text(value) : null);
  const asNumber = (text) => (text === null ? null : { toString: () => text });

  function rowsOf(layers, positions, variant = state.variant, distances = view.distances) {
    return layers.flatMap((layer) => positions.map((position) => {
      const place = layer * view.n + view.at.get(position);
      const numbers = [distances.l2[place], distances.cosine[place]].map((value) => asNumber(numberOrNothing(value)));
      return [state.step, layer, prompt().texts[position], position, variant, ...numbers];
    }));
  }

  const NEVER_ROUNDED = ["effect", "agreement", "apart"];
  const fileName = (card) => {
    const what = [document.querySelector("h1").textContent, page.prompts.length > 1 ? prompt().name : "", `step${state.step}`, card, (rounded() && !NEVER_ROUNDED.includes(card)) || (card === "heads" && page.digits < EXACT) ? "rounded" : ""];
    return what.filter(Boolean).join("-").replace(/[^\p{L}\p{N}._-]+/gu, "_");
  };
  const everyLayer = () => Array.from({ length: view.nLayers }, (_, layer) => layer);
  const countedPositions = () => view.positions.filter((position) => !view.leftOut.has(position));

  const scoreRows = (positions) => positions.map((position) => {
    const { image = null, row = null, column = null } = prompt().cellAt.get(position) ?? {};
    const score = view.scores[view.at.get(position)];
    return [state.step, layersShown()[0], layersShown().at(-1), prompt().texts[position], position, image, row, column, state.variant, state.metric, Number.isFinite(score) ? score : null];
  });
  const SCORE_COLUMNS = ["generation_step", "first_layer", "last_layer", "token_masked", "token_position", "image", "row", "column", "variant", "metric", "mean_share"];

  const CSV = {
    heat: () => [COLUMNS, rowsOf(everyLayer(), countedPositions())],
    profile: () => [COLUMNS, chosenTokens().flatMap((position) => rowsOf(everyLayer(), [position]))],
    text: () => [SCORE_COLUMNS, scoreRows(view.positions.filter((position) => !prompt().cellAt.has(position)))],
    images: () => [SCORE_COLUMNS, scoreRows(view.positions.filter((position) => prompt().cellAt.has(position)))],
    split: () => [["generation_step", "layer", "variant", "metric", "image_share", "text_share"], imageShares().map((share, layer) => [state.step, layer, state.variant, state.metric, Number.isFinite(share) ? share : null, Number.isFinite(share) ? 1 - share : null])],
    heads: async () => {
      const found = [];
      for (const { name, index } of prompt().heads) {
        const [l2, cosine] = await Promise.all([block("l2", index), block("cosine", index)]);
        found.push(...rowsOf(everyLayer(), [focusToken()], name, { l2, cosine }));
      }
      return [COLUMNS, found];
    },
    effect: () => [[...COLUMNS.slice(0, 4), "n_tokens", ...EFFECT_COLUMNS], everyLayer().flatMap((layer) => Array.from({ length: nGroups() }, (_, group) => {
      const [first] = hiddenIn(group);
      return [state.step, layer, groups() ? groups()[group][0] : prompt().texts[first], first, hiddenIn(group).length, ...effectCells(group, layer)];
    }))],
    scatter: () => [[...COLUMNS.slice(0, 5), "metric", "distance", "local_impact", ...EFFECT_COLUMNS, "attention_sink"], layersShown().flatMap((layer) => view.positions.map((position) => {
      const local = localImpact(position, layer);
      const distance = asNumber(numberOrNothing(view.values[atPosition(position, layer)]));
      return [state.step, layer, prompt().texts[position], position, state.variant, state.metric, distance, Number.isFinite(local) ? local : null, ...effectCells(view.at.get(position), layer), isSink(position)];
    }))],
    agreement: () => [["generation_step", "layer", "variant", "metric", "effect", "rank_correlation", "tokens"], layerAgreement().map(({ rho, n }, layer) => [state.step, layer, state.variant, state.metric, state.measure, asNumber(numberOrNothing(rho)), n])],
    apart: () => [["generation_step", "list", "token_masked", "token_position", "variant", "metric", "mean_share", "share_rank", "effect", "mean_size", "size_rank"], Object.entries(apartLists()).flatMap(([name, rows]) => rows.map(([position, share, shareRank, size, sizeRank]) => [state.step, `large ${name}`, prompt().texts[position], position, state.variant, state.metric, share, shareRank, state.measure, size, sizeRank]))],
  };
  const EFFECT_COLUMNS = ["logprob_change", "kl_divergence", "top1_changed", "top1_id", "top1_token", "above_floor"];
  function effectCells(group, layer) {
    const place = placeOf(group, layer);
    const { logprob, kl, top1 } = view.effect;
    const numbers = [logprob[place], kl[place]].map((value) => asNumber(numberOrNothing(value)));
    return [...numbers, isChanged(group, layer), top1[place], step().effect.top1_texts[top1[place]] ?? "", !isNone(view.effect[state.measure][place])];
  }

  const PNG = {
    images: () => downloadCanvas(fileName("images"), imagesCanvas()),
    text: () => downloadCanvas(fileName("text"), textCanvas()),
  };

  function imagesCanvas() {
    const figures = [...$("images").children];
    const boxes = figures.map((figure) => figure.querySelector(".picture").getBoundingClientRect());
    const canvas = element("canvas", { width: 2 * boxes.reduce((sum, box) => sum + box.width + 12, 12), height: 2 * (Math.max(...boxes.map((box) => box.height)) + 48) });
    const context = canvas.getContext("2d");
    context.scale(2, 2);
    context.fillStyle = cssColour("--card");
    context.fillRect(0, 0, canvas.width, canvas.height);
    let x = 12;
    figures.forEach((figure, number) => {
      const { width, height } = boxes[number];
      context.fillStyle = cssColour("--none");
      context.fillRect(x, 12, width, height);
      for (const layer of figure.querySelectorAll("img, canvas")) context.drawImage(layer, x, 12, width, height);
      context.fillStyle = cssColour("--ink");
      context.font = "12px sans-serif";
      context.fillText(figure.querySelector("figcaption").textContent, x, height + 32, width);
      x += width + 12;
    });
    return canvas;
  }

  function textCanvas() {
    const width = Math.max(Math.round($("text").getBoundingClientRect().width), 300);
    const placed = [];
    const canvas = element("canvas");
    let context = canvas.getContext("2d");
    context.font = "15px sans-serif";
    let [x, y] = [12, 12];
    for (const node of $("text").childNodes) {
      if (node.nodeType === Node.TEXT_NODE || node.nodeName === "BR") { x = 12; y += 30; continue; }
      const wide = context.measureText(node.textContent).width + 4;
      if (x > 12 && x + wide > width - 12) { x = 12; y += 30; }
      placed.push([node, x, y, wide]);
      x += wide + 2;
    }
    Object.assign(canvas, { width: 2 * width, height: 2 * (y + 64) });
    context = canvas.getContext("2d");
    context.scale(2, 2);
    context.fillStyle = cssColour("--card");
    context.fillRect(0, 0, width, y + 64);
    context.textBaseline = "middle";
    for (const [node, left, top, wide] of placed) {
      const style = getComputedStyle(node);
      context.font = "15px sans-serif";
      context.fillStyle = style.backgroundColor;
      context.fillRect(left, top, wide, 24);
      context.fillStyle = style.color;
      context.fillText(node.textContent, left + 2, top + 12.5, width - 28);
    }
    context.font = "12px sans-serif";
    context.fillStyle = cssColour("--soft");
    context.fillText(`Share of the impact in ${layersText()}, ${METRIC_NAMES[state.metric]} of ${state.variant}; strongest ${$("text-legend").textContent}`, 12, y + 48, width - 24);
    return canvas;
  }

  function makeExports() {
    for (const place of document.querySelectorAll(".exports")) {
      const { card } = place.dataset;
      const title = place.closest("section").querySelector("h2").textContent;
      if (PNG[card] || $(card).classList.contains("chart")) {
        const png = element("button", { type: "button", textContent: "PNG", "aria-label": `Save ${title} as PNG` });
        png.addEventListener("click", () => (PNG[card] ? PNG[card]() : downloadChart(fileName(card), $(card))));
        place.append(png);
      }
      const csv = element("button", { type: "button", textContent: "CSV", "aria-label": `Save the numbers of ${title} as CSV` });
      csv.addEventListener("click", async () => downloadCsv(fileName(card), ...(await CSV[card]())));
      place.append(csv);
    }
  }

  // ---- keys and controls -------------------------------------------------------------------------------------------------

  let playing = null;
  function play(wanted) {
    clearInterval(playing);
    playing = wanted ? setInterval(() => set({ layer: (state.layer + 1) % prompt().n_layers, range: "layer" }), PLAY_MS) : null;
    $("play").textContent = wanted ? "Pause" : "Play";
    $("play").setAttribute("aria-pressed", wanted);
    if (wanted) set({ range: "layer" });
  }

  const KEYS = {
    ArrowLeft: () => set({ layer: state.layer - 1, range: "layer" }),
    ArrowRight: () => set({ layer: state.layer + 1, range: "layer" }),
    ArrowUp: () => set({ step: state.step + 1 }),
    ArrowDown: () => set({ step: state.step - 1 }),
    m: () => set({ metric: state.metric === "l2" ? "cosine" : "l2" }),
    s: () => set({ scale: SCALES[(SCALES.indexOf(state.scale) + 1) % SCALES.length] }),
    p: () => play(!playing),
    e: () => { if (prompt().effect) set({ measure: state.measure === "logprob" ? "kl" : "logprob" }); },
  };

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!KEYS[name]) return;
    const isArrow = name.startsWith("Arrow");
    const { target } = event;
    if (target.matches("select, input[type='number'], input[type='text']")) return;
    if (isArrow && target.matches("input[type='radio'], input[type='range']")) return;
    if (name === "ArrowUp" || name === "ArrowDown") if (prompt().steps.length < 2) return; // the page scrolls then
    event.preventDefault();
    KEYS[name]();
  }

  // Within a group one token takes part in the tab order; arrows move from token to token.
  function makeRoving(group) {
    group.addEventListener("keydown", (event) => {
      const tokens = [...group.querySelectorAll(".token")];
      const at = tokens.indexOf(document.activeElement);
      if (at < 0) return;
      if (event.key === "Enter" || event.key === " ") tokens[at].click();
      else {
        const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: tokens.length - 1 }[event.key];
        if (to === undefined) return;
        const next = tokens[clamp(to, 0, tokens.length - 1)];
        tokens.forEach((token) => { token.tabIndex = token === next ? 0 : -1; });
        next.focus();
      }
      event.preventDefault();
      event.stopPropagation();
    });
    // A click leaves the keys to the layers and steps.
    group.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      document.activeElement?.blur();
    });
  }

  function connect() {
    if (page.prompts.length > 1) {
      $("prompt-chooser").hidden = false;
      $("prompt").replaceChildren(...page.prompts.map(({ name }, value) => element("option", { value, textContent: visible(name) })));
      $("prompt").addEventListener("change", (event) => set({ prompt: Number(event.target.value) }));
    }
    $("layer").addEventListener("input", (event) => set({ layer: Number(event.target.value), range: "layer" }));
    $("opacity").addEventListener("input", (event) => set({ opacity: Number(event.target.value) }));
    $("variant").addEventListener("change", (event) => set({ variant: event.target.value }));
    $("from").addEventListener("change", (event) => set({ from: Number(event.target.value), to: Math.max(state.to, Number(event.target.value)) }));
    $("to").addEventListener("change", (event) => set({ to: Number(event.target.value), from: Math.min(state.from, Number(event.target.value)) }));
    for (const name of ["range", "metric", "scale", "colours"]) $(name).addEventListener("change", (event) => set({ [name]: event.target.value }));
    $("measure").addEventListener("change", (event) => set({ measure: event.target.value }));
    $("profile-unit").addEventListener("change", (event) => set({ unit: event.target.value }));
    $("add-token").addEventListener("change", (event) => { if (event.target.value !== "") toggleToken(Number(event.target.value)); });
    $("play").addEventListener("click", () => play(!playing));
    $("theme").addEventListener("click", () => set({ theme: { auto: theme() === "dark" ? "light" : "dark", light: "dark", dark: "light" }[state.theme] }));
    $("copy-link").addEventListener("click", copyLink);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => set({}));
    addEventListener("hashchange", () => { state = fromFragment(); set({}); });
    addEventListener("keydown", onKey);
    let resized = 0;
    addEventListener("resize", () => {
      clearTimeout(resized);
      resized = setTimeout(() => {
        if (view) drawImages();
        for (const id of BY_COLUMNS) if (handlers.has($(id)) && $(id).clientWidth) labelColumns(id);
      }, 150);
    });
    addEventListener("scroll", hideTip, { passive: true });
    makeRoving($("steps"));
    makeRoving($("text"));
    $("text").addEventListener("mousemove", (event) => {
      const token = event.target.closest(".token");
      if (token) showTip(token.dataset.image === undefined ? scoreTip(Number(token.dataset.position)) : token.textContent, event.clientX, event.clientY);
      else hideTip();
    });
    $("text").addEventListener("mouseleave", hideTip);
    makeExports();
  }

  async function copyLink() {
    try {
      await navigator.clipboard.writeText(location.href);
      $("copy-link").textContent = "Copied";
    } catch {
      $("copy-link").textContent = "See address bar";
    }
    setTimeout(() => { $("copy-link").textContent = "Copy link"; }, 1500);
  }

  async function start() {
    if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old: it has no DecompressionStream");
    state = fromFragment();
    connect();
    await set({});
  }

  start().catch((error) => {
    $("problem").hidden = false;
    $("problem").textContent = `The page can't be shown: ${error.message}`;
    throw error;
  });
})();
