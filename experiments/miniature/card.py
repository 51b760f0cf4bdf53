"""Tables and figures of the model card."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import binomtest, spearmanr

from experiments.miniature.instrument import MERGES, STRENGTHS, Numbers, joint, pairs_needed, saturated
from mergelab import miniature
from mergelab.miniature.world import STYLES, SUBJECTS

matplotlib.use("Agg")
SHEETS = miniature.WEIGHTS.parent / "sheets"
SHOWN = tuple(map(str, STRENGTHS))


def table(head: str, rows: list[list[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    columns = head.split("|")
    return [
        f"| {' | '.join(column.strip() for column in columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def percent(values: list[float]) -> str:
    """The mean of shares."""
    return f"{np.mean(values):.0%}"


def pipeline(name: str, numbers: Numbers) -> str:
    """Base model, adapters, stacks and resolution of one pipeline, as a section of the model card."""
    lines = [f"### {name}", "", "200 prompts of held-out combinations:", ""]
    lines += table("model | object | color | background", [
        [label, *(f"{share:.1%}" for share in row.values())] for label, row in numbers["base"].items()
    ])  # fmt: skip
    lines += [*_adapters(numbers["doses"]), f"![Dose curves](sheets/{name}-doses.png)", ""]
    lines += _stacks(numbers) + _resolution(numbers) + _cosines(numbers["cosines"]["pairs"])
    return "\n".join(lines).strip()


def _adapters(doses: Numbers) -> list[str]:
    """Called and not, over strengths."""
    rows = []
    for name, by in doses.items():
        if name in miniature.STRENGTHS:
            continue
        base = by["0.0"]["accuracy"]
        left = {s: min(by[s]["accuracy"][key] / base[key] for key in base) for s in ("0.7", "1.0", "1.3")}
        rows.append([
            name, *(percent(by[s]["shown"]) for s in SHOWN),
            *(percent(by[s]["uncalled"]) for s in ("1.0", "1.3")), *(f"{left[s]:.0%}" for s in left),
            " ".join(f"{np.mean(by[s]['nearness']):.2f}" for s in ("0.0", "0.4", "0.7", "1.0", "1.3")),
        ])  # fmt: skip
    head = " | ".join(f"shown at {s}" for s in SHOWN)
    kept = " | ".join(f"kept at {s}" for s in ("0.7", "1.0", "1.3"))
    of_another = ", ".join(f"{name} {percent(doses[name]['1.0']['shown'])}" for name in miniature.STRENGTHS)
    intro = (
        f"Adapters alone, {len(doses['ghost']['1.0']['shown'])} images at each strength (those of another strength, at "
        f"their right one: {of_another}). Uncalled: share of images on prompts that do not call it that show it. Kept: "
        "accuracy there relative to the base model's, the lowest of shape, colour and ground. Nearness: the mean at "
        "strengths 0, 0.4, 0.7, 1 and 1.3."
    )
    return [intro, "", *table(f"adapter | {head} | uncalled at 1 | uncalled at 1.3 | {kept} | nearness", rows)]


def _stacks(numbers: Numbers) -> list[str]:
    """Share of images with both, for each pair, with the interval of Clopper and Pearson."""
    found = {}
    for pair, part in numbers["stacks"].items():
        shown = np.array(part["stack"]["subject"]["shown"]) * np.array(part["stack"]["style"]["shown"])
        interval = binomtest(int(shown.sum()), len(shown)).proportion_ci()
        found[tuple(pair.split(" + "))] = (shown.mean(), interval.low, interval.high)
    rows = [
        [subject, *(f"{found[subject, style][0]:.0%} [{found[subject, style][1] * 100:.0f}, "
                    f"{found[subject, style][2] * 100:.0f}]" for style in STYLES)]
        for subject in SUBJECTS
    ]  # fmt: skip
    most = sum(share >= 0.6 for share, *_ in found.values())
    count = len(next(iter(numbers["stacks"].values()))["stack"]["subject"]["shown"])
    judged, near = zip(*(joint(part["stack"], numbers["doses"], tuple(pair.split(" + ")))
                         for pair, part in numbers["stacks"].items()))  # fmt: skip
    judged, near = torch.cat(judged), torch.cat(near)
    return [
        f"Unmerged stacks at weights 1: share of {count} images that show both, with 95 % intervals; prompts and seeds "
        f"took no part in any choice. {most} of {len(found)} pairs show both in at least 60 %, "
        f"{sum(share < 0.3 for share, *_ in found.values())} in less than 30 %; mean "
        f"{np.mean([share for share, *_ in found.values()]):.0%}.",
        "",
        *table("subject | " + " | ".join(STYLES), rows),
        f"Of these {len(judged)} images {saturated(judged):.0%} are saturated (below .05 or above .95) by the "
        f"product of the judge's probabilities, {saturated(near):.0%} by the lesser nearness of the two "
        f"(0 the base model, 1 the adapter alone); the two agree with Spearman "
        f"{spearmanr(judged, near).statistic:.2f}.",
        "",
    ]


def _resolution(numbers: Numbers) -> list[str]:
    """How far merges are apart, how much that varies between pairs, and the pairs that it takes to see it."""
    rows = []
    for first, second in combinations(MERGES, 2):
        for label, pick in (("judge", 0), ("nearness", 1)):
            means = np.array([
                [joint(part[merge], numbers["doses"], tuple(pair.split(" + ")))[pick].mean().item()
                 for merge in (first, second)]
                for pair, part in numbers["stacks"].items()
            ])  # fmt: skip
            difference = means[:, 0] - means[:, 1]
            deviation = float(difference.std(ddof=1))
            rows.append([
                f"{first} - {second}", label, f"{difference.mean():+.3f} +- {deviation / len(means) ** 0.5:.3f}",
                f"{deviation:.3f}", *(str(pairs_needed(deviation, size)) for size in (0.05, 0.10)),
                f"{2.8 * deviation / len(means) ** 0.5:.3f}",
            ])  # fmt: skip
    images = len(next(iter(numbers["stacks"].values()))["svd 16"]["subject"]["shown"])
    return [
        f"Resolution, from merges of {len(numbers['stacks'])} pairs, {images} images each, each of its own prompt: "
        "the paired difference of two merges and its standard error, its standard deviation between pairs, the pairs "
        "by which 5 and 10 points are told from zero (power .8, two-sided .05), and what all pairs can tell.",
        "",
        *table("merges | score | difference | deviation | pairs for .05 | pairs for .10 | all pairs tell", rows),
    ]


def _cosines(pairs: list[Numbers]) -> list[str]:
    """Which adapters share directions."""

    def kind(name: str) -> str:
        return "subject" if name in SUBJECTS else "style" if name in STYLES else name

    groups: dict[str, list[float]] = {}
    for row in pairs:
        groups.setdefault(" and ".join(sorted((kind(row["first"]), kind(row["second"])))), []).append(row["cosine"])
    largest = sorted(pairs, key=lambda row: -abs(row["cosine"]))[:12]
    listed = ", ".join(f"{row['first']} and {row['second']} {row['cosine']:+.2f}" for row in largest)
    spread = "; ".join(
        f"{label} {np.mean(np.abs(values)):.3f} (up to {np.max(np.abs(values)):.3f})"
        for label, values in groups.items()
    )
    return [f"Cosines between the adapters' changes, mean of the absolute values: {spread}. The largest: {listed}."]


def curves(name: str, doses: Numbers) -> None:
    """The figure of the dose curves: probability and nearness over strength, subjects and styles."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    strengths = [0.0, *STRENGTHS]
    colors = matplotlib.colormaps["tab10"]
    picks: list[tuple[str, Callable[[Numbers], float]]] = [
        ("mean probability by the judge", lambda by: np.mean(by["probability"])),
        ("mean nearness", lambda by: np.mean(by["nearness"])),
    ]
    for column, names in enumerate((SUBJECTS, STYLES)):
        for row, (label, pick) in enumerate(picks):
            for place, adapter in enumerate(names):
                values = [pick(doses[adapter][str(strength)]) for strength in strengths]
                panels[row, column].plot(strengths, values, ".-", color=colors(place), label=adapter, linewidth=1.2)
            panels[row, column].grid(alpha=0.3)
            panels[row, column].set_ylabel(label if column == 0 else "")
        panels[0, column].set_title(("subjects", "styles")[column])
        panels[1, column].legend(fontsize=7, ncols=2)
        panels[1, column].set_xlabel("strength")
    figure.suptitle(f"{name}: effect of each adapter alone over its strength, on prompts that call it")
    SHEETS.mkdir(exist_ok=True)
    figure.savefig(SHEETS / f"{name}-doses.png", dpi=90)


def metrics(found: dict[str, float]) -> str:
    """The figures of the metrics, as a section of the model card."""
    lines = ["### Judge, autoencoder, CLIP and LPIPS, on drawn images", "", "| | |", "|---|---|"]
    return "\n".join(lines + [f"| {key} | {value:.3f} |" for key, value in found.items()])
