"""`python -m tests.fuzz campaign --cases N --seed S` and `python -m tests.fuzz replay SEED…`."""

import argparse
import sys
from pathlib import Path

from tests.fuzz.corpus import corpus
from tests.fuzz.runner import ROOT, judge, work

CORPUS = ROOT / "build" / "fuzz" / "corpus"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    commands = parser.add_subparsers(dest="command", required=True)
    campaign = commands.add_parser("campaign", help="judge many cases, write docs/results/fuzz.json and its page")
    campaign.add_argument("--cases", type=int, default=600)
    campaign.add_argument("--seed", type=int, default=1)
    campaign.add_argument("--minutes", type=float, default=40.0)
    replay = commands.add_parser("replay", help="judge single cases again; their folders are kept")
    replay.add_argument("seeds", type=int, nargs="+")
    replay.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz" / "replay")
    worker = commands.add_parser("work", help="judge the seeds that come on standard input")
    worker.add_argument("corpus", type=Path)
    worker.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "work":
        work(arguments.corpus, arguments.folder)
        return 0
    if arguments.command == "campaign":
        from tests.fuzz.campaign import run_campaign

        return run_campaign(corpus(CORPUS), arguments.cases, arguments.seed, arguments.minutes)
    failed = False
    for seed in arguments.seeds:
        judged = judge(seed, corpus(CORPUS), arguments.out, keep=True)
        verdict = judged.verdict
        failed |= verdict.failed
        print(f"{seed} {judged.subject}/{judged.mutator} of {judged.source}: {verdict.outcome} {verdict.error}")
        print(f"  {verdict.seconds:.2f} s, {verdict.peak_mb} MB\n  {verdict.detail}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
