"""Training: the state, the pure step, its placement on devices, the loop, and ladders of students."""
