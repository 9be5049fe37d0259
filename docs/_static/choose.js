// The page "Choose a sampler": reads the measurements that stand in the page, ranks them at a budget, and draws them.
// No library, no server. The address keeps the choice: #problem=sudoku4&temperature=1&family=masked&metric=tv&nfe=16&sampler=radd
"use strict";

// ---------------------------------------------------------------------------------------------- the ranking

/**
 * The best setting of each sampler that costs at most the budget, best first: [{rank, point}].
 * The rank is one more than the number of samplers whose whole 95 % interval lies below. tools/measured.py has the same rule.
 */
function ranking(points, metric, budget, cost) {
  const best = new Map();
  for (const p of points) {
    if (p[cost] === null || p[cost] > budget * 1.005) continue;
    const who = `${p.distribution}:${p.sampler}`, old = best.get(who);
    const less = old && (p[metric][0] < old[metric][0] || (p[metric][0] === old[metric][0] && p[cost] < old[cost]));
    if (!old || less) best.set(who, p);
  }
  const all = [...best.values()];
  const ranked = all.map((p) => ({ rank: 1 + all.filter((q) => q[metric][2] < p[metric][1]).length, point: p }));
  return ranked.sort((a, b) =>
    a.rank - b.rank || a.point[metric][0] - b.point[metric][0] || a.point[cost] - b.point[cost] ||
    (a.point.sampler < b.point.sampler ? -1 : a.point.sampler > b.point.sampler ? 1 : 0));
}

/** The name that finds a sampler: 'dist:name' if the page of the name alone is another package's. */
const nameOf = (p) => (p.page && p.page.includes("--") ? p.page.replace("--", ":") : p.sampler);

/** The line for a shell that runs a point. */
function shellLine(group, p) {
  const words = ["samplers sample", `--problem ${group.problem}`, `--family ${p.family}`, `--sampler ${nameOf(p)}`];
  if (p.knob !== "steps") words.push(`-o ${p.knob}=${p.value}`);
  else if (p.value !== null) words.push(`--steps ${p.value}`);
  if (group.heated.includes(p.family) && group.temperature !== null) words.push(`--temperature ${group.temperature}`);
  return words.join(" ");
}

/** The lines of Python that run a point. */
function pythonLines(group, p) {
  const args = [`denoiser, "${nameOf(p)}"`, "batch=16"];
  if (p.knob !== "steps") args.push(`${p.knob}=${p.value}`);
  else if (p.value !== null) args.push(`steps=${p.value}`);
  if (group.heated.includes(p.family) && group.temperature !== null) args.push(`temperature=${group.temperature}`);
  return `import samplers\n\ndenoiser = samplers.problems.create("${group.problem}").denoiser("${p.family}")\n` +
    `out = samplers.sample(${args.join(", ")})`;
}

if (typeof module !== "undefined") module.exports = { ranking, shellLine, pythonLines };

// ---------------------------------------------------------------------------------------------- the page

