"""``lowrank-opt completion``: words for the tab key of a shell, from the parser itself."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lowrank_opt.cli.streams import output

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from lowrank_opt.cli.parsers import Commands

_BASH = """\
_lowrank_opt() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words
    case ${{COMP_WORDS[1]}} in
{cases}
    *) words="{commands}" ;;
    esac
    [ "$COMP_CWORD" -eq 1 ] && words="{commands}"
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _lowrank_opt lowrank-opt
"""
_FISH = """\
complete -c lowrank-opt -n __fish_use_subcommand -f -a "{commands}"
{lines}
"""


def add_to(commands: Commands) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "completion",
        help="print what makes a shell complete options with the tab key",
        epilog='For bash and zsh: eval "$(lowrank-opt completion bash)" in the start-up file; for '
        "fish: lowrank-opt completion fish | source.",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(run=_run, commands=commands)


def _run(options: Namespace) -> int:
    print(script(options.shell, options.commands.choices), end="", file=output())
    return 0


def script(shell: str, parsers: dict[str, ArgumentParser]) -> str:
    """Return the start-up lines of a shell for commands with these parsers."""
    words = {name: _words(parser) for name, parser in parsers.items()}
    commands = " ".join(words)
    if shell == "fish":
        lines = [
            f"complete -c lowrank-opt -n '__fish_seen_subcommand_from {name}' "
            f"-a '{' '.join(found)}'"
            for name, found in words.items()
        ]
        return _FISH.format(commands=commands, lines="\n".join(lines))
    cases = "\n".join(f'    {name}) words="{" ".join(found)}" ;;' for name, found in words.items())
    bash = _BASH.format(cases=cases, commands=commands)
    return f"autoload -U +X bashcompinit && bashcompinit\n{bash}" if shell == "zsh" else bash


def _words(parser: ArgumentParser) -> list[str]:
    """Return the options of a command, and the values that its arguments may have."""
    words = list[str]()
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        if action.help is argparse.SUPPRESS:
            continue
        words += [option for option in action.option_strings if option.startswith("--")]
        words += [str(choice) for choice in action.choices or ()]
    return words
