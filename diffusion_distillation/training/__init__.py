"""Training: the state, the pure step, its spread over devices, checkpoints, the loop, and the ladder of halvings."""
