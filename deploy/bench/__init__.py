"""Measuring: a made-up load, served by this engine and, for comparison, by mlx-lm."""
