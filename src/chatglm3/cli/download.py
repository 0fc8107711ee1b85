"""x"""
def command() -> None:
    """Hello download."""
