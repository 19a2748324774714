"""Losses as pure functions of tensors; the methods give them weights and targets."""
