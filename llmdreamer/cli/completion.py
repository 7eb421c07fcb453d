"""Shell completion of `llmdreamer`: its commands, and Hydra's keys and options after train and sweep."""

from __future__ import annotations

from collections.abc import Sequence

from llmdreamer.utils.output import print_error, print_line

# Hydra's own script completes a program without commands, so only its query is used: it reads the line from
# COMP_LINE and drops its first word.
_SCRIPT = """\
if [ -n "$ZSH_VERSION" ]; then
    autoload -U +X compinit && compinit -u
    autoload -U +X bashcompinit && bashcompinit
fi
_llmdreamer_complete() {{
    local program="${{COMP_WORDS[0]}}" command="${{COMP_WORDS[1]}}" word="${{COMP_WORDS[COMP_CWORD]}}"
    local choices="{commands}"
    if [ "$COMP_CWORD" -gt 1 ]; then
        case "$command" in
            train | sweep)
                choices="$(COMP_LINE="llmdreamer ${{COMP_LINE#*"$command" }}" \\
                    "$program" train --shell-completion query=bash)" ;;
            *) choices="" ;;
        esac
    fi
    COMPREPLY=($(compgen -o default -W "$choices" -- "$word"))
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
complete -o nospace -o default -F _llmdreamer_complete llmdreamer
"""


def print_script(argv: Sequence[str]) -> int:
    """Print the script that bash and zsh evaluate, and return the exit code."""
    from llmdreamer.cli.command import COMMANDS

    if argv:
        print_error(f"--completion {' '.join(argv)}: takes no words")
        return 2
    print_line(_SCRIPT.format(commands=" ".join(COMMANDS)))
    return 0
