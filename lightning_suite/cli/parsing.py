"""Options of a command from the signature and docstring of its function `run`.

`jsonargparse` reads types, defaults and help from there. Two habits of the shell are added to it:
``def run(files: list[str], *, force: bool = False)`` takes ``A B C --force``.
"""

from __future__ import annotations

import inspect
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from lightning_suite.cli.commands import COMMANDS
from lightning_suite.cli.messages import condense, constructor_errors
from lightning_suite.cli.option_words import refused_words, usage
from lightning_suite.cli.stacking import resolve_options
from lightning_suite.cli.yaml_depth import guard_yaml
from lightning_suite.errors import SuiteError, did_you_mean


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the line breaks of worked examples."""


def run_command(name: str, args: list[str]) -> int:
    """Parse ``args`` for the command ``name`` and run it.

    Returns:
        The exit status of the command.
    """
    if COMMANDS[name].takes_config:
        prepare_classes()
    module = COMMANDS[name].module(name)
    if hasattr(module, "VERBS"):
        return _run_verb(name, module, args)
    return _run(name, module.run, args)


def _run(name: str, run: Callable[..., int], args: list[str]) -> int:
    parser, words = command_parser(name, run), resolve_options(args)
    takes_any = getattr(sys.modules[run.__module__], "TAKES_ANY_WORDS", False)
    if words and takes_any and not {"-h", "--help"} & {*words}:
        words = ["--", *words]
    try:
        parsed = parser.parse_args(words)
    except ArgumentError as err:
        if _takes_config(name):
            from lightning_suite.cli.problems import explain  # noqa: PLC0415

            raise explain(words, parser, err) from err
        raise SuiteError(_refusal(words, parser, str(err))) from err
    for key in getattr(sys.modules[run.__module__], "IGNORED", ()):
        parsed[key] = None  # or every class that is named in there would be made
    config = instantiate(parser, parsed)
    for key in _described(run):
        config[key] = parsed[key]
    return run(**{key: config[key] for key in inspect.signature(run).parameters})


def _refusal(words: list[str], parser: ArgumentParser, refusal: str) -> str:
    """Return what to do about words that a parser refuses."""
    told = f"(see {parser.prog} --help)"
    if unknown := refused_words(words, parser):
        return f"{' '.join(unknown)} {told}"
    of_words = "required" in refusal or "nrecognized" in refusal
    expected = f". Expected: {usage(parser)}" if of_words else ""
    return f"{condense(refusal).rstrip('.')}{expected} {told}"


def command_parser(name: str, run: Callable[..., int]) -> ArgumentParser:
    """Build the parser of one command.

    Args:
        name: As the user types it.
        run: Its function: parameters without default are positional, ``bool = False`` is a flag,
            a ``list`` without default takes the words that are left, a ``tuple`` with the
            default ``()`` likewise if there are any, ``config`` is ``-c``, repeatable.
    """
    guard_yaml()
    doc = _parsed_doc(run)
    takes_config = _takes_config(name)
    examples = _examples(doc)
    parser = ArgumentParser(
        prog=f"lightning-suite {name}",
        description="\n\n".join(filter(None, (doc.short_description, doc.long_description))),
        epilog="\n".join(["Examples:", *_indented(examples)]) if examples else None,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    if takes_config:
        parser.add_argument(
            "-c", "--config", action="config", help="YAML with options; may be repeated."
        )
    helps = {param.arg_name: param.description or "" for param in doc.params}
    special: set[str | int] = set()
    lists: dict[str, type] = {}
    hints = get_type_hints(run)
    for key, parameter in inspect.signature(run).parameters.items():
        if hints[key] is bool and parameter.default is False:
            flag = f"--{key.replace('_', '-')}"
            parser.add_argument(flag, dest=key, action="store_true", help=helps.get(key))
        elif key == "config":
            parser.add_argument("-c", "--config", action="append", help=helps.get(key))
        elif get_origin(hints[key]) in (list, tuple) and parameter.default in (parameter.empty, ()):
            lists[key] = get_args(hints[key])[0]
        else:
            continue
        special.add(key)
    for key, base in _described(run).items():
        parser.add_subclass_arguments(
            base, key, instantiate=False, required=False, help=helps.get(key, "")
        )
        special.add(key)
    parser.add_function_arguments(run, as_group=False, as_positional=True, skip=special)
    for key, item in lists.items():  # behind the single words
        metavar = key.upper().removesuffix("S")
        few = "+" if get_origin(hints[key]) is list else "*"
        words = parser.add_argument(key, nargs=few, type=item, metavar=metavar, help=helps.get(key))
        if few == "*":  # in two ways, as jsonargparse's releases before and after 4.49 read it
            words.default, words.required = [], False
            getattr(parser, "required_args", set()).discard(key)
    return parser


def _run_verb(name: str, module: ModuleType, args: list[str]) -> int:
    """Run ``lightning-suite NAME VERB …``, each verb a function in ``module.VERBS``."""
    verbs: dict[str, Callable[..., int]] = module.VERBS
    if not args or args[0] in ("-h", "--help"):
        helps = {verb: _parsed_doc(run).short_description for verb, run in verbs.items()}
        doc = _parsed_doc(module)
        print(f"usage: lightning-suite {name} VERB …   (… VERB --help tells more)\n")
        print(doc.short_description, end="\n\n")
        print("\n".join(f"  {verb:<10} {text}" for verb, text in helps.items()))
        print("\nExamples:", *_indented(_examples(doc)), sep="\n")
        return 0
    if args[0] not in verbs:
        raise SuiteError(
            f"lightning-suite {name}: there is no {args[0]!r}.{did_you_mean(args[0], verbs)} "
            f"Use one of {', '.join(verbs)}."
        )
    return _run(f"{name} {args[0]}", verbs[args[0]], args[1:])


def _described(run: Callable[..., int]) -> dict[str, type]:
    """Return the sections that a command instantiates itself, several times, by base class.

    `run` is given their descriptions (class_path, init_args), checked like any other.
    """
    found: dict[str, type] = getattr(sys.modules[run.__module__], "DESCRIBED", {})
    return found


def prepare_classes() -> dict[str, str]:
    """Make class names in YAML resolvable: ours by short name, the user's from this folder.

    Returns:
        Our public names that cannot be imported here, each with the reason: an extra is missing.
    """
    import lightning_suite  # noqa: PLC0415
    from lightning_suite.errors import MissingExtraError  # noqa: PLC0415

    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    missing = {}
    for name in lightning_suite.__all__:
        try:
            getattr(lightning_suite, name)
        except (MissingExtraError, ModuleNotFoundError) as err:
            missing[name] = str(err)
    return missing


def instantiate(parser: ArgumentParser, config: Namespace) -> Namespace:
    """Make the objects of a parsed configuration.

    Raises:
        SuiteError: A constructor refuses its arguments.
    """
    # `instantiate_classes` is the method's name before jsonargparse 4.49
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes
    with constructor_errors():
        built: Namespace = make(config)
    return built


def count(number: int, noun: str) -> str:
    """Return ``"1 error"``, ``"2 errors"``, ``"no errors"``."""
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def time_left(seconds: float) -> str:
    """Return ``"40 s left"`` or, from a minute and a half on, ``"2 min left"``."""
    return f"{seconds:.0f} s left" if seconds < 90 else f"{seconds / 60:.0f} min left"


def _takes_config(name: str) -> bool:
    return COMMANDS[name.partition(" ")[0]].takes_config


def _parsed_doc(of: object) -> docstring_parser.Docstring:
    return docstring_parser.parse(inspect.getdoc(of) or "", docstring_parser.DocstringStyle.GOOGLE)


def _examples(doc: docstring_parser.Docstring) -> list[str]:
    return [meta.description or "" for meta in doc.meta if meta.args[0] == "examples"]


def _indented(examples: list[str]) -> list[str]:
    return [f"  {line}".rstrip() for text in examples for line in text.splitlines()]
