"""The one-page HTML report of a run, and its figures; of several runs, one that compares them.

    python -m experiments.stages.report preset=quickstart
    python -m experiments.stages.report RUN RUN [...]       writes RUN/compare.html, beside the first one's report

Charts are interactive where scripts run, and pictures elsewhere and in print; the page needs
nothing else.
"""

import base64
import glob
import html
import io
import json
import os
import sys
from typing import Mapping, Sequence

import matplotlib
import numpy as np

from experiments.config import PROJECT, ExperimentConfig, command, guarded, saved
from experiments.files import json_lines, whole
from experiments.stages.evaluate import COLUMNS, METHODS, cells, evaluate, shaded_responses
from experiments.stages.run import Run, opened
from rldtf_jax import metrics
from rldtf_jax.config import ConfigError, flat

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402, after the backend is chosen

SHORT = {
    "instruct": "phase 1",
    "reject": "+ rejection",
    "rldtf": "+ RLDTF",
    "random": "random",
    "constant": "constant",
    "sturdiest": "sturdiest",
    "rule": "rule",
    "rule_2": "rule, 2",
    "rule_4": "rule, 4",
    "oracle": "oracle",
}
COLOURS = {
    "instruct": "#8da0cb",
    "reject": "#66c2a5",
    "rldtf": "#d95f02",
    "random": "#dddddd",
    "constant": "#cccccc",
    "sturdiest": "#bbbbbb",
    "rule": "#999999",
    "rule_2": "#888888",
    "rule_4": "#777777",
    "oracle": "#444444",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } th, td { padding: .25rem .9rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } img { max-width: 100% }
