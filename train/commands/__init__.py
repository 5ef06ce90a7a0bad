"""The commands of ``station-train``, one module each."""
