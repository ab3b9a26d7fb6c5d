"""Print tab completion for bash, zsh and fish."""

from __future__ import annotations

from collections.abc import Sequence

from captioner.verbs.terminal import build_parser


def run(argv: Sequence[str]) -> int:
    """Print the shell code that enables tab completion."""
    parser = build_parser(
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

    code = shellcode(["captioner"], use_defaults=False, shell=options.shell)
    print(_COMPINIT + code.replace(*_DESCRIBE) if options.shell == "zsh" else code)
    return 0


_COMPINIT = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }\n"
"""zsh has no completion until compinit has run, and a minimal ~/.zshrc does not run it."""

_DESCRIBE = (
    '        _describe "${words[1]}" completions',
    '        completions=("${(@)completions%:}")\n        _describe "${words[1]}" completions',
)
"""argcomplete ends each completion with a colon and its description, and zsh prints a bare " -- "
if that is empty: the colon is removed."""
