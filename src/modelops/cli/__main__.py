"""`python -m modelops.cli`."""

from modelops.cli.common import main

if __name__ == "__main__":
    main(prog_name="modelops")
