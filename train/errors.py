"""What a user of ``station-train`` can cause and mend, besides engines.errors; free of torch, as settings are."""


class DataError(Exception):
    """The training images cannot be used; the message names the files and the way out."""


class CheckpointError(Exception):
    """The run's folder or checkpoint cannot be used; the message says what to do."""


class DivergedError(Exception):
    """Training produced NaN or the critic ran away; the last good checkpoint is kept."""
