"use strict";
// The page that explores a study: points, bounds, a table, and trials side by side. All text that comes from a study is
// set as text, never as markup, but for Plotly's labels, which `escaped` makes safe.
(() => {
  const element = (id) => document.getElementById(id);
  const page = JSON.parse(element("study-data").textContent);
  const study = page.study;
  const metrics = new Map(study.metrics.map((metric) => [metric.name, metric]));
  const KINDS = {
    f: ["front", "circle"],
    c: ["cannot be told apart from the front", "circle-open"],
    d: ["dominated", "square"],
    i: ["violates a constraint", "x-thin-open"],
  };
  const REFINED = { c: "star-open", d: "star", i: "star-open-dot" };
  const MOST_COMPARED = 4;
  const MOST_ROWS = 200;
  const MOST_LINES = 400;
  const MOST_FACTS = 12;
  const REFRESH_MILLISECONDS = 5000;
  const FINISHED_MILLISECONDS = 15000;

  // Trials by number; what is chosen on the page stays when trials come in.
  const trials = new Map();
  let standing = null;
  const costs = study.objectives.filter((name) => metrics.get(name)?.cost);
  const qualities = study.objectives.filter((name) => !metrics.get(name)?.cost);
  const firstX = [...costs, ...qualities][0];
  const chosen = {
    x: firstX,
    y: [...qualities, ...costs].find((name) => name !== firstX),
    xlog: Boolean(metrics.get(firstX)?.cost),
    ylog: false,
    colour: "",
    bounds: new Map(),
    selected: null,
    every: false,
    compared: [],
    order: "",
    descending: false,
  };
  chosen.ylog = Boolean(metrics.get(chosen.y)?.cost);

  // ---- text

  function make(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  // Plotly takes some markup in labels.
  const escaped = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  // A value in the unit of its axis, with the digits that are shown of it.
  function rounded(name, value) {
    if (name === "flops" || name === "macs") return Number((value / 1e9).toPrecision(4));
    if (name === "parameters") return Math.round(value) / 1e6;
    return Number(value.toFixed(name === "latency" || name === "megabytes" ? 3 : 4));
  }

  function written(name, value) {
    if (value === null || value === undefined) return "-";
    if (name === "flops" || name === "macs") return `${rounded(name, value)} G`;
    if (name === "parameters") return Math.round(value).toLocaleString("en-GB");
    return value.toFixed(name === "latency" || name === "megabytes" ? 3 : 4);
  }

  function withError(name, network) {
    const error = network.errors[name];
    return written(name, network.metrics[name]) + (error === undefined || error === null ? "" : ` ± ${error.toFixed(4)}`);
  }

  const sampledText = (value) => (typeof value === "number" && !Number.isInteger(value) ? value.toPrecision(4) : String(value));

  function sampleNames() {
    const names = new Set();
    for (const trial of trials.values()) for (const name of Object.keys(trial.sample)) names.add(name);
    return [...names];
  }

  // ---- data

  function take(news) {
    const columns = news.new;
    columns.trial.forEach((number, row) => {
      const at = (table) => Object.fromEntries(Object.entries(table).map(([name, values]) => [name, values[row]]));
      trials.set(number, {
        trial: number,
        sample: at(columns.sample),
        metrics: at(columns.metrics),
        errors: at(columns.errors),
        refines: columns.refines[row],
        refined: columns.refined[row],
        violations: columns.violations[row],
      });
    });
    standing = news;
    numbersIn(news.numbers).forEach((number, position) => {
      const trial = trials.get(number);
      if (!trial) return;
      trial.kind = news.kinds[position];
      trial.probability = news.probability[number] ?? 0;
    });
  }

  function numbersIn(ranges) {
    const numbers = [];
    for (const part of ranges.split(",").filter(Boolean)) {
      const [first, last] = part.split("-").map(Number);
      for (let number = first; number <= (last ?? first); number++) numbers.push(number);
    }
    return numbers;
  }

  const all = () => [...trials.values()].sort((one, other) => one.trial - other.trial);

  function inBounds(trial) {
    for (const [name, { least, most }] of chosen.bounds) {
      const value = trial.metrics[name];
      if (value === null || value === undefined) return false;
      // A trial keeps a bound that is its value as it is shown, too.
      const values = [scaled(name, trial), rounded(name, value)];
      if ((least !== null && Math.max(...values) < least) || (most !== null && Math.min(...values) > most)) return false;
    }
    return true;
  }

  const nameOf = (trial) => `trial ${trial.trial}` + (trial.refines === null ? (trial.refined ? ", refined" : "") : `: trial ${trial.refines} refined`);

  // ---- the figure

  const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  function facts(trial) {
    const lines = [nameOf(trial)];
    for (const [name, value] of Object.entries(trial.sample).slice(0, 12)) lines.push(`${name} ${sampledText(value)}`);
    const named = new Set([...shownMetrics(), ...metrics.keys()]);
    for (const name of [...named].slice(0, MOST_FACTS)) lines.push(`${metrics.get(name).title} ${withError(name, trial)}`);
    lines.push(`${(study.dense.metrics.flops / trial.metrics.flops).toFixed(2)}x fewer FLOPs`);
    for (const [name, size] of Object.entries(trial.violations)) lines.push(`violates ${name} by ${size}`);
    lines.push(`on the front with probability ${trial.probability.toFixed(2)}`);
    return lines.map(escaped).join("<br>");
  }

  const scaled = (name, network) => network.metrics[name] / metrics.get(name).scale;

  function errorBars(networks, colour) {
    const metric = metrics.get(chosen.y);
    const values = networks.map((network) => network.errors[chosen.y]);
    if (values.some((error) => error === undefined || error === null)) return {};
    const above = networks.map((network, row) => (metric.share ? Math.min(values[row], 1 - network.metrics[chosen.y]) : values[row]));
    const below = networks.map((network, row) => (metric.share ? Math.min(values[row], network.metrics[chosen.y]) : values[row]));
    return { error_y: { type: "data", symmetric: false, array: above, arrayminus: below, thickness: 1, width: 3, color: colour } };
  }

  // The value by which a trial is coloured, and the names that its values stand for where they are no numbers.
  const coloured = (trial) => (metrics.has(chosen.colour) ? scaled(chosen.colour, trial) : trial.sample[chosen.colour] ?? null);

  function colourNames() {
    const values = all().map(coloured).filter((value) => value !== null);
    return values.every((value) => typeof value === "number") ? null : [...new Set(values.map(String))].sort();
  }

  function colouring(points) {
    if (!chosen.colour) return null;
    const names = colourNames();
    return points.map(coloured).map((value) => (value === null || names === null ? value : names.indexOf(String(value))));
  }

  function trace(points, name, symbol, style = {}) {
    const colours = style.plain ? null : colouring(points);
    return {
      type: "scatter",
      mode: "markers",
      name,
      x: points.map((trial) => scaled(chosen.x, trial)),
      y: points.map((trial) => scaled(chosen.y, trial)),
      customdata: points.map((trial) => trial.trial),
      text: points.map(facts),
      hovertemplate: "%{text}<extra></extra>",
      ...style,
      marker: {
        symbol,
        size: 9,
        color: colourOf("faint"),
        line: { width: String(symbol).includes("open") ? 1.6 : 0.6, color: colours ? undefined : colourOf("faint") },
        opacity: points.map((trial) => (inBounds(trial) ? 1 : 0.15)),
        ...style.marker,
        ...(colours ? { color: colours, colorscale: "Cividis", coloraxis: "coloraxis" } : {}),
      },
    };
  }

  function traces() {
    const points = all();
    const accent = colourOf("accent");
    const of = (kind) => points.filter((trial) => trial.kind === kind);
    const made = [];
    for (const [kind, style] of [["i", {}], ["d", { marker: { size: 6 } }], ["c", { marker: { color: accent } }]]) {
      const symbols = of(kind).map((trial) => (trial.refined ? REFINED[kind] : KINDS[kind][1]));
      if (of(kind).length) made.push(trace(of(kind), KINDS[kind][0], symbols, style));
    }
    const front = of("f").sort((one, other) => scaled(chosen.x, one) - scaled(chosen.x, other));
    const plane = study.objectives.length === 2 && study.objectives.includes(chosen.x) && study.objectives.includes(chosen.y);
    if (front.length) {
      made.push(
        trace(front, "front (± 1 standard error)", front.map((trial) => (trial.refined ? "star" : "circle")), {
          mode: plane ? "lines+markers" : "markers",
          line: { color: accent, shape: metrics.get(chosen.x).less ? "hv" : "vh", width: 1.5 },
          marker: { color: accent, size: 11, line: { width: 0 } },
          ...errorBars(front, accent),
        }),
      );
    }
    const knee = points.filter((trial) => trial.trial === standing.knee);
    if (knee.length) made.push(trace(knee, "knee", "circle-open", { plain: true, marker: { size: 20, color: accent, line: { width: 2.5 } }, hoverinfo: "skip", hovertemplate: null }));
    if (chosen.compared.length) {
      const compared = chosen.compared.map((number) => trials.get(number)).filter(Boolean);
      made.push(trace(compared, "side by side", "diamond-tall-open", { plain: true, marker: { size: 22, color: colourOf("ink"), line: { width: 2 } }, hovertemplate: null, hoverinfo: "skip" }));
    }
    for (const peer of (page.peers ?? []).filter((each) => [chosen.x, chosen.y].every((name) => name in each.metrics))) made.push(peerTrace(peer));
    made.push({
      type: "scatter",
      mode: "markers",
      name: "dense network",
      x: [scaled(chosen.x, study.dense)],
      y: [scaled(chosen.y, study.dense)],
      text: [["dense network", ...study.metrics.map((metric) => `${metric.title} ${withError(metric.name, study.dense)}`)].map(escaped).join("<br>")],
      hovertemplate: "%{text}<extra></extra>",
      marker: { symbol: "diamond", size: 13, color: colourOf("dense") },
      ...errorBars([study.dense], colourOf("dense")),
    });
    return made;
  }

  // A network of another method, measured by `hscc-search compare` on test parts.
  function peerTrace(peer) {
    const lines = [peer.name, ...Object.keys(peer.metrics).map((name) => `${metrics.get(name).title} ${withError(name, peer)}`), "its accuracy is the dense network's plus the difference on the test parts"];
    return {
      type: "scatter", mode: "markers", name: escaped(peer.name), x: [scaled(chosen.x, peer)], y: [scaled(chosen.y, peer)],
      text: [lines.map(escaped).join("<br>")], hovertemplate: "%{text}<extra></extra>",
      marker: { symbol: peer.symbol, size: 10, color: colourOf("peer"), line: { width: 1.5, color: colourOf("peer") } },
    };
  }

  function axis(name, logarithmic) {
    const metric = metrics.get(name);
    return {
      title: { text: escaped(innerWidth < 600 ? metric.axis.split(" (")[0] : metric.axis) + (logarithmic ? ", logarithmic" : "") },
      type: logarithmic ? "log" : "linear",
      ...(metric.share && !logarithmic ? { tickformat: ".4~p" } : {}),
      ...(logarithmic ? ticks(name) : {}),
      ...plain(),
    };
  }

  // At 1, 2 and 5 times each power of ten: Plotly labels powers alone where there is room for few.
  function ticks(name) {
    const values = [...all(), study.dense].map((network) => scaled(name, network)).filter((value) => value > 0);
    const steps = [];
    for (let power = Math.floor(Math.log10(Math.min(...values))); power <= Math.ceil(Math.log10(Math.max(...values))); power++) {
      for (const step of values.some((value) => value > 3 * Math.min(...values)) ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7]) steps.push(Number(`${step}e${power}`));
    }
    return { tickvals: steps, ticktext: steps.map(String) };
  }

  const plain = () => ({ gridcolor: colourOf("line"), linecolor: colourOf("line"), zeroline: false, automargin: true });

  function layout(height) {
    return {
      height,
      uirevision: [chosen.x, chosen.y, chosen.xlog, chosen.ylog].join(),
      font: { family: "system-ui, sans-serif", size: 13, color: colourOf("ink") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 60, r: 20, t: 10, b: 50 },
      legend: { orientation: "h", y: -0.22 },
      hoverlabel: { align: "left" },
    };
  }

  const PLOTLY = { displaylogo: false, showSendToCloud: false, responsive: true, modeBarButtonsToRemove: ["autoScale2d"] };

  function drawFront() {
    const figure = { ...layout(520), xaxis: axis(chosen.x, chosen.xlog), yaxis: axis(chosen.y, chosen.ylog), dragmode: "zoom" };
    if (chosen.colour) {
      const title = escaped(metrics.get(chosen.colour)?.axis ?? chosen.colour);
      figure.coloraxis = { colorscale: "Cividis", colorbar: { title: { text: title, side: "right" }, thickness: 12 } };
      const names = colourNames();
      if (names) Object.assign(figure.coloraxis.colorbar, { tickvals: names.map((_, row) => row), ticktext: names.map(escaped) });
    }
    Plotly.react("front", traces(), figure, PLOTLY);
  }

  // ---- all parameters and metrics at once

  // The axes of the parallel coordinates, each with the share of its range at which a trial stands.
  function parallelAxes() {
    const points = all();
    const names = [...sampleNames().map((name) => [name, (trial) => trial.sample[name] ?? null]), ...shownMetrics().map((name) => [metrics.get(name).axis.split(" (")[0].replace(", validation part", ""), (trial) => scaled(name, trial)])];
    return names.filter(([, value]) => points.some((trial) => value(trial) !== null)).map(([name, value]) => {
      const values = points.map(value).filter((each) => each !== null);
      const numbers = values.every((each) => typeof each === "number");
      const order = numbers ? null : [...new Set(values.map(String))].sort();
      const [low, high] = numbers ? [Math.min(...values), Math.max(...values)] : [0, order.length - 1];
      const position = (trial) => {
        const each = value(trial);
        if (each === null) return null;
        return high > low ? ((numbers ? each : order.indexOf(String(each))) - low) / (high - low) : 0.5;
      };
      const ends = numbers ? [low, high].map((each) => Number(each.toPrecision(4)).toString()) : [order[0], order.at(-1)];
      return { name, position, ends };
    });
  }

  function drawParallel() {
    const axes = parallelAxes();
    const points = all();
    const step = Math.ceil(points.length / MOST_LINES);
    const groups = [
      ["dominated, or infeasible", points.filter((trial, row) => (trial.kind === "d" || trial.kind === "i") && row % step === 0), { color: colourOf("faint"), width: 0.6 }, 0.45],
      ["cannot be told apart from the front", points.filter((trial) => trial.kind === "c").slice(0, MOST_LINES), { color: colourOf("accent"), width: 0.8, dash: "dot" }, 0.7],
      ["front", points.filter((trial) => trial.kind === "f"), { color: colourOf("accent"), width: 1.8 }, 1],
      ["side by side", chosen.compared.map((number) => trials.get(number)).filter(Boolean), { color: colourOf("ink"), width: 3.5 }, 1],
    ];
    const lines = groups.filter(([, members]) => members.length).map(([name, members, line, opacity]) => ({
      type: "scatter", mode: "lines", name, opacity, line, connectgaps: false, hovertemplate: "%{text}<extra></extra>",
      x: members.flatMap(() => [...axes.keys(), null]),
      y: members.flatMap((trial) => [...axes.map((each) => each.position(trial)), null]),
      text: members.flatMap((trial) => [...Array(axes.length).fill(facts(trial)), ""]),
      customdata: members.flatMap((trial) => [...Array(axes.length).fill(trial.trial), null]),
    }));
    const ends = axes.flatMap(({ ends }, column) => ends.map((text, top) => ({ x: column, y: top, text: escaped(text), showarrow: false, yshift: top ? 12 : -12, font: { size: 11 } })));
    const figure = { ...layout(360), margin: { l: 40, r: 40, t: 10, b: 40 }, annotations: ends, hovermode: "closest",
      xaxis: { tickvals: [...axes.keys()], ticktext: axes.map((each) => escaped(each.name)), ...plain(), gridcolor: colourOf("faint"), fixedrange: true },
      yaxis: { visible: false, range: [-0.12, 1.12], fixedrange: true } };
    Plotly.react("parallel", lines, figure, { ...PLOTLY, displayModeBar: false });
  }

  // Number of trials that the importances were asked for with: they change little with each.
  let importancesOf = 0;

  async function drawImportances() {
    importancesOf = trials.size;
    const shares = page.importances ?? await importancesNow();
    const objectives = Object.keys(shares ?? {});
    element("importances").hidden = !objectives.length;
    if (!objectives.length) return;
    const names = [...new Set(objectives.flatMap((objective) => Object.keys(shares[objective])))].slice(0, 12).reverse();
    const bars = objectives.map((objective, at) => ({ type: "bar", orientation: "h", name: metrics.get(objective)?.title ?? objective, y: names.map(escaped), x: names.map((name) => shares[objective][name] ?? 0),
      marker: { color: colourOf(["accent", "dense", "faint", "ink"][at]), pattern: { shape: ["", "/", ".", "x"][at] } }, hovertemplate: "%{y}: %{x:.2f}<extra>%{fullData.name}</extra>" }));
    Plotly.react("importance", bars, { ...layout(90 + 28 * names.length * objectives.length), barmode: "group", legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, xaxis: { title: { text: "importance" }, range: [0, 1], ...plain() }, yaxis: { type: "category", ...plain() } }, { ...PLOTLY, displayModeBar: false });
  }

  async function importancesNow() {
    if (!page.live) return null;
    try {
      const response = await fetch(`${page.live}/importances`);
      return response.ok ? await response.json() : null;
    } catch {
      return null; // the server is away: they are asked for again when trials come in
    }
  }

  function drawHypervolume() {
    const changes = standing.hypervolumes;
    const last = numbersIn(standing.numbers).at(-1);
    const x = changes.map(([trial]) => trial);
    const y = changes.map(([, value]) => value);
    if (changes.length && last > x.at(-1)) {
      x.push(last);
      y.push(y.at(-1));
    }
    const line = { type: "scatter", mode: "lines", x, y, line: { color: colourOf("accent"), shape: "hv", width: 2 }, hovertemplate: "trial %{x}: %{y:.4f}<extra></extra>" };
    const figure = { ...layout(240), showlegend: false, xaxis: { title: { text: "trial" }, ...plain() }, yaxis: { title: { text: "normalised hypervolume" }, ...plain() } };
    Plotly.react("hypervolume", [line], figure, PLOTLY);
  }

  // ---- asking

  const goal = qualities.includes("accuracy") || !qualities.length ? "accuracy" : qualities[0];
  const answersAreBounded = () => [...chosen.bounds.keys()].some((name) => !metrics.get(name).cost);
  const keeping = () => all().filter((trial) => trial.kind !== "i" && inBounds(trial));

  // The knee without bounds, and else what `export --select` takes: fewest FLOPs where answers are bounded, else the best answers.
  function winner() {
    const allowed = keeping();
    if (!chosen.bounds.size) return allowed.find((trial) => trial.trial === standing.knee) ?? null;
    const best = (trial) => (metrics.get(goal).less ? 1 : -1) * trial.metrics[goal];
    const bounded = [...chosen.bounds].map(([name, { least }]) => (trial) => (least !== null ? -1 : 1) * trial.metrics[name]);
    const orders = [answersAreBounded() ? (trial) => trial.metrics.flops : best, ...bounded, best, (trial) => trial.trial];
    const compared = (one, other) => orders.map((order) => order(one) - order(other)).find((difference) => difference) ?? 0;
    return allowed.sort(compared)[0] ?? null;
  }

  function whyThat() {
    if (!chosen.bounds.size) return `The knee, in ${Math.round(100 * standing.knee_share)} % of draws of the images`;
    const count = keeping().length;
    if (count === 1) return `1 of ${trials.size} trials keeps these bounds`;
    return `${count} of ${trials.size} trials keep these bounds; ${answersAreBounded() ? "of these the one of fewest FLOPs" : `best of these by ${metrics.get(goal).title}`}`;
  }

  function nearest() {
    const missed = (trial) => {
      let total = 0;
      for (const [name, { least, most }] of chosen.bounds) {
        const value = scaled(name, trial);
        if (least !== null && value < least) total += (least - value) / (Math.abs(least) || 1);
        if (most !== null && value > most) total += (value - most) / (Math.abs(most) || 1);
      }
      return total;
    };
    return all().filter((trial) => trial.kind !== "i").sort((one, other) => missed(one) - missed(other))[0] ?? null;
  }

  function answer() {
    const found = winner();
    const sentence = element("winner");
    const command = element("command");
    if (!trials.size) {
      sentence.textContent = "No trial is finished yet.";
    } else if (found) {
      const fewer = (study.dense.metrics.flops / found.metrics.flops).toFixed(2);
      sentence.textContent = `${whyThat()}: ${nameOf(found)}, ${fewer}x fewer FLOPs, ` +
        qualities.map((name) => `${metrics.get(name).title} ${withError(name, found)}`).join(", ") +
        (chosen.bounds.size && found.trial === standing.knee ? "; it is the knee" : "") + `; on the front with probability ${found.probability.toFixed(2)}.` +
        (found.kind === "d" && !chosen.bounds.size && all().some((trial) => trial.metrics.parameters > study.dense.metrics.parameters)
          ? " It is dominated: the knee is chosen among trials with no more parameters than the dense network."
          : "");
    } else if (!chosen.bounds.size) {
      sentence.textContent = `${standing.line.split("; ")[0]}.`;
    } else {
      const near = nearest();
      sentence.textContent = "No trial keeps these bounds." + (near ? ` The nearest is ${nameOf(near)}: ` + [...chosen.bounds.keys()].map((name) => `${metrics.get(name).title} ${withError(name, near)}`).join(", ") + "." : "");
    }
    command.textContent = found ? study.export.join(found.trial) : "";
    element("copy").hidden = !found;
  }

  function boundFields() {
    const body = element("bounds");
    const names = [...new Set([...study.objectives, ...page.bounded])].filter((name) => metrics.has(name));
    for (const metric of names.map((name) => metrics.get(name))) {
      const field = (side, label) => make("input", {
        type: "number", step: "any", placeholder: metric.share ? "0 to 1" : null, "aria-label": `${metric.title}, ${label}`, "data-metric": metric.name, "data-side": side,
        oninput: (event) => {
          const bound = chosen.bounds.get(metric.name) ?? { least: null, most: null };
          bound[side] = event.target.value === "" ? null : Number(event.target.value);
          if (bound.least === null && bound.most === null) chosen.bounds.delete(metric.name);
          else chosen.bounds.set(metric.name, bound);
          draw();
        },
      });
      const unit = metric.cost ? metric.axis : metric.title;
      body.append(make("tr", {}, make("th", { scope: "row" }, unit), make("td", {}, field("least", "at least")), make("td", {}, field("most", "at most"))));
    }
  }

  // ---- the table

  const shownMetrics = () => [...new Set([...study.objectives, "flops", "parameters", "accuracy", ...(metrics.has("megabytes") ? ["megabytes"] : [])])].filter((name) => metrics.has(name));

  function columns() {
    const sampled = sampleNames().slice(0, 7);
    return [
      { key: "trial", head: "trial", value: (trial) => trial.trial, text: (trial) => nameOf(trial).replace("trial ", "") + (trial.trial === standing.knee ? " (knee)" : "") },
      ...sampled.map((name) => ({ key: `sample ${name}`, head: name.replaceAll("_", " "), value: (trial) => trial.sample[name], text: (trial) => (trial.sample[name] === undefined || trial.sample[name] === null ? "-" : sampledText(trial.sample[name])) })),
      { key: "fewer", head: "fewer FLOPs", value: (trial) => -trial.metrics.flops, text: (trial) => `${(study.dense.metrics.flops / trial.metrics.flops).toFixed(2)}x` },
      ...shownMetrics().map((name) => ({ key: name, head: metrics.get(name).title, value: (trial) => trial.metrics[name], text: (trial) => withError(name, trial) })),
      { key: "probability", head: "on front", value: (trial) => trial.probability, text: (trial) => trial.probability.toFixed(2) },
    ];
  }

  function rowsShown() {
    if (chosen.selected) return all().filter((trial) => chosen.selected.has(trial.trial) && inBounds(trial));
    if (chosen.bounds.size) return keeping();
    if (chosen.every || all().every((trial) => trial.kind === "i")) return all();
    return all().filter((trial) => trial.kind === "f" || trial.kind === "c" || trial.trial === standing.knee);
  }

  function drawTable() {
    const shown = columns();
    const by = shown.find((column) => column.key === chosen.order);
    const rank = { f: 0, c: 1, d: 2, i: 3 };
    let rows = rowsShown();
    if (by) {
      rows.sort((one, other) => (by.value(one) > by.value(other) ? 1 : by.value(one) < by.value(other) ? -1 : one.trial - other.trial) * (chosen.descending ? -1 : 1));
    } else {
      rows.sort((one, other) => rank[one.kind] - rank[other.kind] || (one.kind === "f" ? scaled(study.objectives[0], one) - scaled(study.objectives[0], other) : other.probability - one.probability));
    }
    const total = rows.length;
    rows = rows.slice(0, MOST_ROWS);
    const head = make("tr", {}, make("th", { scope: "col" }, "show"), ...shown.map((column) => make("th", { scope: "col", "aria-sort": column.key === chosen.order ? (chosen.descending ? "descending" : "ascending") : "none" },
      make("button", { type: "button", "data-key": column.key, onclick: () => { chosen.descending = chosen.order === column.key && !chosen.descending; chosen.order = column.key; drawTable(); } }, column.head))));
    const dense = make("tr", { class: "dense" }, make("td", {}), ...shown.map((column) => make("td", {}, column.key === "trial" ? "dense" : column.key === "fewer" ? "1.00x" : metrics.has(column.key) ? withError(column.key, study.dense) : "-")));
    const body = rows.map((trial) => make("tr", { class: trial.trial === standing.knee ? "knee" : KINDS[trial.kind] ? { f: "front", c: "close", d: "rest", i: "rest" }[trial.kind] : "", "data-trial": trial.trial },
      make("td", {}, make("input", { type: "checkbox", value: trial.trial, "data-key": `show ${trial.trial}`, "aria-label": `show ${nameOf(trial)} side by side`, ...(chosen.compared.includes(trial.trial) ? { checked: true } : {}), onchange: () => compare(trial.trial) })),
      ...shown.map((column) => make("td", {}, column.text(trial)))));
    const focused = document.activeElement?.dataset?.key;
    element("trials").replaceChildren(make("thead", {}, head), make("tbody", {}, dense, ...body));
    if (focused) [...element("trials").querySelectorAll("[data-key]")].find((each) => each.dataset.key === focused)?.focus();
    const whole = chosen.every || all().every((trial) => trial.kind === "i");
    const which = chosen.selected ? "selected in the figure" : chosen.bounds.size ? "that keep the bounds" : whole ? "in all" : "on the front, and those that cannot be told apart from it";
    element("shown").textContent = `${total} ${total === 1 ? "trial" : "trials"} ${which}` + (total > MOST_ROWS ? `; the first ${MOST_ROWS} are shown` : "") + `. ${standing.line[0].toUpperCase()}${standing.line.slice(1)}.`;
    element("everything").hidden = !chosen.selected;
  }

  // ---- trials side by side

  function compare(number) {
    const at = chosen.compared.indexOf(number);
    if (at >= 0) chosen.compared.splice(at, 1);
    else chosen.compared = [...chosen.compared, number].slice(-MOST_COMPARED);
    // In a frame that a notebook makes there is no address to change.
    if (location.protocol !== "about:") history.replaceState(null, "", chosen.compared.length ? `#trial=${chosen.compared.join(",")}` : location.pathname + location.search);
    drawFront();
    drawParallel();
    for (const box of element("trials").querySelectorAll("input")) box.checked = chosen.compared.includes(Number(box.value));
    drawCompared();
  }

  const details = new Map(Object.entries(page.details ?? {}).map(([number, detail]) => [Number(number), detail]));

  async function detailOf(number) {
    if (!details.has(number) && page.live) {
      try {
        const response = await fetch(`${page.live}/trial/${number}`);
        if (response.ok) {
          details.set(number, await response.json());
          page.thumbnails = { ...page.thumbnails, ...details.get(number).thumbnails };
        }
      } catch {
        return null; // the server is away: the card says so, and the next click asks again
      }
    }
    return details.get(number) ?? null;
  }

  async function drawCompared() {
    const wanted = [...chosen.compared];
    const cards = await Promise.all(wanted.map(async (number) => card(trials.get(number), await detailOf(number))));
    if (wanted.join() !== chosen.compared.join()) return; // chosen anew while this was fetched
    const opened = new Set([...element("compared").querySelectorAll("details[open]")].map((each) => each.dataset.key));
    element("compared").replaceChildren(...cards);
    for (const each of element("compared").querySelectorAll("details")) each.open = opened.has(each.dataset.key);
    for (const number of wanted) {
      const detail = details.get(number);
      if (detail) drawLayers(number, detail);
    }
  }

  function card(trial, detail) {
    const list = make("dl", {});
    for (const [name, value] of Object.entries(trial.sample)) list.append(make("dt", {}, name), make("dd", {}, sampledText(value)));
    // Recalls stand in a table of their own, beside those of the dense network.
    for (const metric of study.metrics.filter((each) => !(detail?.answers && each.name.startsWith("recall:")))) {
      list.append(make("dt", {}, metric.title), make("dd", {}, withError(metric.name, trial)));
    }
    for (const [name, size] of Object.entries(trial.violations)) list.append(make("dt", {}, `violates ${name}`), make("dd", {}, `by ${size}`));
    list.append(make("dt", {}, "on the front"), make("dd", {}, `probability ${trial.probability.toFixed(2)}`));
    const made = make("article", { "aria-label": nameOf(trial) }, make("h3", {}, nameOf(trial)), list);
    if (page.live) made.append(make("p", {}, make("a", { href: detail?.dashboard ?? page.dashboard }, "in optuna-dashboard")));
    if (!detail) {
      made.append(make("p", { class: "muted" }, page.live ? "Its layers cannot be read at the moment." : "Its layers are not in this file, which has room for those of the front and some others."));
      return made;
    }
    if (detail.int8?.in_float) made.append(make("p", { class: "muted" }, `8-bit integers; ${detail.int8.in_float.length} operators stay in float; divergence from float ${Number(detail.int8.divergence).toPrecision(2)} nats.`));
    if (Number.isFinite(detail.refined?.after)) made.append(make("p", { class: "muted" }, `Refined: divergence from the dense network on train images set aside ${Number(detail.refined.before).toPrecision(3)} before, ${detail.refined.after.toPrecision(3)} after.`));
    made.append(make("div", { id: `layers-${trial.trial}` }));
    if (detail.divided.length) made.append(dividedOf(detail.divided));
    if (detail.answers) made.append(...answersOf(detail.answers));
    if (detail.no_thumbnails) made.append(make("p", { class: "muted" }, `Images cannot be shown: ${detail.no_thumbnails}`));
    [...made.querySelectorAll("details")].forEach((each, at) => { each.dataset.key = `${trial.trial} ${at}`; });
    return made;
  }

  // The regions of each divided layer over the mean calibration image, and its clusters as matrices.
  function dividedOf(layers) {
    const many = layers.length > 1 ? `${layers.length} layers are` : "1 layer is";
    const maps = make("div", { class: "matrices" });
    const made = make("details", {}, make("summary", {}, `regions and clusters: ${many} divided`), maps);
    for (const layer of layers) {
      const regions = layer.clusters.length;
      const about = `layer ${layer.name}: its map of ${layer.size.join(" x ")} positions in ${regions} ${regions === 1 ? "region" : "regions"}`;
      const matrices = layer.clusters.map((sizes, region) => (layer.coactivation[region] === null ? null
        : make("figure", {}, Pictures.coactivation(layer, region), make("figcaption", {}, `${regions > 1 ? `region ${region + 1}: ` : ""}${sizes.length} clusters of ${sizes.join(", ")} channels`))));
      if (regions > 1) maps.append(make("figure", {}, Pictures.regionMap(layer, study.mean), make("figcaption", {}, about)));
      if (matrices.some(Boolean)) made.append(make("p", {}, `layer ${layer.name}: channels that activate together`), make("div", { class: "matrices" }, ...matrices));
    }
    if (layers.some((layer) => layer.coactivation.some(Boolean))) {
      made.append(make("p", { class: "muted" }, "Squares show how the channels of a region activate together, cluster by cluster: orange together, white independent, blue opposite."));
    }
    return made;
  }

  function answersOf(answers) {
    const head = make("tr", {}, make("th", { scope: "col" }, "class"), make("th", { scope: "col" }, "recall"), make("th", { scope: "col" }, "dense"));
    const rows = answers.classes.map((name, row) => make("tr", {}, make("th", { scope: "row" }, name),
      make("td", {}, `${answers.compressed.recall[row].toFixed(3)} ± ${answers.compressed.error[row].toFixed(3)}`), make("td", {}, answers.dense.recall[row].toFixed(3))));
    return [
      onlyOne(answers),
      make("table", {}, make("caption", {}, "recall by class"), make("thead", {}, head), make("tbody", {}, ...rows)),
      make("details", {}, make("summary", {}, "confusion matrices"), confusion("this network", answers.classes, answers.compressed.confusion), confusion("dense network", answers.classes, answers.dense.confusion)),
    ];
  }

  // The validation images that one of the two networks alone gets right.
  function onlyOne(answers) {
    const total = `${answers.only_compressed.count} validation images only this network gets right, ${answers.only_dense.count} only the dense one`;
    const named = [["this network alone is right", answers.only_compressed], ["the dense network alone is right", answers.only_dense]].filter(([, group]) => group.images.length);
    if (!named.length) return make("p", {}, `${total}.`);
    const tables = named.map(([caption, group]) => {
      const pictured = group.images.some(([position]) => page.thumbnails?.[position]);
      const head = make("tr", {}, ...(pictured ? ["picture"] : []).concat(["image", "class", "this network", "dense"]).map((text) => make("th", { scope: "col" }, text)));
      const rows = group.images.map(([position, name, label, dense, compressed]) => make("tr", {},
        pictured ? make("td", {}, page.thumbnails[position] ? make("img", { src: page.thumbnails[position], alt: name }) : "-") : null,
        make("th", { scope: "row", class: "path" }, name), ...[label, compressed, dense].map((each) => make("td", {}, answers.classes[each]))));
      const more = group.count > group.images.length ? ` (the first ${group.images.length} of ${group.count})` : "";
      return make("div", { class: "scroll", tabindex: "0" }, make("table", {}, make("caption", {}, caption + more), make("thead", {}, head), make("tbody", {}, ...rows)));
    });
    return make("details", {}, make("summary", {}, total), ...tables);
  }

  function confusion(name, classes, cells) {
    const head = make("tr", {}, make("th", { scope: "col" }, "true \\ predicted"), ...classes.map((each) => make("th", { scope: "col" }, each)));
    return make("div", { class: "scroll", tabindex: "0" }, make("table", {}, make("caption", {}, name), make("thead", {}, head),
      make("tbody", {}, ...cells.map((row, at) => make("tr", {}, make("th", { scope: "row" }, classes[at]), ...row.map((count, column) => make("td", { class: at === column ? "right" : "" }, String(count))))))));
  }

  function drawLayers(number, detail) {
    const names = detail.layers.map((layer) => escaped(layer.name));
    const [unit, scale] = Math.max(...detail.layers.map((layer) => layer.dense)) < 1e8 ? ["MMACs", 1e6] : ["GMACs", 1e9];
    const bars = (name, key, colour) => ({ type: "bar", orientation: "h", name, y: names, x: detail.layers.map((layer) => layer[key] / scale), text: detail.layers.map((layer) => escaped(layer.note)), textposition: "none", marker: { color: colour }, hovertemplate: `%{y}: %{x:.4f} ${unit}<br>%{text}<extra></extra>` });
    const figure = { ...layout(Math.min(900, 110 + 26 * names.length)), margin: { l: 10, r: 10, t: 5, b: 40 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
      xaxis: { title: { text: `${unit} per image` }, ...plain() }, yaxis: { autorange: "reversed", type: "category", ...plain() } };
    Plotly.react(`layers-${number}`, [bars("compressed", "macs", colourOf("accent")), bars("dense", "dense", colourOf("faint"))], figure, { ...PLOTLY, displayModeBar: false });
  }

  // ---- the whole page

  function state() {
    const refined = standing.refined ? `, ${standing.refined} of them refined as well` : "";
    const failed = Object.keys(standing.failures).length;
    element("state").textContent = `${standing.finished} of ${standing.wanted} trials finished${refined}${failed ? `, ${failed} failed` : ""}.`;
    element("failed").hidden = !failed;
    element("failures").replaceChildren(...Object.entries(standing.failures).map(([number, reason]) => make("li", {}, `trial ${number}: ${reason}`)));
  }

  function draw() {
    state();
    drawFront();
    answer();
    drawTable();
  }

  function options(select, names, current, change) {
    select.replaceChildren(...names.map(([value, text]) => make("option", { value, ...(value === current ? { selected: true } : {}) }, text)));
    select.addEventListener("change", () => change(select.value));
  }

  function controls() {
    const names = study.metrics.map((metric) => [metric.name, metric.title]);
    for (const side of ["x", "y"]) {
      const logarithmic = element(`${side}log`);
      logarithmic.checked = chosen[`${side}log`];
      logarithmic.addEventListener("change", () => { chosen[`${side}log`] = logarithmic.checked; draw(); });
      options(element(side), names, chosen[side], (value) => {
        chosen[side] = value;
        chosen.selected = null; // of points that stood elsewhere
        chosen[`${side}log`] = logarithmic.checked = metrics.get(value).cost;
        draw();
      });
    }
    options(element("colour"), [["", "the kind of trial"], ...sampleNames().map((name) => [name, name]), ...names], "", (value) => { chosen.colour = value; draw(); });
    element("every").addEventListener("change", () => { chosen.every = element("every").checked; drawTable(); });
    element("everything").addEventListener("click", () => {
      chosen.selected = null;
      Plotly.restyle("front", { selectedpoints: [null] });
      drawTable();
    });
    element("copy").addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(element("command").textContent);
        element("copy").textContent = "copied";
      } catch {
        getSelection().selectAllChildren(element("command"));
        element("copy").textContent = "marked: press Ctrl-C";
      }
      setTimeout(() => { element("copy").textContent = "copy"; }, 1500);
    });
    boundFields();
  }

  function figureEvents() {
    const figure = element("front");
    figure.on("plotly_selected", (event) => {
      if (!event) return;
      chosen.selected = new Set(event.points.map((point) => point.customdata).filter((number) => number !== undefined));
      drawTable();
    });
    figure.on("plotly_deselect", () => { chosen.selected = null; drawTable(); });
    for (const clicked of [figure, element("parallel")]) {
      clicked.on("plotly_click", (event) => {
        const number = event.points[0]?.customdata;
        if (Number.isInteger(number)) compare(number);
      });
    }
  }

  async function refresh() {
    try {
      const response = await fetch(`${page.live}?known=${standing.numbers}`);
      if (!response.ok) throw new Error(await response.text());
      const before = trials.size;
      const news = await response.json();
      const there = new Set(numbersIn(news.numbers));
      if (news.identity !== standing.identity || [...trials.keys()].some((number) => !there.has(number))) {
        location.reload(); // another study of the same name
        return;
      }
      take(news);
      element("lost").hidden = true;
      if (trials.size !== before) {
        draw();
        drawParallel();
        drawHypervolume();
        drawCompared();
        if (trials.size >= 1.1 * importancesOf) drawImportances();
        const offered = new Set([...element("colour").options].map((option) => option.value));
        element("colour").append(...sampleNames().filter((name) => !offered.has(name)).map((name) => make("option", { value: name }, name)));
      } else {
        state();
      }
    } catch (error) {
      element("lost").hidden = false;
      element("lost").textContent = `The study cannot be read at the moment: ${error.message}`;
    }
    later();
  }

  // A study that has all its trials may still be refined, or be continued.
  const later = () => setTimeout(refresh, standing.finished < standing.wanted ? REFRESH_MILLISECONDS : FINISHED_MILLISECONDS);

  // An address may name trials, as links to this page do: #trial=3,5
  function compareNamed() {
    const named = (new URLSearchParams(location.hash.slice(1)).get("trial") ?? "").split(",").filter(Boolean).map(Number).filter((number) => trials.has(number));
    if (!named.length) return false;
    chosen.compared = [...new Set(named)].slice(-MOST_COMPARED);
    draw();
    drawParallel();
    drawCompared().then(() => element("compared").scrollIntoView());
    return true;
  }

  take(page.trials);
  controls();
  if (!compareNamed()) {
    draw();
    drawParallel();
  }
  drawHypervolume();
  drawImportances();
  figureEvents();
  addEventListener("hashchange", compareNamed);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { draw(); drawParallel(); drawHypervolume(); drawImportances(); drawCompared(); });
  if (page.live) later();
})();
