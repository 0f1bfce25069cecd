"""Whole jobs behind one call and one command: models, prompts and measurements in, files and a page out.

A module for each command: `discover` (with its `discover_page` and `discovery_run`), `effects`, `evaluate`,
`bench`, `probe`, `runs` (with `run_files`, `run_contents` and `run_difference`) and `sweep`; no command needs
another's. They put together what the folders above measure and draw, and know nothing of options: that is
`cli`. Begin with `discover.py`.
"""
