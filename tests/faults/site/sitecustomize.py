"""Read by every Python process of a run whose tests want it killed: Python imports this name at its start."""

import os

if "GROUNDRAY_SABOTAGE" in os.environ:
    import sabotage

    sabotage.arm(os.environ["GROUNDRAY_SABOTAGE"])
