"""`python -m scf` is `scf`."""

from scf.cli.main import main

if __name__ == "__main__":
    main()
