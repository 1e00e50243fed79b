"""Users find every reason of a reject in docs/operations.md, and none that cannot occur."""

import re

from pipeline.rejects import Reason
from tests.support.jobs import REPOSITORY


def test_the_documentation_lists_every_reason_and_no_other() -> None:
    text = (REPOSITORY / "docs" / "operations.md").read_text()
    section = text.split("## Reasons of rejects\n")[1].split("\n## ")[0]
    first_cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    documented = [reason for cell in first_cells for reason in re.findall(r"`(\w+)`", cell)]
    assert sorted(documented) == sorted(Reason)
