"""x"""
def command() -> None:
    """Hello doctor."""
