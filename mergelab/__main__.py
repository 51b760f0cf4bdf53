"""`python -m mergelab`."""

from mergelab.cli import main

if __name__ == "__main__":
    main()
