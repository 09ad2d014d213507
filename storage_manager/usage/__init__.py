"""What can be typed, for people and shells: help, suggestions, completion. It knows grammars, not this tool."""
