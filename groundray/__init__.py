"""Train, sweep and understand visually grounded language models on Ray."""
