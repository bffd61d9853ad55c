"""The one-page HTML report of a run, and its figures.

    python -m experiments.stages.report preset=quickstart
"""

import base64
import glob
import html
import io
import os

import matplotlib
import numpy as np

from rldtf_jax import metrics

from experiments.config import ExperimentConfig, command
from experiments.files import json_lines, whole
from experiments.stages.evaluate import COLUMNS, METHODS, cells, evaluate, shaded_responses
from experiments.stages.run import Run, opened

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402, after the backend is chosen

SHORT = {"instruct": "phase 1", "reject": "+ rejection", "rldtf": "+ RLDTF", "random": "random", "constant": "constant",
         "sturdiest": "sturdiest", "rule": "rule", "rule_2": "rule, 2", "rule_4": "rule, 4", "oracle": "oracle"}
COLOURS = {"instruct": "#8da0cb", "reject": "#66c2a5", "rldtf": "#d95f02", "random": "#dddddd", "constant": "#cccccc", "sturdiest": "#bbbbbb",
           "rule": "#999999", "rule_2": "#888888", "rule_4": "#777777", "oracle": "#444444"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } th, td { padding: .25rem .9rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } img { max-width: 100% }
.response { border: 1px solid #ddd; border-radius: 6px; padding: .6rem .9rem; margin: 1rem 0 }
.prompt { color: #666; font-size: 13px } .tokens { font-family: ui-monospace, monospace; line-height: 2 }
.tokens span { padding: 2px 0; border-radius: 3px } pre { background: #f6f6f6; padding: .8rem; overflow-x: auto }
.note { color: #666; font-size: 13px }
"""


def write(run: Run, result: dict) -> str:
    """Writes <run_dir>/report.html with its figures inside (and beside it, under figures/); returns its path."""
    figures = {"results": results_figure(result), "rldtf": curves_figure(metrics.read(run.path("rldtf"))),
               "losses": losses_figure(run)}
    os.makedirs(run.path("figures"), exist_ok=True)
    for name, png in figures.items():
        with open(run.path("figures", f"{name}.png"), "wb") as file:
            file.write(png)
    with open(run.path("config.yaml"), encoding="utf-8") as file:
        config = file.read()
    page = "\n".join([
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f"<title>RLDTF: {html.escape(run.config.run_dir)}</title><style>{STYLE}</style>",
        f"<h1>RLDTF: {html.escape(os.path.basename(os.path.abspath(run.config.run_dir)))}</h1>",
        "<h2>Held-out tasks</h2>", results_table(result), image(figures["results"], "Fulfilment and average score"),
        "<h2>RLDTF, step by step</h2>", image(figures["rldtf"], "Curves of the RLDTF stage"),
        "<h2>Losses of all stages</h2>", image(figures["losses"], "Loss curves"),
        "<h2>What the tokens weigh</h2>",
        "<p class='note'>Responses to held-out requests. The darker a token, the larger its weight w (Eq. 5); "
        "point at one for S and w.</p>",
        *map(shaded_html, shaded_responses(run)),
        "<h2>Machines</h2>", machines_table(run),
        "<h2>Config</h2>", f"<pre>{html.escape(config)}</pre></html>"])
    path = run.path("report.html")
    with whole(path) as file:
        file.write(page)
    return path


def results_table(result: dict) -> str:
    """Every held-out split's table, and the gains of the stages on the test tasks."""
    parts = []
    for split, part in {"test": result, **result["elsewhere"]}.items():
        head = "".join(f"<th>{html.escape(title)}</th>" for title in ("", *COLUMNS.values()))
        rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in cells(part))
        parts.append(f"<h3>{split}: {part['num_tasks']} tasks</h3><table><tr>{head}</tr>{rows}</table>")
    gains = "".join(
        f"<li>{html.escape(name)}: fulfilment {g['fulfilment']:+.3f} "
        f"[{g['fulfilment_interval'][0]:+.3f}, {g['fulfilment_interval'][1]:+.3f}], mean reward {g['reward']:+.3f} "
        f"[{g['reward_interval'][0]:+.3f}, {g['reward_interval'][1]:+.3f}]</li>" for name, g in result["gains"].items())
    return ("<p>Tasks that no stage has seen, on noise that no one has met, one response each "
            f"(temperature {result['temperature']:g}), 95 % intervals. Score: mean R over the fulfilled ones.</p>"
            + "".join(parts) + f"<p>Paired differences on the test tasks:</p><ul>{gains}</ul>")


def machines_table(run: Run) -> str:
    """Where the commands of this run ran, in order; of two runs with one seed that differ, the numerics say whether they could be equal."""
    rows = json_lines(run.path("machines.jsonl"))
    body = "".join("<tr>" + "".join(f"<td>{html.escape(row[name])}</td>" for name in rows[0]) + "</tr>" for row in rows)
    return (f"<table><tr>{''.join(f'<th>{name}</th>' for name in rows[0])}</tr>{body}</table>"
            "<p class='note'>The same command, seed and numerics give the same run to the bit, interrupted or not.</p>")


def results_figure(result: dict) -> bytes:
    """Bars of fulfilment and average score with their intervals."""
    names = [name for name in METHODS if name in result["methods"]]
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.6 + 0.32 * len(names)), layout="constrained", sharey=True)
    for axis, key, title in zip(axes, ("fulfilment", "score"), ("Fulfilment", "Average score of the fulfilled")):
        for y, name in enumerate(names):
            row = result["methods"][name]
            if row[key] is not None:
                low, high = row[f"{key}_interval"]
                axis.barh(y, row[key], color=COLOURS[name])
                axis.errorbar(row[key], y, xerr=[[row[key] - low], [high - row[key]]], color="black", capsize=3)
                axis.text(high + 0.02, y, f"{row[key]:.2f}", va="center")
        axis.set(title=title, xlim=(0, 1.1), yticks=range(len(names)), yticklabels=[SHORT[name] for name in names], ylim=(len(names) - 0.4, -0.6))
    return png(figure)


def curves_figure(rows: list[dict]) -> bytes:
    """Reward, losses and the health of training over the steps of RLDTF."""
    tried = sorted({name for row in rows for name in row if name.startswith("validation/pass@")})
    panels = (("reward", ("reward", "reward_p10", "reward_p90", "validation/reward")), ("fulfilled", ("fulfilled", "failed", *tried)),
              ("losses (Eq. 6, 7)", ("policy_loss", "value_loss")), ("KL, nats a token", ("kl", "surprisal/think", "surprisal/answer")),
              ("token weights", ("weight/mean", "weight/effective_sample_size", "weight/over_threshold")),
              ("twin, per step", ("twin/sequences", "twin/distinct", "twin/simulated")))
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.6), layout="constrained")
    for axis, (title, names) in zip(axes.flat, panels):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                axis.plot(*zip(*points), label=name if "validation" in name else name.rpartition("/")[2], linewidth=1)
        axis.set(title=title, xlabel="step")
        if axis.lines:
            axis.legend(fontsize=7)
    axes.flat[-1].set_yscale("symlog")
    return png(figure)


