"""Write every README and the table in `README.md` from the `study.json`s: `python circuits/table.py`"""

import re
from pathlib import Path

from workbench.studies.evidence import FILE, Evidence
from workbench.studies.readme import page
from workbench.studies.table import studies, table

CIRCUITS = Path(__file__).parent


def main() -> None:
    for folder in studies(CIRCUITS):
        (folder / "README.md").write_text(page(Evidence.load(folder / FILE)), encoding="utf-8")
    readme, rows = CIRCUITS / "README.md", table(CIRCUITS)
    text = readme.read_text(encoding="utf-8")
    # The first table of the page is the one of the studies.
    text = re.sub(r"(?:^\|.*\n)+", lambda _: rows, text, count=1, flags=re.MULTILINE)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
