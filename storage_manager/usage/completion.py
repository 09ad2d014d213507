"""Completion for bash, zsh and fish: each script has all it needs, and starts no Python at a TAB."""

from __future__ import annotations

import shlex

from storage_manager.usage.outline import Option, Outline

# What the wrapper takes in front of the rest.
_WRAPPER = [
    Option(("--env",), "PROD|TEST", ("PROD", "TEST"), "the paths of this environment", "", False),
    Option(("--env-file",), "FILE", (), "read this environment file", "", False),
]

# `follows PROGRAM WORD ...` prints what can come next, as `word:explanation`, or DIR or FILE.
_SH = """\
_TOOL_follows() {
  local word before='' command='' program=$1
  shift
  for word; do
    case $before in VALUES) before='' && continue ;; esac
    case $word in -*) before=$word ;; *) command=${command:-$word} before='' ;; esac
  done
  case $before in
AFTER_OPTION
    *) case $command in
AFTER_COMMAND
       esac
       case $program$command in *.sh) printf '%s\\n' WRAPPER ;; esac ;;
  esac
}
"""
_BASH = """
_TOOL() {
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
  done < <(_TOOL_follows "$1" "${words[@]}")
  [[ $current == -* || ${#plain[@]} == 0 ]] || found=("${plain[@]}")
  mapfile -t COMPREPLY < <(compgen -W "${found[*]}" -- "$current")
}
complete -F _TOOL NAMES
"""
_ZSH = """
_TOOL() {
  local -a before=("${(@)words[2,CURRENT-1]}") found plain
  ! compset -P '--*=' || before+=("${IPREFIX%=}")
  found=("${(@f)$(_TOOL_follows $service "${before[@]}")}")
  case $found in
    DIR) _path_files -/ ;;
    FILE) _files ;;
    ?*) plain=(${found:#-*})
        if [[ -n $plain && $PREFIX != -* ]]; then _describe TOOL plain; else _describe -o option found; fi ;;
  esac
}
# Found in $fpath, this file is the function; read by `source`, it says what the function is for.
if [[ $funcstack[1] == _TOOL ]]; then _TOOL "$@"; else compdef _TOOL NAMES; fi
"""
_FISH = """\
function __TOOL_follows
    set -l before ''
    set -l command ''
    for word in $argv[2..-1]
        switch $before
            case VALUES
                set before ''
                continue
        end
        switch $word
            case '-*'
                set before $word
            case '*'
                set before ''
                test -n "$command"; or set command $word
        end
    end
    switch $before
AFTER_OPTION
        case '*'
            switch $command
AFTER_COMMAND
            end
            switch $argv[1]$command
                case '*.sh'
                    printf '%s\\n' WRAPPER
            end
    end
end
function __TOOL
    set -l current (commandline -ct)
    set -l option (string match -r -- '^(--[^=]*)=' $current)
    set -l found (__TOOL_follows (commandline -opc) $option[2])
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
for word in NAMES
    complete -c $word -f -a '(__TOOL)'
end
"""


def script(shell: str, outlines: list[Outline]) -> str:
    """Of this shell. `outlines` begins with the tool itself."""
    tool, *commands = outlines
    options = [*_WRAPPER, *(option for outline in outlines for option in outline.options)]
    values = {name: option for option in options if option.value for name in option.names}
    after_option = {
        name: list(option.choices) or [option.value] * (option.value in ("DIR", "FILE"))
        for name, option in values.items()
    }
    after_command = {"": [f"{command.name}:{command.help}" for command in commands] + _offer(tool.options)}
    for command in commands:
        after_command[command.name] = [*(choice for part in command.operands for choice in part.choices)] + _offer(
            command.options
        )
    is_fish = shell == "fish"
    parts = {
        "VALUES": (" " if is_fish else " | ").join(values),
        "WRAPPER": " ".join(map(shlex.quote, _offer(_WRAPPER))),
        "NAMES": f"{tool.prog} {tool.prog}.pyz {tool.prog}.sh",
        "TOOL": tool.prog,
        "AFTER_OPTION": _cases(after_option, is_fish),
        "AFTER_COMMAND": _cases(after_command, is_fish),
    }
    text = {"bash": _SH + _BASH, "zsh": "#compdef NAMES\n" + _SH + _ZSH, "fish": _FISH}[shell]
    for name, part in parts.items():
        text = text.replace(name, part)
    return text


def _offer(options: list[Option]) -> list[str]:
    return [f"{name}:{option.help}" for option in options for name in option.names]


def _cases(offers: dict[str, list[str]], is_fish: bool) -> str:
    lines = []
    for after, words in offers.items():
        head, tail = (f"case {after or chr(39) * 2}; ", "") if is_fish else (f"{after or chr(39) * 2}) ", " ;;")
        shown = f"printf '%s\\n' {' '.join(map(shlex.quote, words))}" if words else "true"
        lines.append(f"      {head}{shown}{tail}")
    return "\n".join(lines)
