"""Runs the command: `python -m interlock_cli`, the same as `interlock`."""

from interlock_cli.main import main

if __name__ == "__main__":
    main()
