"""x"""
def command() -> None:
    """Hello complete."""
