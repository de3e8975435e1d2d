"""The command line as people and programs use it: processes, their output and their exit codes."""
