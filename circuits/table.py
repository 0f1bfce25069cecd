"""Writes the table of studies into README.md beside this file, from what their folders hold: `python circuits/table.py`"""

import re
from pathlib import Path

from workbench.studies.table import table

HERE = Path(__file__).parent

if __name__ == "__main__":
    readme = HERE / "README.md"
    text, rows = readme.read_text(encoding="utf-8"), table(HERE)
    readme.write_text(
        re.sub(r"(?:^\|.*\n)+", lambda _: rows, text, count=1, flags=re.MULTILINE), encoding="utf-8"
    )
