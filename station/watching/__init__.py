"""``station watch``: what stations say, for a terminal.

``sight`` is what is known, fed by messages; ``screen`` draws it, with ``drawing`` and ``words``; ``terminal`` is
keyboard and screen; ``lines`` prints message by message where there is no terminal. ``station/commands/watch.py`` ties
them to the broker.
"""
