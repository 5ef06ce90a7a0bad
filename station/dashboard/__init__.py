"""The operator's page, ``station dashboard``: a subscriber of the broker that shows all its stations in a browser.

``intake`` reads messages, ``fleet`` is what is known of the stations now, ``archive`` what is kept of their alerts,
``feed`` ties them to the broker; ``app`` serves them, with ``access`` deciding who may what and ``static`` being
the page itself. Starlette and its like come with the extra ``dashboard`` and are imported by ``app``, ``access`` and
``server`` only.
"""


class DashboardError(Exception):
    """The dashboard cannot work; the message says why and what to do."""