function start() {
  const { metrics, groups } = JSON.parse(document.getElementById("measured").textContent);
  const form = document.getElementById("chooser"), SHOWN = 12, COLOURS = 5;
  const state = { picked: null, all: false };
  const unique = (values) => [...new Set(values)];
  const number = (v) => (v !== 0 && Math.abs(v) < 0.001 ? v.toExponential(1) : String(Number(v.toPrecision(3))));
  const key = (data) => data.replaceAll(" ", "-");

  /** An element; text is never read as HTML. */
  function element(tag, attributes = {}, ...children) {
    const drawn = ["svg", "line", "polyline", "circle", "text", "title", "rect"].includes(tag);
    const made = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function fill(name, options, wanted) {
    const select = form.elements[name], values = options.map(([value]) => value);
    select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
    select.value = values.includes(wanted) ? wanted : values[0];
    select.parentElement.hidden = options.length < 2;
  }

  // What the form offers depends on the problem; what is still offered stays chosen.
  function offer(wanted) {
    const datas = unique(groups.map((g) => g.data));
    fill("data", datas.map((d) => [d, `${d}: ${groups.find((g) => g.data === d).title}`]), wanted.data);
    const own = groups.filter((g) => g.data === form.elements.data.value);
    fill("temperature", own.map((g) => [String(g.temperature), g.temperature === null ? "none" : String(g.temperature)]), wanted.temperature);
    const group = chosen();
    fill("family", [["", "any"], ...(group.families.length > 1 ? group.families.map((f) => [f, f]) : [])], wanted.family);
    const judged = [group.primary, ...Object.keys(group.metrics).filter((m) => m !== group.primary)];
    fill("metric", judged.map((m) => [m, metrics[m].label]), wanted.metric);
    const timed = group.points.some((p) => p.seconds !== null);
    const [passes, seconds] = form.elements.cost;
    seconds.disabled = !timed;
    seconds.parentElement.title = timed ? "" : "These runs were not timed.";
    (wanted.cost === "seconds" && timed ? seconds : passes).checked = true;
    const budgets = budgetsOf(group);
    if (wanted.budget > 0 && wanted.cost === cost()) form.elements.budget.value = wanted.budget;
    else form.elements.budget.value = budgets[Math.floor((budgets.length - 1) * 0.67)];
    document.querySelector("#chooser .picks").replaceChildren(...budgets.map((b) => {
      const button = element("button", { type: "button" }, String(b));
      button.addEventListener("click", () => { form.elements.budget.value = b; state.picked = null; show(); });
      return button;
    }));
  }

  function chosen() {
    const { data, temperature } = form.elements;
    return groups.find((g) => g.data === data.value && String(g.temperature) === temperature.value) ||
      groups.find((g) => g.data === data.value);
  }

  const cost = () => form.elements.cost.value;

  /** Budgets to pick from: the numbers of passes that were asked for, or round times from the shortest to the longest. */
  function budgetsOf(group) {
    if (cost() === "nfe") return group.budgets;
    const times = group.points.filter((p) => p.seconds !== null).map((p) => p.seconds * 1e3);
    const found = [];
    for (let k = -6; k < 6; k++) for (const m of [1, 2, 5]) found.push(Number(`${m}e${k}`));
    const inside = found.filter((b) => b > Math.min(...times) * 1.5 && b < Math.max(...times) * 2);
    return inside.slice(0, 10);
  }

  // ------------------------------------------------------------------------------------------ showing

  function show() {
    const group = chosen(), metric = form.elements.metric.value, family = form.elements.family.value;
    const budget = Number(form.elements.budget.value), limit = cost() === "seconds" ? budget / 1e3 : budget;
    const points = group.points.filter((p) => !family || p.family === family);
    const ranked = ranking(points, metric, limit, cost());
    document.getElementById("choice").hidden = false;
    remember(group, metric, family, budget);
    for (const button of form.querySelectorAll(".picks button"))
      button.setAttribute("aria-pressed", String(Number(button.textContent) === budget));
    const picked = ranked.find((r) => r.point.sampler === state.picked) || ranked[0];
    summarise(group, metric, budget, ranked);
    table(group, metric, ranked, picked);
    run(group, picked);
    draw(group, points, metric, limit, ranked, picked);
    document.getElementById("meaning").textContent = `${metrics[metric].meaning} Lower is better. ` +
      `${group.rows.toLocaleString("en")} samples per run${group.seeds > 1 ? ` and ${group.seeds} seeds` : ""}; bars are 95 % intervals. ` +
      (group.temperature === null || group.temperature === 1 ? "" :
        "At this temperature samples are meant to be likely, not to follow the model's distribution. ") +
      (cost() === "seconds" ? `Seconds were measured with one thread of ${group.cpu}, the exact model's own time included.` : "");
  }

  const unit = () => (cost() === "seconds" ? "ms per sample" : "forward passes");
  const spent = (p) => (cost() === "seconds" ? `${number(p.seconds * 1e3)} ms` : number(p.nfe));

  function summarise(group, metric, budget, ranked) {
    const out = document.getElementById("summary");
    if (!ranked.length) {
      const least = Math.min(...group.points.filter((p) => p[cost()] !== null).map((p) => p[cost()] * (cost() === "seconds" ? 1e3 : 1)));
      out.textContent = `Nothing was measured at so small a budget: the least is ${number(least)} ${unit()}.`;
      return;
    }
    const ties = ranked.filter((r) => r.rank === 1), first = ranked[0].point;
    const cheap = ties.reduce((a, b) => (b.point[cost()] < a.point[cost()] ? b : a)).point;
    out.replaceChildren("Best at ", element("strong", {}, `${number(budget)} ${unit()}`), ": ", element("code", {}, first.sampler), ". ");
    if (ties.length > 1) {
      const many = ties.length === 2 ? "One other cannot" : `${ties.length - 1} others cannot`;
      out.append(`${many} be told from it, because the intervals overlap: they share rank 1. `);
      if (cheap !== first) out.append("The cheapest of them is ", element("code", {}, cheap.sampler), `, ${spent(cheap)}${cost() === "nfe" ? " passes" : ""}.`);
    } else if (ranked.length > 1) out.append("Its interval overlaps no other.");
  }

  function table(group, metric, ranked, picked) {
    const exact = group.metrics[metric], ends = ranked.flatMap((r) => r.point[metric]).concat(exact === null ? [] : [exact]);
    const least = Math.min(...ends), most = Math.max(...ends), log = least > 0 && most / least > 6;
    const place = (v) => {
      const share = log ? Math.log(v / least) / Math.log(most / least) : (v - least) / (most - least);
      return `${(100 * (most > least ? share : 0.5)).toFixed(1)}%`;
    };
    const seen = state.all ? ranked : ranked.filter((r, i) => i < SHOWN || r === picked);
    const rows = seen.map(({ rank, point: p }) => {
      const [value, low, high] = p[metric];
      const radio = element("input", { type: "radio", name: "picked", value: p.sampler, "aria-label": `Show how to run ${p.sampler}` });
      radio.checked = p === picked.point;
      radio.addEventListener("change", () => { state.picked = p.sampler; show(); document.querySelector(`#ranked input[value="${p.sampler}"]`).focus(); });
      const bar = element("div", { class: "interval", "aria-hidden": "true" },
        element("span", { class: "range", style: `left:${place(low)};right:calc(100% - ${place(high)})` }),
        element("span", { class: "dot", style: `left:${place(value)}` }));
      if (exact !== null && exact >= least) bar.append(element("span", { class: "truth", style: `left:${place(exact)}`, title: `exact samples: ${number(exact)}` }));
      const setting = p.knob === "steps" ? "" : `${p.knob} ${p.value}`;
      const name = p.page ? element("a", { href: `samplers/${p.page}.html` }, element("code", {}, p.sampler)) : element("code", {}, p.sampler);
      return element("tr", { class: [rank === 1 ? "tied" : "", p === picked.point ? "picked" : ""].join(" ").trim() || null },
        element("td", {}, radio), element("td", { class: "number" }, String(rank)), element("td", {}, name),
        element("td", { class: "number" }, number(value)), element("td", { class: "number quiet" }, `${number(low)} to ${number(high)}`),
        element("td", { class: "bar" }, bar), element("td", { class: "number" }, spent(p)), element("td", { class: "quiet" }, setting));
    });
    const heads = ["", "rank", "sampler", metrics[metric].label, "95 % interval", exact === null ? "" : `| exact: ${number(exact)}`, cost() === "seconds" ? "time" : "passes", "setting"];
    const caption = element("caption", {}, `${group.data}${group.temperature === null ? "" : `, temperature ${group.temperature}`}`);
    document.getElementById("ranked").replaceChildren(element("table", { class: "ranking" }, caption,
      element("thead", {}, element("tr", {}, ...heads.map((h) => element("th", { scope: "col" }, h)))), element("tbody", {}, ...rows)));
    const more = document.getElementById("more");
    more.replaceChildren();
    if (ranked.length > SHOWN) {
      const button = element("button", { type: "button" }, state.all ? `Show the first ${SHOWN}` : `Show all ${ranked.length}`);
      button.addEventListener("click", () => { state.all = !state.all; show(); document.querySelector("#more button").focus(); });
      more.append(button);
    }
  }

  function run(group, picked) {
    const out = document.getElementById("run");
    document.getElementById("run-title").textContent = picked ? `Run ${picked.point.sampler}` : "Run it";
    out.replaceChildren(...(picked ? [shellLine(group, picked.point), pythonLines(group, picked.point)] : []).map((text) => {
      const block = element("div", { class: "highlight copied" }, element("pre", {}, element("code", {}, text)));
      if (navigator.clipboard) {
        const button = element("button", { type: "button", "aria-label": "Copy" }, "Copy");
        button.addEventListener("click", () => navigator.clipboard.writeText(text).then(() => { button.textContent = "Copied"; }));
        block.append(button);
      }
      return block;
    }));
  }

  // ------------------------------------------------------------------------------------------ drawing

  function draw(group, points, metric, limit, ranked, picked) {
    const box = document.getElementById("drawing"), width = Math.max(300, box.clientWidth || 640), height = Math.min(380, 180 + width * 0.3);
    const left = 54, right = 16, top = 26, bottom = 42, factor = cost() === "seconds" ? 1e3 : 1;
    const there = points.filter((p) => p[cost()] !== null);
    box.replaceChildren();
    if (!there.length) return;
    const exact = group.metrics[metric], values = there.map((p) => p[metric][0]).concat(exact === null ? [] : [exact]);
    const least = Math.min(...values), most = Math.max(...values), log = least > 0 && most / least > 6;
    const floor = log ? least / 1.5 : Math.min(0, least), ceiling = log ? most * 1.2 : most * 1.05 || 1;
    const costs = there.map((p) => p[cost()] * factor), budget = limit * factor;
    const from = Math.min(...costs) / 1.1, to = Math.max(...costs) * 1.1;
    const x = (v) => left + (width - left - right) * Math.log(v / from) / Math.log(to / from);
    const y = (v) => {
      const w = Math.min(ceiling, Math.max(floor, v));
      return height - bottom - (height - top - bottom) * (log ? Math.log(w / floor) / Math.log(ceiling / floor) : (w - floor) / (ceiling - floor));
    };
    const svg = element("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", width, height,
      "aria-label": `${metrics[metric].label} against ${unit()}: lines of ${unique(there.map((p) => p.sampler)).length} samplers, the first of the ranking in colour, and the budget` });
    const text = (tx, ty, words, anchor = "start", style = "soft") => svg.append(element("text", { x: tx, y: ty, "text-anchor": anchor, class: style }, words));
    const line = (x1, y1, x2, y2, style) => svg.append(element("line", { x1, y1, x2, y2, class: style }));
    text(0, 13, `${metrics[metric].label}, lower is better`);
    text(width - right, height - 5, unit(), "end");
    for (const v of ticksOf(floor, ceiling, log)) { line(left, y(v), width - right, y(v), "grid"); text(left - 6, y(v) + 4, number(v), "end"); }
    let last = -99;
    for (const b of budgetsOf(group)) if (b >= from && b <= to && x(b) - last > 26) { last = x(b); text(last, height - bottom + 16, number(b), "middle"); }
    if (exact !== null && (!log || exact > 0)) { line(left, y(exact), width - right, y(exact), "exact"); text(left + 4, y(exact) - 4, "exact samples"); }
    if (budget >= from && budget <= to) { line(x(budget), top, x(budget), height - bottom, "budget"); const far = x(budget) > width / 2; text(x(budget) + (far ? -5 : 5), top + 10, "budget", far ? "end" : "start"); }
    const who = (p) => `${p.distribution}:${p.sampler}`;
    const named = picked ? unique([picked, ...ranked].map((r) => who(r.point))).slice(0, COLOURS) : [];
    const names = unique(there.map(who)).sort((a, b) => named.indexOf(b) - named.indexOf(a));
    for (const one of names) {
      const own = there.filter((p) => who(p) === one).sort((a, b) => a[cost()] - b[cost()]), at = named.indexOf(one);
      const path = own.map((p) => `${x(p[cost()] * factor).toFixed(1)},${y(p[metric][0]).toFixed(1)}`).join(" ");
      const style = at < 0 ? "other" : `line c${at}`;
      svg.append(element("polyline", { points: path, class: style }, element("title", {}, own[0].sampler)));
      if (at < 0) continue;
      for (const p of own) {
        const cx = x(p[cost()] * factor), [value, low, high] = p[metric];
        line(cx, y(low), cx, y(high), `bar c${at}`);
        svg.append(element("circle", { cx, cy: y(value), r: 3.5, class: `c${at}` },
          element("title", {}, `${p.sampler}, ${spent(p)}: ${number(value)} (${number(low)} to ${number(high)})`)));
      }
    }
    const legend = element("ul", { class: "legend" }, ...named.map((one, i) =>
      element("li", {}, element("span", { class: `swatch c${i}` }), one.split(":")[1])),
      ...(names.length > named.length ? [element("li", {}, element("span", { class: "swatch" }), `${names.length - named.length} others`)] : []));
    box.append(svg, legend);
  }

  function ticksOf(low, high, log) {
    const found = [];
    if (log) for (let k = Math.floor(Math.log10(low)); k <= Math.log10(high); k++)
      for (const m of high / low > 100 ? [1] : [1, 2, 5]) found.push(Number(`${m}e${k}`));
    else {
      const size = 10 ** Math.floor(Math.log10(high - low)), step = [size / 5, size / 2, size, size * 2].find((s) => (high - low) / s <= 6);
      for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(Number((k * step).toPrecision(6)));
    }
    return found.filter((v) => v >= low && v <= high);
  }

  // ------------------------------------------------------------------------------------------ the address

  function remember(group, metric, family, budget) {
    const words = new URLSearchParams({ problem: key(group.data) });
    if (group.temperature !== null) words.set("temperature", group.temperature);
    if (family) words.set("family", family);
    if (metric !== group.primary) words.set("metric", metric);
    if (cost() === "seconds") words.set("seconds", budget / 1e3);
    else words.set("nfe", budget);
    if (state.picked) words.set("sampler", state.picked);
    state.written = `#${words}`;
    if (location.hash !== state.written) history.replaceState(null, "", state.written);
  }

  function recall() {
    const words = new URLSearchParams(location.hash.slice(1)), seconds = words.get("seconds");
    const data = words.get("problem") || words.get("data"), temperature = words.get("temperature");
    state.picked = words.get("sampler");
    offer({
      data: unique(groups.map((g) => g.data)).find((d) => data !== null && key(d) === key(data)),
      temperature: temperature === null ? null : String(Number(temperature)),
      family: words.get("family"), metric: words.get("metric"),
      cost: seconds !== null ? "seconds" : "nfe", budget: seconds !== null ? Number(seconds) * 1e3 : Number(words.get("nfe")),
    });
    if (state.picked && seconds === null && words.get("nfe") === null) {  // a link to a sampler: its largest measured budget
      const own = chosen().points.filter((p) => p.sampler === state.picked).map((p) => p.nfe);
      if (own.length) form.elements.budget.value = chosen().budgets.find((b) => b >= Math.max(...own) / 1.005) || Math.ceil(Math.max(...own));
    }
    show();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    const { data, temperature, family, metric, budget } = form.elements, name = event.target.name;
    if (name === "budget") { if (Number(budget.value) > 0) show(); return; }
    state.picked = null;
    // The budgets of another problem are others; those of another temperature are the same.
    const keep = name === "data" || name === "cost" ? 0 : Number(budget.value);
    offer({ data: data.value, temperature: temperature.value, family: family.value, metric: metric.value, cost: cost(), budget: keep });
    show();
  });
  window.addEventListener("hashchange", () => { if (location.hash !== state.written) recall(); });
  let waiting = 0;
  window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(show, 100); });
  form.hidden = false;
  recall();
}

if (typeof document !== "undefined") start();
