"""Sweep the temperature of grounding: `python sweeps/tau_sweep.py [--space ...] [--seeds N] [--any.setting VALUE]`.

Temperatures change the scale of the loss, so trials are compared by how well images are found. Without `--config` they
are the demo's runs with half its epochs: enough to tell temperatures apart.
"""

import sys

from groundray.sweep import main

if __name__ == "__main__":
    sys.exit(
        main(
            about="Sweep the temperature of grounding.",
            space=["grounding.temperature=choice:0.03,0.1,0.3,1.0"],
            metric="grounding/text_to_image/recall@10",
            name="tau",
            short=[
                *("--visual.epochs=3", "--visual.optimizer.halve_every=2"),
                *("--language.epochs=1", "--grounding.epochs=6", "--grounding.optimizer.halve_every=3"),
            ],
        )
    )
