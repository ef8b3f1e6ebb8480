"""One target of `fuzz.py`, guided by coverage: `python -m tests.proof.fuzz_guided TARGET -atheris_runs=1000000 CORPUS`.

libFuzzer drives, and never returns: it ends the process, with an error when something was raised that is no answer.
"""

import sys

import atheris

# Before anything of ours is imported: only what is imported inside tells which of its lines have run.
with atheris.instrument_imports(include=["services"]):
    from tests.proof.fuzz import ask, targets


def _main(name: str, options: list[str]) -> None:
    target = targets()[name]

    def one(body: bytes) -> None:
        ask(target, body)

    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
