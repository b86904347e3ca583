"""The offline world: grids of handwritten digits, questions of 0 to 8 steps, and the true chains of thought."""
