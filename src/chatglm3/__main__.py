"""`python -m chatglm3` is the command `chatglm3`."""

from chatglm3.cli import main

if __name__ == "__main__":
    main()
