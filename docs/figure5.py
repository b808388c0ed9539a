"""Draws the loss of runs over their steps and over time, as figure 5 of the paper does.

python docs/figure5.py docs/figure5.png "whole images=RUN" "50 % of the cells=RUN" …
"""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

SMOOTH = 0.8


def main() -> None:
    """Draws."""
    file, *runs = sys.argv[1:]
    figure = Figure(figsize=(8, 3), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for run in runs:
        name, _, workdir = run.partition("=")
        lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
        records = [record for line in lines if "loss" in (record := json.loads(line))]
        smooth, losses = records[0]["loss"], []
        for record in records:
            smooth = SMOOTH * smooth + (1 - SMOOTH) * record["loss"]
            losses.append(smooth)
        # From the first record on: the time before it is compiling.
        start = records[0]["wall_time"]
        minutes = [(record["wall_time"] - start) / 60 for record in records]
        steps = [record["step"] for record in records]
        print(f"{name}: {losses[-1]:.3f} after {steps[-1]} steps, {minutes[-1]:.1f} minutes")
        for panel, along in zip(panels, (steps, minutes), strict=True):
            panel.plot(along, losses, label=name)
    panels[0].set(xlabel="step", ylabel="loss for each pixel, smoothed")
    panels[1].set(xlabel="minutes")
    panels[1].legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
