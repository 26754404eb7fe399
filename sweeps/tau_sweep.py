"""Sweep the temperature of grounding: `python sweeps/tau_sweep.py [--space ...] [--seeds N] [--any.setting VALUE]`.

The temperature changes the scale of the loss, so recall compares the trials. Without `--config` they are runs of the
demo with a third of its epochs, which is enough to tell temperatures apart.
"""

import sys

from groundray.sweep import Defaults, main

if __name__ == "__main__":
    sys.exit(
        main(
            defaults=Defaults(
                description="Sweep the temperature of grounding.",
                space=("grounding.temperature=choice:0.03,0.1,0.3,1.0",),
                metric="grounding/text_to_image/recall@10",
                name="tau",
                settings=(
                    *("--visual.epochs=2", "--visual.optimizer.halve_every=1"),
                    *("--language.epochs=1", "--grounding.epochs=4", "--grounding.optimizer.halve_every=2"),
                ),
            )
        )
    )
