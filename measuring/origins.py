"""Where the schedules of a collection come from: which proposal each candidate's number stands for.

A program's candidates are numbered, and a number means the same whenever it is asked: a collection that was stopped goes on with the same
set. Of the origins that are wanted, Adams2019's own choice comes first. The autoschedulers with one choice each and the author's schedule
follow. The rest is Adams2019 with noise, and mutations, as PATTERN says.
"""

from halide_tools.autoschedulers import OtherAutoscheduler, Proposal
from halide_tools.mutations import Mutated
from measuring.candidate import HandWritten

MANY = {"adams2019": Proposal, "mutated": Mutated}  # origins with as many proposals as one likes
ONE = {"mullapudi2016": OtherAutoscheduler("Mullapudi2016"), "li2018": OtherAutoscheduler("Li2018"), "hand_written": HandWritten()}
ORIGINS = (*MANY, *ONE)
# Of what is proposed. Mutations fail twice as often as Adams2019's own proposals: about as many of both are measured.
PATTERN = ("mutated", "mutated", "adams2019", "mutated", "adams2019")


def parse_origins(text):
    """The origins in "adams2019,mutated", in the order of ORIGINS. Raises ValueError, in one line, for an unknown one, and for none."""
    names = {name.strip().lower() for name in text.split(",") if name.strip()}
    if unknown := sorted(names - set(ORIGINS)):
        raise ValueError(f"no origin is named {unknown[0]!r}; there are {', '.join(ORIGINS)}")
    if not names:
        raise ValueError(f"give at least one of {', '.join(ORIGINS)}")
    return tuple(name for name in ORIGINS if name in names)


def proposal(origins, spec, number):
    """The proposal of a candidate's number; None where these origins have no more. Random programs have no author's schedule."""
    ones = [name for name in ONE if name in origins and (spec.path or name != "hand_written")]
    pattern = [name for name in PATTERN if name in origins]
    if "adams2019" in origins:
        ones.insert(0, "adams2019")
    if number >= len(ones) and not pattern:
        return None
    name = ones[number] if number < len(ones) else pattern[(number - len(ones)) % len(pattern)]
    return MANY[name].draw(spec.seed, number) if name in MANY else ONE[name]
