"""Push what a run has learnt to the hub: model, processor or tokenizer, card and adapter.

    python -m d2v.push runs/asr_ctc someone/my-model
    python -m d2v.push runs/asr_ctc/best someone/my-model --private

The token is the one that `hf auth login` or the environment variable HF_TOKEN gives.
"""

import argparse

from d2v.cli import exit_with, given_path
from d2v.errors import InputError
from d2v.pretrained import push_folder


def command_line() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=given_path, metavar="RUN", help="folder of a run, or of a model")
    parser.add_argument("repo", metavar="REPO", help="hub id to push to, created if need be")
    parser.add_argument("--private", action="store_true", help="create a repository that others do not see")
    return parser


def main(args: list[str] | None = None) -> None:
    """Run the command."""
    options = command_line().parse_args(args)
    best = options.run / "best"
    try:
        address = push_folder(best if best.is_dir() else options.run, options.repo, private=options.private)
    except InputError as error:
        exit_with(2, f"error: {error}")
    print(address)


if __name__ == "__main__":
    main()
