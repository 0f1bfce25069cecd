"""`python -m workbench.cli` is the `workbench` command."""

from workbench.cli.app import main

if __name__ == "__main__":
    main()
