"""Errors, by who must act. Each message says what was expected, what came, where, and what to do."""


class EmbedtrainError(Exception):
    """The root of every error a user can cause or must know of. The command line prints it without a traceback."""


class ConfigError(EmbedtrainError):
    """The configuration asks for something that cannot be had: change a key. Names the key as the user wrote it."""


class DataError(EmbedtrainError):
    """A file, row or column is not as it must be: change the data. Names file, row and key."""


class CheckpointError(EmbedtrainError):
    """A checkpoint or model folder is incomplete, foreign or cannot be written: pick another or free the disk."""


class TrainingError(EmbedtrainError):
    """Training cannot go on with a meaningful result: a non-finite loss, an attention that is not as configured."""


class MissingModelError(ConfigError, CheckpointError):
    """A model is nowhere to be read: no folder, and no hub that gives it. A plan goes on without it."""
