"""Why a file cannot be read, in the few words that a sentence has room for."""


def reason(trouble: Exception) -> str:
    """What the system says, without the number and the name."""
    return (trouble.strerror if isinstance(trouble, OSError) else None) or str(trouble)
