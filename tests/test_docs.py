"""Pages that are made from the code are up to date."""

import runpy

from tests.support.station_process import REPOSITORY


def test_settings_page_is_what_make_docs_writes():
    page = runpy.run_path(str(REPOSITORY / "docs" / "make_settings.py"))["page"]
    assert (REPOSITORY / "docs" / "settings.md").read_text() == page(), "run `make docs`"
