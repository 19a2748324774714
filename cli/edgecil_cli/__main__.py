"""``python -m edgecil_cli``."""

from edgecil_cli.app import main

if __name__ == "__main__":
    main()
