"use strict";
(() => {
  const boards = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const namespace = at("namespace").namespaceURI;
  const ALL = "";
  const initial = { board: "main", organ: ALL, type: ALL, metric: ALL, mode: "complete", sort: ["mean", 1] };
  const state = { ...initial, out: new Set() };

  // Elements: names come from results and are text only, never markup.
  const fill = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children.filter((child) => child !== null));
    return node;
  };
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS(namespace, tag), attributes, children);
  const cut = (text, length) => (text.length > length ? text.slice(0, length - 1) + "…" : text);
  const label = (x, y, text, attributes, length = 26) =>
    svg("text", { x, y, ...attributes }, cut(text, length), svg("title", {}, text));
  const fixed = (value, digits = 3) => (value === null ? "–" : value.toFixed(digits));

  // Ranks: the published rule, as training/pathbench/ranking.py has it.
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const sd = (values) => Math.sqrt(mean(values.map((value) => (value - mean(values)) ** 2)));
  const quantile = (values, share) => {
    const sorted = [...values].sort((a, b) => a - b);
    const place = share * (sorted.length - 1);
    const low = Math.floor(place);
    return sorted[low] + (place - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
  };
  const ranksOf = (values) =>
    values.map((a) => values.filter((b) => b < a).length + (values.filter((b) => b === a).length + 1) / 2);
  const unique = (values) => [...new Set(values)];
  const placeOf = (row) => JSON.stringify([row.organ, row.task, row.cohort]);
  const metricOf = (row) => `${row.probe}: ${row.metric}`.replaceAll("_", " ");

  const taskRanks = (rows, values) => {
    const groups = new Map();
    rows.forEach((row, r) => {
      const ranks = ranksOf(values[r].map((value) => -value));
      groups.set(placeOf(row), [...(groups.get(placeOf(row)) ?? []), { row, ranks }]);
    });
    return [...groups.values()].map((members) => ({
      organ: members[0].row.organ,
      task: JSON.stringify([members[0].row.organ, members[0].row.task]),
      ranks: ranksOf(members[0].ranks.map((_, m) => Number(mean(members.map((each) => each.ranks[m])).toFixed(9)))),
    }));
  };
  const meanRanks = (tasks) => tasks[0].ranks.map((_, m) => mean(tasks.map((task) => task.ranks[m])));
  const averaged = (rows, values) => {
    const groups = new Map();
    rows.forEach((row, r) => {
      const key = JSON.stringify([row.organ, row.task, metricOf(row)]);
      groups.set(key, [...(groups.get(key) ?? []), r]);
    });
    const members = [...groups.values()];
    return [
      members.map((of) => ({ ...rows[of[0]], cohort: "" })),
      members.map((of) => values[of[0]].map((_, m) => mean(of.map((r) => values[r][m])))),
    ];
  };
  const random = (seed) => () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const intervals = (tasks) => {
    const units = unique(tasks.map((task) => task.task)).map((name) => tasks.filter((task) => task.task === name));
    if (units.length < 2) return null;
    const next = random(2026);
    const draws = Array.from({ length: 2000 }, () =>
      meanRanks(units.flatMap(() => units[Math.floor(next() * units.length)])));
    return draws[0].map((_, m) => {
      const column = draws.map((draw) => draw[m]);
      return [quantile(column, 0.025), quantile(column, 0.975)];
    });
  };

  const selection = () => {
    const board = boards[state.board];
    const kept = board.rows
      .map((row, index) => ({ ...row, index }))
      .filter((row) => (!state.organ || row.organ === state.organ) && (!state.type || row.type === state.type) &&
        (!state.metric || metricOf(row) === state.metric));
    const score = new Map(board.cells.filter((cell) => !cell.optimistic).map((cell) => [`${cell.row} ${cell.model}`, cell.value]));
    const has = (row, model) => score.has(`${row.index} ${model}`);
    const shown = board.models.filter((model) => !state.out.has(model));
    const measured = shown.filter((model) => kept.some((row) => has(row, model)));
    const common = state.mode === "common";
    const used = kept.filter((row) => measured.some((model) => has(row, model)))
      .filter((row) => !common || measured.every((model) => has(row, model)));
    const models = common ? measured : measured.filter((model) => used.every((row) => has(row, model)));
    const lacking = common ? [] : measured.filter((model) => !models.includes(model));
    const values = used.map((row) => models.map((model) => score.get(`${row.index} ${model}`)));
    const whole = !state.organ && !state.type && !state.metric && !state.out.size;
    return { board, kept, shown, used, models, lacking, values, whole, score };
  };

  const rank = ({ board, used, models, values, whole }) => {
    if (!used.length || !models.length) return null;
    const tasks = taskRanks(used, values);
    const balanced = taskRanks(...averaged(used, values));
    const organs = unique(balanced.map((task) => task.organ));
    const means = meanRanks(tasks);
    const whole95 = whole && (state.mode === "common" ? board.common : board.ranking);
    const bounds = whole95 ? models.map((model) => whole95.mean_rank_95 && whole95.mean_rank_95[model]) : intervals(tasks);
    const byOrgan = organs.map((organ) => meanRanks(balanced.filter((task) => task.organ === organ)));
    const q = board.nemenyi_q[models.length];
    const cd = models.length > 1 && tasks.length > 1
      ? q * Math.sqrt((models.length * (models.length + 1)) / (6 * tasks.length)) : null;
    const metrics = unique(used.map(metricOf));
    const lines = models.map((model, m) => ({
      model,
      mean: means[m],
      low: bounds && bounds[m] ? bounds[m][0] : null,
      high: bounds && bounds[m] ? bounds[m][1] : null,
      first: tasks.filter((task) => task.ranks[m] === Math.min(...task.ranks)).length,
      task: meanRanks(balanced)[m],
      organ: mean(byOrgan.map((ranks) => ranks[m])),
      scores: metrics.map((metric) => mean(values.filter((_, r) => metricOf(used[r]) === metric).map((row) => row[m]))),
    }));
    lines.sort((a, b) => a.mean - b.mean);
    return { lines, tasks: tasks.length, cd, metrics };
  };

  const cliques = (lines, cd) => {
    const runs = [];
    let end = 0;
    lines.forEach((line, start) => {
      const stop = lines.filter((other) => other.mean - line.mean < cd).length;
      if (stop > end && stop - start > 1) runs.push([start, stop - 1]);
      end = Math.max(end, stop);
    });
    return runs;
  };

  const statement = (chosen, found) => {
    const { board, whole } = chosen;
    if (!board.rows.length) return `No result stands on the ${board.title.toLowerCase()} yet.`;
    if (!found) return `No model has a result on every row shown of the ${board.title.toLowerCase()}.`;
    const stated = whole && (state.mode === "common" ? board.common : board.ranking);
    if (stated) return `${stated.statement} With the cohorts of a task averaged: ${stated.task_balanced.statement}`;
    if (found.cd === null) return "Two models on two tasks at least are needed to say that one is better.";
    const level = found.lines.filter((line) => line.mean - found.lines[0].mean < found.cd).map((line) => line.model);
    return `Over these ${found.tasks} tasks mean ranks must differ by ${found.cd.toFixed(2)} (Nemenyi, α 0.05): ` +
      (level.length > 1 ? `the first ${level.length} (${level.join(", ")}) are not separable.`
        : `${level[0]} is separable from every other model.`) + " The other tests are for the whole board.";
  };

  const drawRanking = (found) => {
    const table = at("ranking");
    table.querySelectorAll("thead, tbody").forEach((part) => part.remove());
    if (!found) return;
    const columns = [
      ["model", "Model", (line) => line.model],
      ["mean", "Mean rank", (line) => line.mean.toFixed(2)],
      ["low", "95 % over tasks", (line) => (line.low === null ? "–" : `[${line.low.toFixed(2)}, ${line.high.toFixed(2)}]`)],
      ["first", "First", (line) => String(line.first)],
      ["task", "Task-balanced", (line) => line.task.toFixed(2)],
      ["organ", "Organ-balanced", (line) => line.organ.toFixed(2)],
      ...found.metrics.map((metric, k) => [`score ${k}`, `Mean ${metric}`, (line) => line.scores[k].toFixed(3)]),
    ];
    const value = (line, key) => (key.startsWith("score ") ? line.scores[Number(key.slice(6))] : line[key]);
    const [by, sign] = columns.some(([key]) => key === state.sort[0]) ? state.sort : ["mean", 1];
    const order = (a, b) => (value(a, by) > value(b, by) ? sign : value(a, by) < value(b, by) ? -sign : 0);
    const head = el("tr", {}, ...columns.map(([key, title]) => {
      const button = el("button", { type: "button", id: `sort ${key}` }, title);
      button.addEventListener("click", () => {
        const best = key === "first" || key.startsWith("score ") ? -1 : 1;
        state.sort = [key, by === key ? -sign : best];
        draw();
        at(`sort ${key}`).focus();
      });
      const sorted = by === key ? { "aria-sort": sign > 0 ? "ascending" : "descending" } : {};
      return el("th", { scope: "col", ...sorted }, button);
    }));
    const cell = (key, text) =>
      (key === "model" ? el("th", { scope: "row", title: text }, text) : el("td", {}, text));
    const body = [...found.lines].sort(order).map((line) =>
      el("tr", {}, ...columns.map(([key, , text]) => cell(key, text(line)))));
    table.append(el("thead", {}, head), el("tbody", {}, ...body));
  };

  const drawDifference = (found) => {
    if (!found || found.cd === null) {
      at("cd").replaceChildren(el("p", {}, "Not defined below two models on two tasks."));
      return;
    }
    const { lines, cd } = found;
    const count = lines.length;
    const runs = cliques(lines, cd);
    const [left, right, axis] = [210, 550, 62];
    const x = (rank) => left + ((rank - 1) / (count - 1)) * (right - left);
    const half = Math.ceil(count / 2);
    const start = axis + 18 + runs.length * 8;
    const parts = [
      svg("line", { x1: left, x2: right, y1: axis, y2: axis, class: "stroke" }),
      ...Array.from({ length: count }, (_, k) => k + 1).filter((rank) => count < 13 || rank % 2 === 1).flatMap((rank) => [
        svg("line", { x1: x(rank), x2: x(rank), y1: axis - 5, y2: axis, class: "stroke" }),
        svg("text", { x: x(rank), y: axis - 9, "text-anchor": "middle", class: "quiet" }, String(rank)),
      ]),
      svg("line", { x1: left, x2: Math.min(left + (cd / (count - 1)) * (right - left), right + 150), y1: 24, y2: 24, class: "ci" }),
      svg("text", { x: left, y: 16 }, `critical difference ${cd.toFixed(2)}`),
      ...runs.map(([from, to], k) => svg("line", {
        x1: x(lines[from].mean) - 3, x2: x(lines[to].mean) + 3, y1: axis + 10 + k * 8, y2: axis + 10 + k * 8, class: "clique",
      })),
      ...lines.flatMap((line, k) => {
        const first = k < half;
        const y = start + (first ? k : count - 1 - k) * 18 + 8;
        const end = first ? left - 8 : right + 8;
        return [
          svg("polyline", { points: `${x(line.mean)},${axis} ${x(line.mean)},${y} ${end},${y}`, class: "stroke" }),
          label(first ? end - 4 : end + 4, y + 4, `${cut(line.model, 22)} ${line.mean.toFixed(2)}`,
            { "text-anchor": first ? "end" : "start" }, 30),
        ];
      }),
    ];
    const ranks = lines.map((line) => `${line.model} ${line.mean.toFixed(2)}`).join(", ");
    const name = `Mean ranks: ${ranks}; critical difference ${cd.toFixed(2)}`;
    const shape = { viewBox: `0 0 760 ${start + half * 18 + 8}`, role: "img", "aria-label": name };
    at("cd").replaceChildren(el("div", { class: "scroll" }, svg("svg", shape, ...parts)));
  };

  const marks = (cell) => [cell.leakage === "clean" ? null : cell.leakage, cell.optimistic ? "optimistic" : null].filter(Boolean);

  const chart = (row, cells) => {
    const [left, right, line, top] = [200, 620, 30, 8];
    const every = cells.flatMap((cell) => [cell.low, cell.high, ...cell.values]);
    let [least, most] = [Math.min(...every), Math.max(...every)];
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1].find((size) => (most - least) / size <= 6) ?? most - least;
    [least, most] = [Math.floor(least / step) * step, Math.ceil(most / step) * step];
    if (most === least) most = least + step;
    const x = (value) => left + ((value - least) / (most - least)) * (right - left);
    const bottom = top + cells.length * line;
    const ticks = Array.from({ length: Math.round((most - least) / step) + 1 }, (_, k) => least + k * step);
    const grid = ticks.flatMap((tick) => [
      svg("line", { x1: x(tick), x2: x(tick), y1: top, y2: bottom, class: "axis" }),
      svg("text", { x: x(tick), y: bottom + 14, "text-anchor": "middle", class: "quiet" }, tick.toFixed(2)),
    ]);
    const bars = cells.flatMap((cell, k) => {
      const [y, z] = [top + k * line + 9, top + k * line + 20];
      const [low, first, middle, third, high] = [0, 0.25, 0.5, 0.75, 1].map((share) => x(quantile(cell.values, share)));
      const repeats = cell.values.length > 1 ? [
        svg("line", { x1: low, x2: high, y1: z, y2: z, class: "whisker" }),
        svg("rect", { x: first, y: z - 4, width: Math.max(third - first, 1), height: 8, class: "box" }),
        svg("line", { x1: middle, x2: middle, y1: z - 4, y2: z + 4, class: "stroke" }),
      ] : [];
      return [
        label(left - 10, y + 7, [cell.model, ...marks(cell)].join(", "), { "text-anchor": "end" }),
        svg("line", { x1: x(cell.low), x2: x(cell.high), y1: y, y2: y, class: "ci" }),
        svg("circle", { cx: x(cell.value), cy: y, r: 4, class: cell.optimistic ? "hollow" : "dot" }),
        ...repeats,
        svg("text", { x: right + 10, y: y + 7 }, `${fixed(cell.value)} [${fixed(cell.low)}, ${fixed(cell.high)}]`),
      ];
    });
    const name = `${row.task}, ${metricOf(row)}: ${cells.map((cell) => `${cell.model} ${fixed(cell.value)}`).join(", ")}`;
    return svg("svg", { viewBox: `0 0 760 ${bottom + 22}`, role: "img", "aria-label": name }, ...grid, ...bars);
  };

  const against = (pair) => (pair
    ? [`${fixed(pair.difference)} [${fixed(pair.low)}, ${fixed(pair.high)}]`, pair.holm < 0.001 ? "< 0.001" : fixed(pair.holm)]
    : ["–", "–"]);

  const detail = (row, cells, board, shared) => {
    const pairs = new Map(board.pairs.filter((pair) => pair.row === row.index).map((pair) => [pair.second, pair]));
    const best = board.pairs.length ? board.pairs[0].first : null;
    const heads = ["Model", "Mean", "95 % over groups", "SD", "Least to greatest", "Trainings",
      ...(pairs.size ? [`${best} minus it`, "p (Holm)"] : []), "Remarks"];
    const body = cells.map((cell) => {
      const pair = pairs.get(cell.model);
      return el("tr", {},
        el("th", { scope: "row", title: cell.model }, cell.model),
        ...[fixed(cell.value), `[${fixed(cell.low)}, ${fixed(cell.high)}]`, fixed(sd(cell.values)),
          `${fixed(Math.min(...cell.values))} to ${fixed(Math.max(...cell.values))}`, String(cell.values.length),
          ...(pairs.size ? against(pair) : []),
        ].map((text) => el("td", {}, text)),
        el("td", { class: "text" }, [...marks(cell), ...cell.reasons, ...cell.notes.filter((note) => !shared.includes(note))].join("; ")));
    });
    const table = el("table", {},
      el("thead", {}, el("tr", {}, ...heads.map((head) =>
        el("th", { scope: "col", ...(head === "Remarks" ? { class: "text" } : {}) }, head)))),
      el("tbody", {}, ...body));
    return el("details", {}, el("summary", {}, "Figures"),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Figures of ${row.task}` }, table));
  };

  const drawTasks = ({ board, kept, shown }) => {
    const parts = kept.map((row) => {
      const cells = board.cells.filter((cell) => cell.row === row.index && shown.includes(cell.model));
      cells.sort((a, b) => b.value - a.value);
      const shared = unique(cells.flatMap((cell) => cell.notes)).filter((note) => cells.every((cell) => cell.notes.includes(note)));
      const items = `${row.items} items in ${row.groups} groups (${row.grouping})`;
      const facts = [`${row.organ}, ${row.type}, cohort ${row.cohort}: ${items}`, ...shared].join("; ");
      return cells.length && el("article", {}, el("h3", {}, `${row.task} – ${metricOf(row)}`),
        el("p", { class: "note" }, facts), el("div", { class: "scroll" }, chart(row, cells)), detail(row, cells, board, shared));
    }).filter(Boolean);
    at("tasks").replaceChildren(...(parts.length ? parts : [el("p", {}, "No result.")]));
  };

  // The view stands in the address, so that it can be passed on: #board=flagged&organ=colon&without=UNI
  const VIEW = ["board", "organ", "type", "metric", "mode"];
  const remember = () => {
    const view = new URLSearchParams(VIEW.filter((name) => state[name] !== initial[name]).map((name) => [name, state[name]]));
    state.out.forEach((model) => view.append("without", model));
    history.replaceState(null, "", `#${view}`);
  };
  const recall = () => {
    const view = new URLSearchParams(location.hash.slice(1));
    VIEW.filter((name) => view.has(name)).forEach((name) => { state[name] = view.get(name); });
    if (!Object.hasOwn(boards, state.board)) state.board = initial.board;
    if (state.mode !== "common") state.mode = initial.mode;
    state.out = new Set(view.getAll("without"));
  };

  const draw = () => {
    const chosen = selection();
    const found = rank(chosen);
    at("statement").textContent = statement(chosen, found);
    at("unranked").textContent = chosen.lacking.length
      ? `Not ranked, for want of results on some of these rows: ${chosen.lacking.join(", ")}.` : "";
    drawRanking(found);
    drawDifference(found);
    drawTasks(chosen);
    remember();
  };

  const offer = (id, values) => {
    at(id).replaceChildren(el("option", { value: ALL }, "all"), ...values.map((value) => el("option", { value }, value)));
    at(id).value = state[id] = values.includes(state[id]) ? state[id] : ALL;
  };
  const open = () => {
    const board = boards[state.board];
    at("board").value = state.board;
    at("mode").value = state.mode;
    offer("organ", unique(board.rows.map((row) => row.organ)));
    offer("type", unique(board.rows.map((row) => row.type)));
    offer("metric", unique(board.rows.map(metricOf)));
    state.out = new Set([...state.out].filter((model) => board.models.includes(model)));
    at("models").replaceChildren(...board.models.map((model) => {
      const box = el("input", { type: "checkbox" });
      box.checked = !state.out.has(model);
      box.addEventListener("change", () => {
        state.out[box.checked ? "delete" : "add"](model);
        draw();
      });
      return el("label", {}, box, ` ${model}`);
    }));
    draw();
  };
  at("board").replaceChildren(...Object.entries(boards).map(([value, board]) => el("option", { value }, board.title)));
  at("board").addEventListener("change", () => { state.board = at("board").value; open(); });
  for (const id of ["organ", "type", "metric", "mode"]) {
    at(id).addEventListener("change", () => { state[id] = at(id).value; draw(); });
  }
  at("reset").addEventListener("click", () => {
    Object.assign(state, { ...initial, board: state.board, out: new Set() });
    open();
  });
  addEventListener("beforeprint", () => document.querySelectorAll("#tasks details").forEach((each) => { each.open = true; }));
  at("filters").hidden = false;
  recall();
  open();
})();
