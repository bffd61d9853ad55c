"""Reinforcement learning from digital twin feedback, in JAX."""
