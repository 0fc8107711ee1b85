"""x"""
def command() -> None:
    """Hello info."""
