"""Batches: many prompts in a file become many answers in a file, on this machine or as a job on a Ray cluster."""
