"""``python -m opnp``: the command line."""

from opnp.cli import main

if __name__ == "__main__":
    main()
