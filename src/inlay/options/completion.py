"""What a shell completes a command line with: a script of plain words, made of what is known of the flags."""

from collections.abc import Iterator, Sequence

from inlay.options import flag, usage

ABOUT = """usage: inlay completion bash|zsh

A script that completes commands, flags and choices, for the file that the shell reads at its start:

  bash   eval "$(inlay completion bash)"        in ~/.bashrc
  zsh    eval "$(inlay completion zsh)"         in ~/.zshrc, behind compinit"""

_BEGIN = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}

_SCRIPT = """_inlay() {
    local words="" what="${COMP_WORDS[1]} ${COMP_WORDS[2]} $3"
    if [ "$COMP_CWORD" -eq 1 ]; then words="%s"; else case "$what" in
%s
    esac; fi
    COMPREPLY=($(compgen -W "$words" -- "$2"))
}
complete -o default -F _inlay inlay"""
"""Where it has no word, bash completes names of files."""


def script(shell: str, commands: Sequence[str]) -> str | None:
    """What completes `inlay` and these commands in a shell; None for a shell that is not known."""
    if shell not in _BEGIN:
        return None
    cases = "\n".join(f"        {case} ;;" for name in commands for case in _cases(name))
    return _BEGIN[shell] + _SCRIPT % (" ".join([*commands, "help", "completion", "version"]), cases)


def _cases(name: str) -> Iterator[str]:
    """What is offered behind a command: choices behind a flag that has some, its verbs, its flags where one is begun. What a
    method has is offered whichever it is."""
    if (known := flag.stored("commands", name)) is None:
        return
    own = known.flags
    if "method" in (each.name for each in own):
        methods = (flag.stored("methods", method) for method in flag.names("methods"))
        own = (*own, *(each for method in methods if method for each in method.flags))
    if known.verb:
        own = dict(known.verbs)[known.verb].flags
    for typed, flags in [*((f"{name} {verb}", each.flags) for verb, each in known.verbs), (name, own)]:
        by_name = {each.typed: each for each in flags if not each.is_positional}
        for each in by_name.values():
            if each.choices:
                choices = " ".join([*each.choices, *usage.brought(each.plugins)])
                yield f'"{typed} "*" {each.typed}" | "{typed} {each.typed}") words="{choices}"'
        verbs = " ".join(verb for verb, _ in known.verbs) if typed == name else ""
        yield f'"{typed} "*) case "$2" in -*) words="{" ".join(by_name)}" ;; *) ((COMP_CWORD > 2)) || words="{verbs}" ;; esac'
