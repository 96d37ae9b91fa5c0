"""`python -m batchray` is the command `batchray`."""

from batchray.cli.main import main

if __name__ == "__main__":
    main()
