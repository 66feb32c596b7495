"""``python -m bridle`` is the command ``bridle``."""

from bridle.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
