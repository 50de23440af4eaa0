"""Draw docs/images/*.svg from the newest result lines in benchmarks/work/results.jsonl.

    python -m benchmarks.plots

Needs matplotlib (extra "bench").
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.checkpoints.prepared import WORK

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    newest: dict[tuple[str, str, str], dict[str, Any]] = {}
    for line in (WORK / "results.jsonl").read_text("utf-8").splitlines():
        result = json.loads(line)
        newest[result["benchmark"], result.get("model", ""), result.get("dtype", "")] = result
    IMAGES.mkdir(exist_ok=True)
    plt.rcParams |= {
        "svg.hashsalt": "dalle-server",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    if step := newest.get(("decode_step", "mini", "int8")):
        save("decode_step", decode_step(step))
    if peer := newest.get(("peer_min_dalle", "mini", "")):
        save("peer_min_dalle", seconds_a_picture(peer))
    if load := newest.get(("load", "mini", "int8")):
        save("throughput", images_a_second(load))
        save("latency", latency_under_load(load))


def decode_step(result: dict[str, Any]) -> Figure:
    """ms per step over the number of images, above the time that reading the weights takes."""
    figure, axes = plt.subplots(figsize=(5, 3))
    rows = result["results"]
    images = [row["num_images"] for row in rows]
    axes.plot(images, [row["step_ms"] for row in rows], "o-", label="decode step")
    axes.plot(images, [row["limit_ms"] for row in rows], "s--", color="grey", label="reading the weights once")
    axes.set(xlabel="images in a step", ylabel="ms", ylim=(0, None), xticks=images, title="Mini, int8, 2 cores")
    axes.legend(frameon=False)
    return figure


def seconds_a_picture(result: dict[str, Any]) -> Figure:
    """Seconds per picture of every contestant, text to pixels."""
    figure, axes = plt.subplots(figsize=(5, 3))
    names = list(result["results"][0]["contestants"])
    width = 0.8 / len(result["results"])
    for n, race in enumerate(result["results"]):
        seconds = [race["contestants"][name]["s_per_picture"] for name in names]
        places = [place + n * width for place in range(len(names))]
        bars = axes.barh(places, seconds, width * 0.9, label=f"{race['num_images']} at a time")
        axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_yticks([place + 0.4 - width / 2 for place in range(len(names))], names)
    axes.set(xlabel="seconds a picture, text to pixels", title="Mini's shape, 2 cores")
    axes.legend(frameon=False)
    return figure


def images_a_second(result: dict[str, Any]) -> Figure:
    """Throughput over the number of clients that ask again at once."""
    figure, axes = plt.subplots(figsize=(5, 3))
    rows = result["closed"]
    clients = [row["clients"] for row in rows]
    axes.plot(clients, [row["images_per_s"] for row in rows], "o-")
    axes.set(xlabel="clients at once", ylabel="images/s", ylim=(0, None), xticks=clients, title="Mini, int8, 2 cores")
    return figure


def latency_under_load(result: dict[str, Any]) -> Figure:
    """Percentiles of the seconds from a request's arrival to its pixels, over the load of Poisson arrivals."""
    figure, axes = plt.subplots(figsize=(5, 3))
    rows = result["poisson"]
    shares = [100 * row["share"] for row in rows]
    for name, style in (("p99_s", "^:"), ("p90_s", "s--"), ("p50_s", "o-")):
        axes.plot(shares, [row[name] for row in rows], style, label=name.removesuffix("_s"))
    axes.set(xlabel="arrivals, % of the most images/s", ylabel="s", ylim=(0, None), xticks=shares)
    axes.set_title("Mini, int8, 2 cores, Poisson arrivals")
    axes.legend(frameon=False)
    return figure


def save(name: str, figure: Figure) -> None:
    figure.tight_layout()
    figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None})
    print(IMAGES / f"{name}.svg")


if __name__ == "__main__":
    main()
