"""Findings as people read them."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from interlock_cli.doctor.finding import Finding


def print_findings(findings: Sequence[Finding]) -> None:
    """Print one line per finding, with the fix below what is wrong."""
    console = Console(soft_wrap=True)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = ("ok   ", "green") if finding.good else ("wrong", "bold red")
        console.print(Text.assemble(mark, f"  {finding.name:<{width}}  {finding.detail}"))
        if not finding.good:
            console.print(Text(f"       {'':<{width}}  fix: {finding.fix}"))
    wrong = sum(not finding.good for finding in findings)
    console.print(Text(f"\n{wrong} of {len(findings)} need a fix" if wrong else f"\nall {len(findings)} are good"))
