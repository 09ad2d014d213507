"""Completion for bash, zsh and fish: each script has all it needs, and starts no Python at a TAB."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from storage_manager.usage.outline import Option, Outline

# What the wrapper takes in front of the rest.
_WRAPPER = [
    Option(("--env",), "PROD|TEST", ("PROD", "TEST"), "the paths of this environment", "", False),
    Option(("--env-file",), "FILE", (), "read this environment file", "", False),
]

# Prints what can come next, as `word:explanation`, or DIR or FILE. Its arguments: the program, and the words so far.
_FOLLOWS = """\
_@TOOL@_follows() {
  local word before='' command='' program=$1
  shift
  for word; do
    case $before in @VALUES@) before='' && continue ;; esac
    case $word in -*) before=$word ;; *) command=${command:-$word} before='' ;; esac
  done
  case $before in @AFTER_OPTION@
    *) case $command in
      '') @COMMANDS@
        case $program in *.sh) @WRAPPER@ ;; esac ;; @AFTER_COMMAND@
    esac ;;
  esac
}
"""
_BASH = """
_@TOOL@() {
  local word line words=() found=() plain=() current=${COMP_WORDS[COMP_CWORD]}
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do [[ $word == = ]] || words+=("$word"); done
  [[ $current != = ]] || current='' # to bash, it is a word of its own
  while read -r line; do
    case $line in
      DIR) compopt -o filenames && mapfile -t COMPREPLY < <(compgen -d -- "$current") && return ;;
      FILE) compopt -o filenames && mapfile -t COMPREPLY < <(compgen -f -- "$current") && return ;;
      -*) found+=("${line%%:*}") ;;
      *) plain+=("${line%%:*}") ;;
    esac
  done < <(_@TOOL@_follows "$1" "${words[@]}")
  [[ $current == -* || ${#plain[@]} == 0 ]] || found=("${plain[@]}")
  mapfile -t COMPREPLY < <(compgen -W "${found[*]}" -- "$current")
}
complete -F _@TOOL@ @NAMES@
"""
_ZSH = """
_@TOOL@() {
  local -a before=("${(@)words[2,CURRENT-1]}") found plain
  ! compset -P '--*=' || before+=("${IPREFIX%=}")
  found=("${(@f)$(_@TOOL@_follows $service "${before[@]}")}")
  case $found in
    DIR) _path_files -/ ;;
    FILE) _files ;;
    ?*) plain=(${found:#-*})
        if [[ -n $plain && $PREFIX != -* ]]; then _describe @TOOL@ plain; else _describe -o option found; fi ;;
  esac
}
# Found in $fpath, this file is the function; read by `source`, it says what the function is for.
if [[ $funcstack[1] == _@TOOL@ ]]; then _@TOOL@ "$@"; else compdef _@TOOL@ @NAMES@; fi
"""
_FISH = """\
function __@TOOL@
    set -l current (commandline -ct)
    set -l option (string match -r -- '^(--[^=]*)=' $current)
    set -l found (sh -c @FOLLOWS@ sh (commandline -opc) $option[2])
    set -l plain (string match -v -- '-*' $found)
    string match -q -- '-*' $current; or test -z "$plain"; or set found $plain
    set current (string replace -- "$option[1]" '' $current)
    switch "$found"
        case DIR
            set found (__fish_complete_directories $current)
        case FILE
            set found (__fish_complete_path $current)
        case '*'
            set found (string replace : \\t -- $found)
    end
    printf '%s\\n' "$option[1]"$found
end
complete -c @TOOL@ -c @TOOL@.pyz -c @TOOL@.sh -f -a '(__@TOOL@)'
"""


def script(shell: str, outlines: list[Outline]) -> str:
    """Of this shell. `outlines` begins with the tool itself."""
    tool, *commands = outlines
    options = [*_WRAPPER, *(option for outline in outlines for option in outline.options)]
    values = {name: option for option in options if option.value for name in option.names}
    parts = {
        "VALUES": " | ".join(values),
        "WRAPPER": _offer(_WRAPPER),
        "AFTER_OPTION": "".join(f"\n    {name}) {_value(option)} ;;" for name, option in values.items()),
        "COMMANDS": _offer(tool.options, [f"{command.name}:{command.help}" for command in commands]),
        "AFTER_COMMAND": "".join(
            f"\n      {command.name}) "
            f"{_offer(command.options, [choice for part in command.operands for choice in part.choices])} ;;"
            for command in commands
        ),
    }
    follows = _replaced(_FOLLOWS, parts)
    in_fish = f'{follows}_@TOOL@_follows "$@"'.replace("\\", "\\\\").replace("'", "\\'")
    text = {"bash": follows + _BASH, "zsh": f"#compdef @NAMES@\n{follows}{_ZSH}", "fish": _FISH}[shell]
    names = f"{tool.prog} {tool.prog}.pyz {tool.prog}.sh"
    return _replaced(text, {"FOLLOWS": f"'{in_fish}'", "NAMES": names, "TOOL": tool.prog}).rstrip("\n")


def _replaced(text: str, parts: dict[str, str]) -> str:
    for name, part in parts.items():
        text = text.replace(f"@{name}@", part)
    return text


def _value(option: Option) -> str:
    if option.choices:
        return _offer([], list(option.choices))
    return f"echo {option.value}" if option.value in ("DIR", "FILE") else ":"


def _offer(options: list[Option], words: Iterable[str] = ()) -> str:
    offers = [*words, *(f"{name}:{option.help}" for option in options for name in option.names)]
    return f"printf '%s\\n' {' '.join(map(shlex.quote, offers))}"
