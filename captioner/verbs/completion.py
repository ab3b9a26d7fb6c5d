"""Print tab completion for bash, zsh and fish."""

from __future__ import annotations

from collections.abc import Sequence

from captioner.verbs.terminal import parser_of


def run(argv: Sequence[str]) -> int:
    """Print the shell code that enables tab completion."""
    parser = parser_of(
        "completion",
        "Print shell code that enables tab completion of verbs, flags, files, models, overrides\n"
        "and their values.",
        '  eval "$(captioner completion bash)"                # in ~/.bashrc\n'
        '  eval "$(captioner completion zsh)"                 # in ~/.zshrc\n'
        "  captioner completion fish | source                 # in ~/.config/fish/config.fish\n",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    options = parser.parse_args(argv)

    from argcomplete import shellcode

    before = _COMPINIT if options.shell == "zsh" else ""
    print(before + shellcode(["captioner"], use_defaults=False, shell=options.shell))
    return 0


_COMPINIT = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }\n"
"""zsh has no completion until compinit has run, and a minimal ~/.zshrc does not run it."""
