"""x"""
def command() -> None:
    """Hello chat."""
