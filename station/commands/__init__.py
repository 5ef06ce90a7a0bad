"""One module a command; station/cli.py lists them."""
