"""Sweeps: one study over models, tasks, values, metrics and seeds, kept in a folder and read back as a table."""
