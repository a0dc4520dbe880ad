"""Pure tensor maths, and the only place where a loss is normalised."""
