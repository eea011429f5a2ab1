"""What `alignkit generate` says about decoders on the command line, held against what they take before torch is loaded.

Light on purpose: a misspelled name is answered at once.
"""

import argparse
from typing import Any

from alignkit.errors import AlignkitError
from alignkit.settings import did_you_mean

# option of the command line -> the setting, by decoder
SETTINGS = {
    "mcts": (
        *("simulations", "children", "exploration", "value", "backup", "visit_temperature", "policy_share"),
        *("leaves_per_wave", "rollout_temperature"),
    ),
    "resample": ("alpha", "reward_as"),
    "das": ("beams", "candidates", "alpha", "reward_as", "policy_share", "sample"),
}
SEARCHES = ("mcts", "das")
OF_SAMPLES = ("best_of_n", "resample")  # choose among n samples
DECODERS = ("sample", *OF_SAMPLES, *SEARCHES)


def check_decoder(args: argparse.Namespace) -> None:
    """Hold the decoder's name, and what it needs, against the rest of the command line.

    Raises:
        AlignkitError: there is no such decoder, it needs a reward, or an option is another decoder's.
    """
    if args.decoder not in DECODERS:
        raise AlignkitError(f"there is no decoder {args.decoder!r}{did_you_mean(args.decoder, DECODERS)}")
    if args.decoder not in OF_SAMPLES and args.n is not None:
        homes = " and ".join(OF_SAMPLES)
        raise AlignkitError(f"--n {args.n} is for --decoder {homes}; several samples of each prompt are --count")
    if args.n is not None and args.n < 1:
        raise AlignkitError(f"--n is a whole number of 1 or more, got {args.n}")
    if args.decoder != "sample" and not args.reward:
        raise AlignkitError(f"--decoder {args.decoder} chooses by a reward; name one with --reward")
    if args.decoder in OF_SAMPLES and args.temperature == 0:
        raise AlignkitError(f"--decoder {args.decoder} samples, and --temperature 0 does not; take one above 0")
    least = {"count": 1, "max_new_tokens": 1, "batch_size": 1, "temperature": 0}
    asked = {name: getattr(args, name) for name in least if getattr(args, name) is not None}
    if low := [name for name, value in asked.items() if value < least[name]]:
        said = (f"--{n.replace('_', '-')} is at least {least[n]}, got {getattr(args, n):g}" for n in low)
        raise AlignkitError("; ".join(said))
    if args.decoder == "sample" and args.temperature == 0 and args.count > 1:
        raise AlignkitError(
            f"--count {args.count}: --temperature 0 takes the likeliest token and would write the same text "
            f"{args.count} times; take a temperature above 0"
        )
    given = search_settings(args)
    drawn = {"visit_temperature", "policy_share", "rollout_temperature", "sample"} & set(given)
    if args.decoder in SEARCHES and args.count > 1 and not drawn:
        how = "--visit-temperature 1" if args.decoder == "mcts" else "--sample"
        raise AlignkitError(
            f"--count {args.count}: --decoder {args.decoder} takes the best token and would find the same text "
            f"{args.count} times; let it draw with {how}"
        )


def search_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the decoder that the command line names, those that were given.

    Raises:
        AlignkitError: one of another decoder.
    """
    given = {name: getattr(args, name) for names in SETTINGS.values() for name in names if hasattr(args, name)}
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    own = SETTINGS.get(args.decoder, ())
    foreign = sorted(set(given) - set(own))
    if foreign:
        homes = [decoder for decoder, names in SETTINGS.items() if foreign[0] in names]
        raise AlignkitError(
            f"--{foreign[0].replace('_', '-')} is for --decoder {' and '.join(homes)}, not for {args.decoder}"
        )
    return given
