"""Sweep the weights of the relational losses, and their temperature: `python sweeps/loss_weight_sweep.py [...]`.

The predicate's weight stays 1: only the weights' ratios matter to Adam.
"""

import sys

from groundray.sweep import main

if __name__ == "__main__":
    sys.exit(
        main(
            about="Sweep the weights of the relational losses, and their temperature.",
            space=[
                "relational.weights.pair=loguniform:0.1:10",
                "relational.weights.object=loguniform:0.1:10",
                "relational.temperature=loguniform:0.1:3",
            ],
            metric="relational/predicate/top1",
            name="loss-weights",
        )
    )
