"""Sweep the weights of the relational losses and their temperature: `python sweeps/loss_weight_sweep.py [...]`.

The predicate's weight stays 1: with Adam only the ratios of the weights matter.
"""

import sys

from groundray.sweep import Defaults, main

if __name__ == "__main__":
    sys.exit(
        main(
            defaults=Defaults(
                description="Sweep the weights of the relational losses and their temperature.",
                space=(
                    "relational.weights.pair=loguniform:0.1:10",
                    "relational.weights.object=loguniform:0.1:10",
                    "relational.temperature=loguniform:0.1:3",
                ),
                metric="relational/predicate/top1",
                name="loss-weights",
            )
        )
    )