def losses_figure(run: Run) -> bytes:
    """The loss of every stage that trained."""
    stages_run = [("instruct", run.path("instruct"))] + [
        (os.path.basename(path), path) for path in sorted(glob.glob(run.path("reject", "round_*")))]
    stages_run.append(("rldtf", run.path("rldtf")))
    figure, axes = plt.subplots(1, len(stages_run), figsize=(2.8 * len(stages_run), 2.6), layout="constrained")
    for axis, (title, directory) in zip(np.atleast_1d(axes), stages_run):
        points = [(row["step"], row["loss"]) for row in metrics.read(directory) if row.get("loss") is not None]
        if points:
            axis.plot(*zip(*points), linewidth=1)
        axis.set(title=title, xlabel="step")
    return png(figure)


def shaded_html(response: dict) -> str:
    """One response, each token shaded by its weight."""
    top = max((token["w"] for token in response["tokens"]), default=1.0)
    spans = "".join(
        f"<span style='background: rgba(217, 95, 2, {(token['w'] - 1) / max(top - 1, 1e-9) * 0.7:.2f})' "
        f"title='S = {token['S']:.3f}, w = {token['w']:.2f}'>{html.escape(token['text'])}</span>"
        for token in response["tokens"])
    verdict = "fulfilled" if response["fulfilled"] else "not fulfilled"
    return (f"<div class='response'><div class='prompt'>{html.escape(response['prompt'])}</div>"
            f"<div class='tokens'>{spans}</div><div class='note'>R = {response['reward']:.3f}, {verdict}</div></div>")


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
    command(main)