.response { border: 1px solid #ddd; border-radius: 6px; padding: .6rem .9rem; margin: 1rem 0 }
.prompt { color: #666; font-size: 13px } .tokens { font-family: ui-monospace, monospace; line-height: 2 }
.tokens span { padding: 2px 0; border-radius: 3px } pre { background: #f6f6f6; padding: .8rem; overflow-x: auto }
.note { color: #666; font-size: 13px } details { margin: 1rem 0 } summary { cursor: pointer; font-weight: 600 }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem } .charts div { position: relative; height: 15rem }
.scripted .picture { display: none }
@media print { body { max-width: none; margin: 0; font-size: 11px } .charts { display: none } .scripted .picture { display: block } h2 { break-after: avoid } tr, img { break-inside: avoid } }
"""
LIBRARY = os.path.join(PROJECT, "demo", "static", "chart.umd.min.js")  # Chart.js, MIT
SCRIPT = """
document.documentElement.classList.add("scripted");
for (const [i, {title, x, series}] of DATA.entries()) {
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", title);
  document.getElementById(`chart-${i}`).append(canvas);
  const colour = k => `hsl(${(k * 67 + 20) % 360} 60% 45%)`;
  new Chart(canvas, {type: "line", data: {datasets: series.map(({name, points}, k) => ({label: name, data: points.map(([x, y]) => ({x, y})), borderColor: colour(k),
    backgroundColor: colour(k), borderWidth: 1.5, pointRadius: 0, pointHitRadius: 8}))}, options: {animation: false, maintainAspectRatio: false,
    interaction: {mode: "nearest", axis: "x", intersect: false}, scales: {x: {type: "linear", title: {display: true, text: x}}},
    plugins: {title: {display: true, text: title}, legend: {labels: {boxWidth: 10, font: {size: 10}}}}}});
}
"""
PANELS = (
    ("reward", ("reward", "reward_p10", "reward_p90", "validation/reward")),
    ("fulfilled", ("fulfilled", "failed", "validation/pass@")),
    ("losses (Eq. 6, 7)", ("policy_loss", "value_loss")),
    ("KL, nats a token", ("kl", "surprisal/think", "surprisal/answer")),
    ("token weights", ("weight/mean", "weight/effective_sample_size", "weight/over_threshold")),
    ("twin, per step", ("twin/sequences", "twin/distinct", "twin/simulated")),
)
COMPARED = ("reward", "fulfilled", "kl", "policy_loss")  # curves of several runs


def write(run: Run, result: dict) -> str:
    """Writes <run_dir>/report.html with its figures inside (and beside it, under figures/); returns
    its path.
    """
    drawn = panels(metrics.read(run.path("rldtf")))
    figures = {
        "results": results_figure(result),
        "rldtf": lines_figure(drawn, columns=3),
        "losses": losses_figure(run),
    }
    keep_figures(run.config.run_dir, figures)
    with open(run.path("config.yaml"), encoding="utf-8") as file:
        config = file.read()
    page = document(
        f"RLDTF: {os.path.basename(os.path.abspath(run.config.run_dir))}",
        split_table("test", result),
        image(figures["results"], "Fulfilment and average score"),
        "<h2>RLDTF, step by step</h2>",
        charts(drawn, image(figures["rldtf"], "Curves of the RLDTF stage")),
        "<h2>What the tokens weigh</h2>",
        "<p class='note'>Responses to held-out requests. The darker a token, the larger its weight"
        " w (Eq. 5); point at one for S and w.</p>",
        *map(shaded_html, shaded_responses(run)),
        "<h2>Diagnostics</h2>",
        folded("All held-out splits", results_table(result)),
        folded("Losses of all stages", image(figures["losses"], "Loss curves")),
        folded("Machines", machines_table(run)),
        folded(
            "Config",
            "<p class='note'><a"
            f" href='config.yaml'>config.yaml</a></p><pre>{html.escape(config)}</pre>",
        ),
    )
    path = run.path("report.html")
    with whole(path) as file:
        file.write(page)
    return path


def keep_figures(run_dir: str, figures: Mapping[str, bytes]) -> None:
    """Leaves pictures as <run_dir>/figures/NAME.png."""
    os.makedirs(os.path.join(run_dir, "figures"), exist_ok=True)
    for name, picture in figures.items():
        with whole(os.path.join(run_dir, "figures", f"{name}.png"), "wb") as file:
            file.write(picture)


def document(title: str, *parts: str) -> str:
    """A page that stands alone."""
    return "\n".join(
        [
            (
                "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport'"
                " content='width=device-width, initial-scale=1'>"
            ),
            f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>",
            *parts,
            "</html>",
        ]
    )


def folded(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def panels(
    rows: list[dict], shown: Sequence[tuple[str, Sequence[str]]] = PANELS
) -> list[tuple[str, list[tuple[str, list[tuple[int, float]]]]]]:
    """(title, [(name, [(step, value)])]) of each of the shown that has something to show."""
    found = []
    for title, names in shown:
        names = [
            name
            for wanted in names
            for name in sorted(
                {
                    key
                    for row in rows
                    for key in row
                    if key == wanted or wanted.endswith("@") and key.startswith(wanted)
                }
            )
        ]
        series = [
            (
                name if "validation" in name else name.rpartition("/")[2],
                [(row["step"], row[name]) for row in rows if row.get(name) is not None],
            )
            for name in names
        ]
        if series := [(name, points) for name, points in series if points]:
            found.append((title, series))
    return found


def charts(
    drawn: Sequence[tuple[str, list[tuple[str, list[tuple[int, float]]]]]], fallback: str
) -> str:
    """Interactive charts of lines over steps; `fallback` without scripts and in print."""
    data = [
        {
            "title": title,
            "x": "step",
            "series": [{"name": name, "points": points} for name, points in series],
        }
        for title, series in drawn
    ]
    with open(LIBRARY, encoding="utf-8") as file:
        library = file.read()
    inside = json.dumps(data).replace("<", "\\u003c")  # no name may end the script
    return (
        f"<div class='picture'>{fallback}</div><div"
        f" class='charts'>{''.join(f'<div id=chart-{i}></div>' for i in range(len(data)))}</div><script>{library}</script><script>const"
        f" DATA = {inside};{SCRIPT}</script>"
    )


def html_table(head: Sequence[str], *rows: Sequence[str]) -> str:
    """Of texts."""
    lines = "".join(
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, row in (("th", head), *(("td", row) for row in rows))
    )
    return f"<table>{lines}</table>"


def split_table(split: str, part: dict) -> str:
    found = html_table(("", *COLUMNS.values()), *cells(part))
    return f"<h3>{split}: {part['num_tasks']} tasks</h3>{found}"


def results_table(result: dict) -> str:
    """Every held-out split's table, and the gains of the stages on the test tasks."""
    parts = [
        split_table(split, part) for split, part in {"test": result, **result["elsewhere"]}.items()
    ]
    gains = "".join(
        f"<li>{html.escape(name)}: fulfilment {g['fulfilment']:+.3f}"
        f" [{g['fulfilment_interval'][0]:+.3f}, {g['fulfilment_interval'][1]:+.3f}], mean reward"
        f" {g['reward']:+.3f} [{g['reward_interval'][0]:+.3f}, {g['reward_interval'][1]:+.3f}]</li>"
        for name, g in result["gains"].items()
    )
    return (
        "<p>Tasks that no stage has seen, on noise that no one has met, one response each"
        f" (temperature {result['temperature']:g}), 95 % intervals. Score: mean R over the"
        " fulfilled ones.</p>"
        + "".join(parts)
        + f"<p>Paired differences on the test tasks:</p><ul>{gains}</ul>"
    )


def compare(run_dirs: Sequence[str]) -> str:
    """Writes <the first>/compare.html: the test tasks by run and stage, the curves of RLDTF, and
    what the configs differ in; its path.

    Raises:
      ConfigError: a directory holds no finished run, or two are called the same.
    """
    names = [os.path.basename(os.path.abspath(path)) for path in run_dirs]
    if len(set(names)) < len(names):
        names = [os.path.abspath(path) for path in run_dirs]
    results, configs, rows = {}, {}, {}
    for name, path in zip(names, run_dirs):
        if not os.path.exists(file := os.path.join(path, "evaluation.json")):
            raise ConfigError(
                f"{file}: no such file; expected a run that python -m experiments.stages.pipeline"
                " has finished"
            )
        with open(file, encoding="utf-8") as opened_file:
            results[name] = json.load(opened_file)
        configs[name], rows[name] = (
            flat(saved(os.path.join(path, "config.yaml"))),
            metrics.read(os.path.join(path, "rldtf")),
        )
    by_run = [(row[0], name, row[1:]) for name, result in results.items() for row in cells(result)]
    order = {title: i for i, title in enumerate(METHODS.values())}
    by_method = [
        (title, name, *row) for title, name, row in sorted(by_run, key=lambda one: order[one[0]])
    ]
    keys = sorted({key for config in configs.values() for key in config} - {"run_dir"})
    different = [
        key for key in keys if len({json.dumps(config.get(key)) for config in configs.values()}) > 1
    ]
    table = [(key, *(str(config.get(key)) for config in configs.values())) for key in different]
    drawn = [
        (
            key,
            [
                (name, [(row["step"], row[key]) for row in one if row.get(key) is not None])
                for name, one in rows.items()
            ],
        )
        for key in COMPARED
    ]
    page = document(
        f"RLDTF: {', '.join(names)}",
        "<h2>Test tasks</h2>",
        html_table(("", "run", *COLUMNS.values()), *by_method),
        "<h2>RLDTF, step by step</h2>",
        charts(drawn, image(lines_figure(drawn), "Curves of the RLDTF stage of every run")),
        "<h2>What the configs differ in</h2>",
        html_table(("", *names), *table) if different else "<p>Nothing.</p>",
        "<p class='note'>"
        + ", ".join(
            f"<a href='{html.escape(os.path.relpath(os.path.join(path, 'report.html'), run_dirs[0]))}'>{html.escape(name)}</a>"
            for name, path in zip(names, run_dirs)
        )
        + "</p>",
    )
    written = os.path.join(run_dirs[0], "compare.html")
    with whole(written) as page_file:
        page_file.write(page)
    return written


def machines_table(run: Run) -> str:
    """Where the commands of this run ran, in order; of two runs with one seed that differ, the
    numerics say whether they could be equal.
    """
    rows = json_lines(run.path("machines.jsonl"))
    return html_table(list(rows[0]), *([row[name] for name in rows[0]] for row in rows)) + (
        "<p class='note'>The same command, seed and numerics give the same run to the bit,"
        " interrupted or not.</p>"
    )


def results_figure(result: dict) -> bytes:
    """Bars of fulfilment and average score with their intervals."""
    names = [name for name in METHODS if name in result["methods"]]
    figure, axes = plt.subplots(
        1, 2, figsize=(11, 0.6 + 0.32 * len(names)), layout="constrained", sharey=True
    )
    for axis, key, title in zip(
        axes, ("fulfilment", "score"), ("Fulfilment", "Average score of the fulfilled")
    ):
        for y, name in enumerate(names):
            row = result["methods"][name]
            if row[key] is not None:
                low, high = row[f"{key}_interval"]
                axis.barh(y, row[key], color=COLOURS[name])
                axis.errorbar(
                    row[key],
                    y,
                    xerr=[[row[key] - low], [high - row[key]]],
                    color="black",
                    capsize=3,
                )
                axis.text(high + 0.02, y, f"{row[key]:.2f}", va="center")
        axis.set(
            title=title,
            xlim=(0, 1.1),
            yticks=range(len(names)),
            yticklabels=[SHORT[name] for name in names],
            ylim=(len(names) - 0.4, -0.6),
        )
    return png(figure)


def lines_figure(
    drawn: Sequence[tuple[str, list[tuple[str, list[tuple[int, float]]]]]], columns: int = 2
) -> bytes:
    """`charts` as a picture."""
    rows = -(-len(drawn) // columns)
    figure, axes = plt.subplots(
        max(rows, 1), columns, figsize=(11, 2.8 * max(rows, 1)), layout="constrained", squeeze=False
    )
    for axis, (title, series) in zip(axes.flat, drawn):
        for name, points in series:
            if points:
                axis.plot(*zip(*points), label=name, linewidth=1)
        axis.set(title=title, xlabel="step")
        if axis.lines:
            axis.legend(fontsize=7)
        if title.startswith("twin"):
            axis.set_yscale("symlog")
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    return png(figure)


def losses_figure(run: Run) -> bytes:
    """The loss of every stage that trained."""
    stages_run = [("instruct", run.path("instruct"))] + [
        (os.path.basename(path), path) for path in sorted(glob.glob(run.path("reject", "round_*")))
    ]
    stages_run.append(("rldtf", run.path("rldtf")))
    figure, axes = plt.subplots(
        1, len(stages_run), figsize=(2.8 * len(stages_run), 2.6), layout="constrained"
    )
    for axis, (title, directory) in zip(np.atleast_1d(axes), stages_run):
        points = [
            (row["step"], row["loss"])
            for row in metrics.read(directory)
            if row.get("loss") is not None
        ]
        if points:
            axis.plot(*zip(*points), linewidth=1)
        axis.set(title=title, xlabel="step")
    return png(figure)


def shaded_html(response: dict) -> str:
    """One response, each token shaded by its weight."""
    top = max((token["w"] for token in response["tokens"]), default=1.0)
    spans = "".join(
        "<span style='background: rgba(217, 95, 2,"
        f" {(token['w'] - 1) / max(top - 1, 1e-9) * 0.7:.2f})' title='S = {token['S']:.3f}, w ="
        f" {token['w']:.2f}'>{html.escape(token['text'])}</span>"
        for token in response["tokens"]
    )
    verdict = "fulfilled" if response["fulfilled"] else "not fulfilled"
    return (
        f"<div class='response'><div class='prompt'>{html.escape(response['prompt'])}</div><div"
        f" class='tokens'>{spans}</div><div class='note'>R = {response['reward']:.3f},"
        f" {verdict}</div></div>"
    )


def png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    plt.close(figure)
    return buffer.getvalue()


def image(png: bytes, alt: str) -> str:
    return f"<img alt='{alt}' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"


def main(config: ExperimentConfig) -> None:
    with opened(config) as run:
        print(f"report: {write(run, evaluate(run))}")


if __name__ == "__main__":
    if run_dirs := [
        argument
        for argument in sys.argv[1:]
        if "=" not in argument and not argument.startswith("-")
    ]:
        guarded(lambda: print(f"report: {compare(run_dirs)}"))
    else:
        command(main)
