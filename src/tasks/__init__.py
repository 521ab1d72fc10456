"""What the program can learn: a task each, with its training items, loss, scores and validation."""
