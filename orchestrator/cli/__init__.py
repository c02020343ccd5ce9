"""The command line: one module a subcommand, described for people in ``CLI.md`` beside this file."""
