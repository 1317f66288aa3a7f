"""The command line: one file a command, each of which parses, makes one library call and prints.

Results go to stdout; progress, notices and errors to stderr. Nothing heavy is imported before a command needs it.
"""
