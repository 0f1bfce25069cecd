"""Thousands of ablations, patches and discoveries as one resumable piece of work."""
