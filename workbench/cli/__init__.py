"""The `workbench` command. Each file holds the commands of one subject; `app` puts them together, `options`
what they share.

Commands only translate: they read options, call one function of the package and print. The package is
imported inside the commands, because importing torch takes seconds and `workbench --help` must not.
`messages` puts errors into the words of the shell. Begin with `app.py`, then `circuits.py`.
"""
