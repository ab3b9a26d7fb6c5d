"""Print tab completion for bash, zsh and fish."""

from __future__ import annotations

from collections.abc import Sequence

from captioner import bundle
from captioner.verbs import VERBS
from captioner.verbs.terminal import parser_of


def run(argv: Sequence[str]) -> int:
    """Print a shell function that completes verbs, overrides and files."""
    parser = parser_of(
        "completion",
        "Print tab completion for a shell: verbs, groups, options and values of train, files,\n"
        "bundled models.",
        '  eval "$(captioner completion bash)"\n'
        '  eval "$(captioner completion zsh)"\n'
        "  captioner completion fish | source\n",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    options = parser.parse_args(argv)
    script = _COMPLETION[options.shell]
    for word, names in (("VERBS", VERBS), ("MODELS", bundle.names())):
        script = script.replace(word, " ".join(names))
    print(script, end="")
    return 0


_BASH = """\
_captioner() {
    local word="${COMP_WORDS[COMP_CWORD]}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "VERBS" -- "$word"))
    elif [ "${COMP_WORDS[1]}" = train ]; then
        local line="${COMP_LINE/ train/}"
        COMPREPLY=($(COMP_LINE="$line" COMP_POINT="${#line}" captioner train -sc query=bash))
        [[ "${COMPREPLY[0]}" == *= || "${COMPREPLY[0]}" == *. ]] && compopt -o nospace
    else
        COMPREPLY=($(compgen -f -- "$word"))
        case "${COMP_WORDS[1]} ${COMP_WORDS[COMP_CWORD-1]}" in
            caption\\ --model|evaluate\\ *|compare\\ *|report\\ *)
                COMPREPLY+=($(compgen -W "MODELS" -- "$word")) ;;
            models\\ models)
                COMPREPLY=($(compgen -W "list export" -- "$word")) ;;
        esac
    fi
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -F _captioner captioner
"""
_COMPLETION = {
    "bash": _BASH,
    "zsh": "autoload -U +X bashcompinit && bashcompinit\n" + _BASH,
    "fish": """\
complete -c captioner -n __fish_use_subcommand -f -a "VERBS"
complete -c captioner -n "__fish_seen_subcommand_from train" -f -a '(
    set -lx COMP_LINE (string replace " train" "" -- (commandline -cp))
    captioner train -sc query=fish)'
complete -c captioner -n "__fish_seen_subcommand_from caption" -l model -r -a "MODELS"
complete -c captioner -n "__fish_seen_subcommand_from evaluate compare report" -a "MODELS"
complete -c captioner -n "__fish_seen_subcommand_from models" -f -a "list export"
""",
}
