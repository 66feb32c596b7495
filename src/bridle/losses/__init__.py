"""Losses: pure functions of tensors. Each returns a sum over items; the loop divides by the number of items on all ranks."""
