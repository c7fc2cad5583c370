"""The commands, one in a file: `main(arguments)` gives the exit code.

Each says what is wrong with its arguments and the config before it imports torch, so most imports stand inside the functions.
"""
